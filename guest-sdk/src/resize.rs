//! Resizing of pictures, with the SIMD instructions of the target: the same numbers on each.

#[cfg(not(target_family = "wasm"))]
use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedImage, TypedImageRef},
    pixels::U8x3,
};

use crate::pixels::Picture;
#[cfg(any(target_family = "wasm", test))]
use crate::resample::resample;
use crate::{Error, Result};

/// How pixels become more or fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel. Fastest.
    Nearest,
    /// Between the four nearest pixels, as OpenCV's `INTER_LINEAR`: sharp and fast, but a much smaller picture shimmers.
    Bilinear,
    /// Over all pixels beneath, weighted by their distance, as Pillow's `BILINEAR`: the right one to make a picture smaller.
    Smooth,
    /// The mean of all pixels beneath, as Pillow's `BOX`.
    Area,
    /// Lanczos over three pixels, as Pillow's `LANCZOS`: the sharpest, and the slowest.
    Lanczos,
}

#[cfg(not(target_family = "wasm"))]
impl Filter {
    fn algorithm(self) -> ResizeAlg {
        match self {
            Filter::Nearest => ResizeAlg::Nearest,
            Filter::Bilinear => ResizeAlg::Interpolation(FilterType::Bilinear),
            Filter::Smooth => ResizeAlg::Convolution(FilterType::Bilinear),
            Filter::Area => ResizeAlg::Convolution(FilterType::Box),
            Filter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
        }
    }
}

/// The picture at another size, whatever its proportions.
///
/// ```
/// use windrose_guest::{pixels::Picture, resize::{Filter, resize}};
/// let picture = Picture::new(4, 2, vec![100; 24])?;
/// let small = resize(&picture, 2, 1, Filter::Smooth)?;
/// assert_eq!(small.pixels(), [100; 6]);
/// # Ok::<(), windrose_guest::Error>(())
/// ```
///
/// # Errors
/// When a side is 0 or beyond 32 bits.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Picture> {
    if (width, height) == (picture.width(), picture.height()) {
        return Ok(picture.clone());
    }
    if [picture.width(), picture.height(), width, height].iter().any(|&side| side == 0 || u32::try_from(side).is_err())
    {
        let (from, to) = ((picture.width(), picture.height()), (width, height));
        return Err(Error::internal(format!("resize: a side is 0 or too long: {from:?} to {to:?}")));
    }
    Picture::new(width, height, resized(picture, (width, height), filter)?)
}

#[cfg(target_family = "wasm")]
fn resized(picture: &Picture, to: (usize, usize), filter: Filter) -> Result<Vec<u8>> {
    let made = resample(picture.pixels(), (picture.width(), picture.height()), to, filter);
    made.ok_or_else(|| Error::internal("resize: too many pixels"))
}

#[cfg(not(target_family = "wasm"))]
fn resized(picture: &Picture, (width, height): (usize, usize), filter: Filter) -> Result<Vec<u8>> {
    let with_crate = || -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
        let size = width.checked_mul(height).and_then(|count| count.checked_mul(3)).ok_or("too many pixels")?;
        let mut made = vec![0; size];
        let (from, to) = ((picture.width().try_into()?, picture.height().try_into()?), (width, height));
        let source = TypedImageRef::<U8x3>::from_buffer(from.0, from.1, picture.pixels())?;
        let mut target = TypedImage::<U8x3>::from_buffer(to.0.try_into()?, to.1.try_into()?, &mut made)?;
        let options = ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false);
        Resizer::new().resize_typed(&source, &mut target, &options)?;
        Ok(made)
    };
    with_crate().map_err(Error::wrap("resize"))
}

/// The picture at the largest size that lies within `width` x `height`, proportions kept.
///
/// # Errors
/// As [`resize`].
pub fn fit(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Picture> {
    let scale = (width as f64 / picture.width() as f64).min(height as f64 / picture.height() as f64);
    let scaled = |side: usize, most: usize| ((side as f64 * scale).round() as usize).clamp(1, most.max(1));
    resize(picture, scaled(picture.width(), width), scaled(picture.height(), height), filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Picture {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [(4 * x) as u8, (4 * y) as u8, 7]));
        Picture::new(width, height, pixels.collect()).unwrap()
    }

    /// What a guest computes, beside what the crate does.
    #[test]
    fn every_size_gives_the_numbers_of_the_crate() {
        let noise = |width: usize, height: usize| {
            let pixels = (0..3 * width * height).map(|i| ((i * i * 31) >> 3) as u8).collect();
            Picture::new(width, height, pixels).unwrap()
        };
        for (from, to) in sizes() {
            let source = noise(from.0, from.1);
            for filter in [Filter::Nearest, Filter::Bilinear, Filter::Smooth, Filter::Area, Filter::Lanczos] {
                let ours = resample(source.pixels(), from, to, filter).unwrap();
                assert!(ours == resized(&source, to, filter).unwrap(), "{filter:?} {from:?} to {to:?}");
            }
        }
    }

    /// Pairs of sizes: sides around those of vectors, each way, and some of real pictures.
    fn sizes() -> Vec<((usize, usize), (usize, usize))> {
        let sides = [1, 2, 3, 4, 5, 6, 10, 11, 12, 16, 21, 22, 33, 64, 100, 299];
        let mut state = 1u32;
        let mut side = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sides[state as usize >> 28]
        };
        let drawn = (0..600).map(|_| ((side(), side()), (side(), side())));
        let real =
            [((451, 300), (224, 224)), ((1000, 872), (224, 224)), ((640, 480), (100, 75)), ((224, 224), (448, 300))];
        drawn.chain(real).filter(|(from, to)| from != to).collect()
    }

    #[test]
    fn a_ramp_stays_a_ramp() {
        let source = ramp(60, 40);
        for filter in [Filter::Bilinear, Filter::Smooth, Filter::Area, Filter::Lanczos] {
            for (width, height) in [(30, 20), (120, 80), (15, 40)] {
                let picture = resize(&source, width, height, filter).unwrap();
                let (x, y) = (width / 2, height / 2);
                let pixel = &picture.pixels()[3 * (y * width + x)..][..3];
                let exact =
                    |at: usize, to: usize, from: usize| 4.0 * ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5);
                let wanted = [exact(x, width, 60), exact(y, height, 40), 7.0];
                for (found, wanted) in pixel.iter().zip(wanted) {
                    assert!((f64::from(*found) - wanted).abs() <= 2.1, "{filter:?} {width}: {pixel:?} {wanted}");
                }
            }
        }
    }

    #[test]
    fn proportions_are_kept() {
        let picture = fit(&ramp(60, 40), 30, 30, Filter::Smooth).unwrap();
        assert_eq!((picture.width(), picture.height()), (30, 20));
        assert_eq!(fit(&ramp(60, 1), 3, 3, Filter::Nearest).unwrap().height(), 1);
    }

    #[test]
    fn no_pixels_are_refused() {
        assert!(resize(&ramp(2, 2), 0, 1, Filter::Nearest).is_err());
        assert!(resize(&Picture::new(0, 0, vec![]).unwrap(), 1, 1, Filter::Area).is_err());
    }
}
