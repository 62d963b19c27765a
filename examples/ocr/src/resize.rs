//! Bilinear resizing with the integer arithmetic of OpenCV's `INTER_LINEAR`, to the last bit: the recogniser reads the
//! smallest differences.

use crate::picture::Picture;

/// Weights have 11 bits.
const ONE: f32 = 2048.0;

/// Where a target pixel comes from along one axis: two source places and the weight of each.
struct Tap {
    places: [usize; 2],
    weights: [i32; 2],
}

/// The taps of a whole axis. Beyond the ends the outermost source pixel goes on.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = 1.0 / (to as f64 / from as f64);
    let last = from as i64 - 1;
    (0..to)
        .map(|place| {
            let at = ((place as f64 + 0.5) * scale - 0.5) as f32;
            let whole = at.floor();
            let fraction = at - whole;
            let first = whole as i64;
            Tap {
                places: [first.clamp(0, last) as usize, (first + 1).clamp(0, last) as usize],
                weights: [((1.0 - fraction) * ONE).round_ties_even() as i32, (fraction * ONE).round_ties_even() as i32],
            }
        })
        .collect()
}

/// Resizes a picture and hands out its new rows from top to bottom: `width * 3` bytes each.
pub fn rows(picture: &Picture, width: usize, height: usize, mut row: impl FnMut(usize, &[u8])) {
    if (width, height) == (picture.width, picture.height) {
        (0..height).for_each(|y| row(y, picture.row(y)));
        return;
    }
    let columns = taps(picture.width, width);
    let mut out = vec![0u8; width * 3];
    // The two source rows in use, stretched; they serve several target rows when a picture grows.
    let mut stretched = [(usize::MAX, vec![0i32; width * 3]), (usize::MAX, vec![0i32; width * 3])];
    for (y, tap) in taps(picture.height, height).iter().enumerate() {
        if stretched[0].0 != tap.places[0] && stretched[1].0 == tap.places[0] {
            stretched.swap(0, 1);
        }
        for (held, &place) in stretched.iter_mut().zip(&tap.places) {
            if held.0 != place {
                stretch(picture.row(place), &columns, &mut held.1);
                held.0 = place;
            }
        }
        blend(&stretched[0].1, &stretched[1].1, tap.weights, &mut out);
        row(y, &out);
    }
}

/// A resized copy.
pub fn resized(picture: &Picture, width: usize, height: usize) -> Picture {
    let mut pixels = Vec::with_capacity(width * height * 3);
    rows(picture, width, height, |_, row| pixels.extend_from_slice(row));
    Picture { width, height, pixels }
}

/// One row at its new width, scaled by 2048 / 16.
fn stretch(row: &[u8], columns: &[Tap], out: &mut [i32]) {
    for (out, tap) in out.chunks_exact_mut(3).zip(columns) {
        let (left, right) = (&row[tap.places[0] * 3..][..3], &row[tap.places[1] * 3..][..3]);
        for channel in 0..3 {
            let sum = i32::from(left[channel]) * tap.weights[0] + i32::from(right[channel]) * tap.weights[1];
            out[channel] = sum >> 4;
        }
    }
}

/// The weighted mean of two stretched rows, with OpenCV's roundings.
fn blend(upper: &[i32], lower: &[i32], weights: [i32; 2], out: &mut [u8]) {
    for ((out, upper), lower) in out.iter_mut().zip(upper).zip(lower) {
        let sum = ((upper * weights[0]) >> 16) + ((lower * weights[1]) >> 16);
        *out = ((sum + 2) >> 2) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize, values: &[u8]) -> Picture {
        Picture { width, height, pixels: values.iter().flat_map(|&value| [value; 3]).collect() }
    }

    fn values(picture: &Picture) -> Vec<u8> {
        picture.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    /// Answers of `cv2.resize` of OpenCV 5.0.
    #[test]
    fn equals_opencv() {
        let source = grey(4, 2, &[0, 50, 200, 255, 13, 99, 180, 7]);
        assert_eq!(
            values(&resized(&source, 7, 3)),
            [0, 18, 46, 125, 204, 235, 255, 7, 31, 69, 132, 186, 152, 131, 13, 44, 93, 139, 167, 69, 7]
        );
        assert_eq!(
            values(&resized(&source, 3, 5)),
            [8, 125, 246, 10, 126, 225, 18, 132, 141, 25, 138, 57, 27, 139, 36]
        );
        assert_eq!(values(&resized(&source, 2, 1)), [41, 161]);
    }

    #[test]
    fn one_colour_stays() {
        for (width, height) in [(1, 1), (7, 3), (64, 48), (5, 90)] {
            assert!(values(&resized(&grey(9, 5, &[255; 45]), width, height)).iter().all(|&value| value == 255));
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let source = grey(3, 2, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(resized(&source, 3, 2), source);
    }
}
