//! What the pixels of one side are made of, as the crate fast_image_resize weighs them.

use std::f64::consts::PI;

use crate::lanes::MOST_BITS;
use crate::resize::Filter;

/// For each new place the first of the old ones, and the weight of each from there on.
pub(crate) struct Windows {
    /// The first old place, and where the window's weights end.
    spans: Vec<(usize, usize)>,
    /// Two neighbours in one number, the first in its low half.
    weights: Vec<i32>,
    /// Bits of a weight behind the point.
    bits: u32,
    /// The most pairs of a window.
    longest: usize,
}

impl Windows {
    /// Windows that begin at multiples of `align`.
    pub(crate) fn new(from: usize, to: usize, filter: Filter, align: usize) -> Windows {
        let exact = Exact::new(from, to, filter);
        let largest = exact.weights.iter().copied().fold(0.0, f64::max);
        // A weight has 16 bits, and its sign is one of them.
        let is_full = |bits: &u32| largest * f64::from(2u32 << bits) >= 32_767.5;
        let bits = (0..MOST_BITS).find(is_full).unwrap_or(MOST_BITS);
        let mut windows = Windows { spans: Vec::with_capacity(to), weights: Vec::new(), bits, longest: 0 };
        let mut rest = &exact.weights[..];
        for (first, count) in exact.spans {
            let (window, others) = rest.split_at(count);
            rest = others;
            let before = first % align;
            windows.push(first - before, std::iter::repeat_n(0.0, before).chain(window.iter().copied()));
        }
        windows
    }

    fn push(&mut self, first: usize, mut window: impl Iterator<Item = f64>) {
        let unit = f64::from(1u32 << self.bits);
        // Halves away from zero, as `f64::round` has it, which is a call in WebAssembly.
        let rounded = |weight: f64| i32::from((weight * unit + 0.5f64.copysign(weight)) as i16);
        let start = self.weights.len();
        while let Some(low) = window.next() {
            let high = window.next().unwrap_or(0.0);
            self.weights.push(rounded(low) & 0xffff | rounded(high) << 16);
        }
        self.spans.push((first, self.weights.len()));
        self.longest = self.longest.max(self.weights.len() - start);
    }

    /// The most pairs of weights of a new place.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// New places.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Bits of a weight behind the point.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// The first old place of a new one, and the weights from there on, in pairs.
    #[inline(always)]
    pub(crate) fn get(&self, place: usize) -> (usize, &[i32]) {
        let (first, end) = self.spans[place];
        let start = place.checked_sub(1).map_or(0, |before| self.spans[before].1);
        (first, &self.weights[start..end])
    }
}

/// Weights before they are rounded.
struct Exact {
    /// The first old place, and how many.
    spans: Vec<(usize, usize)>,
    weights: Vec<f64>,
}

impl Exact {
    fn new(from: usize, to: usize, filter: Filter) -> Exact {
        let mut exact = Exact { spans: Vec::with_capacity(to), weights: Vec::new() };
        let scale = from as f64 / to as f64;
        // A smaller picture is made of all that is beneath, but between neighbours only of these.
        let width = if filter == Filter::Bilinear { 1.0 } else { scale.max(1.0) };
        let radius = width
            * match filter {
                Filter::Nearest | Filter::Area => 0.5,
                Filter::Bilinear | Filter::Smooth => 1.0,
                Filter::Lanczos => 3.0,
            };
        let curve = Curve::new(filter, 1.0 / width);
        for place in 0..to {
            let middle = (place as f64 + 0.5) * scale;
            let first = (middle - radius).floor().max(0.0) as usize;
            let end = (middle + radius).ceil().min(from as f64) as usize;
            let start = exact.weights.len();
            curve.extend(&mut exact.weights, first..end, middle - 0.5);
            exact.trim(start, first);
        }
        exact
    }

    /// Makes the sum of a window's weights 1, without the zeros at its ends.
    fn trim(&mut self, start: usize, first: usize) {
        let window = &mut self.weights[start..];
        let zeros = window.iter().take_while(|&&weight| weight == 0.0).count();
        window.rotate_left(zeros);
        let kept = window.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1);
        let sum: f64 = window[..kept].iter().sum();
        if sum != 0.0 {
            window[..kept].iter_mut().for_each(|weight| *weight /= sum);
        }
        self.weights.truncate(start + kept);
        self.spans.push((first + zeros, kept));
    }
}

/// How much an old place counts by its distance.
struct Curve {
    filter: Filter,
    /// New places in an old one.
    step: f64,
    /// Sine and cosine of a step of the wider of Lanczos' two waves.
    turn: (f64, f64),
}

impl Curve {
    fn new(filter: Filter, step: f64) -> Curve {
        Curve { filter, step, turn: (PI / 3.0 * step).sin_cos() }
    }

    fn extend(&self, weights: &mut Vec<f64>, places: std::ops::Range<usize>, middle: f64) {
        let distance = |place: usize| (place as f64 - middle) * self.step;
        let (mut sine, mut cosine) = match self.filter {
            Filter::Lanczos => (PI / 3.0 * distance(places.start)).sin_cos(),
            _ => self.turn,
        };
        weights.extend(places.map(distance).map(|distance| match self.filter {
            Filter::Nearest | Filter::Area => f64::from(u8::from(distance > -0.5 && distance <= 0.5)),
            Filter::Bilinear | Filter::Smooth => (1.0 - distance.abs()).max(0.0),
            Filter::Lanczos => {
                let weight = lanczos(distance, sine);
                // A turn instead of a call for each: sines are most of what Lanczos costs otherwise.
                let (by_sine, by_cosine) = self.turn;
                (sine, cosine) = (sine * by_cosine + cosine * by_sine, cosine * by_cosine - sine * by_sine);
                weight
            }
        }));
    }
}

/// `sinc(x) sinc(x / 3)` within three, with the sine of `PI x / 3`.
fn lanczos(x: f64, sine: f64) -> f64 {
    if !(-3.0..3.0).contains(&x) {
        return 0.0;
    }
    if x.abs() < 0.05 {
        // Here the error of the sine would be large beside the sine.
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        return sinc(x) * sinc(x / 3.0);
    }
    let square = sine * sine;
    // By the sine of the triple angle.
    3.0 * square * (3.0 - 4.0 * square) / (PI * PI * x * x)
}
