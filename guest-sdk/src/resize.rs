//! Resizing of pictures, with the SIMD instructions of the target.

use fast_image_resize::images::{TypedImage, TypedImageRef};
#[cfg(any(target_family = "wasm", test))]
use fast_image_resize::pixels::U8;
#[cfg(not(target_family = "wasm"))]
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::pixels::Picture;
#[cfg(any(target_family = "wasm", test))]
use crate::transpose::transpose;
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
    let pixels = resampled(picture, width, height, filter).map_err(Error::wrap("resize"))?;
    Picture::new(width, height, pixels)
}

/// Both sides in one go, pixel by pixel.
#[cfg(not(target_family = "wasm"))]
fn resampled(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Vec<u8>, String> {
    scaled::<U8x3>(picture.pixels(), (picture.width(), picture.height()), (width, height), filter)
}

#[cfg(target_family = "wasm")]
fn resampled(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Vec<u8>, String> {
    by_rows(picture, width, height, filter)
}

/// One side after the other, both as the height of a table of bytes: many of them are weighted alike at a time, where
/// the three colours of a pixel leave most lanes of WebAssembly's short vectors empty. The same numbers.
#[cfg(any(target_family = "wasm", test))]
fn by_rows(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Vec<u8>, String> {
    let columns = 3 * picture.width();
    let rows = scaled::<U8>(picture.pixels(), (columns, picture.height()), (columns, height), filter)?;
    // What stood in a column are three rows now, a colour each, and together one row of the table that comes next.
    let turned = transpose(&rows, columns);
    let columns = height.checked_mul(3).ok_or("too many pixels")?;
    let rows = scaled::<U8>(&turned, (columns, picture.width()), (columns, width), filter)?;
    Ok(transpose(&rows, height))
}

/// A table of pixels with this many columns and rows, as one with others.
fn scaled<P: PixelTrait>(
    pixels: &[u8],
    (columns, rows): (usize, usize),
    (width, height): (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>, String> {
    let side = |side: usize| match u32::try_from(side) {
        Ok(0) | Err(_) => Err(format!("a side of {side} pixels")),
        Ok(side) => Ok(side),
    };
    let source = TypedImageRef::<P>::from_buffer(side(columns)?, side(rows)?, pixels);
    let size =
        width.checked_mul(height).and_then(|count| count.checked_mul(size_of::<P>())).ok_or("too many pixels")?;
    let mut made = vec![0; size];
    let mut target =
        TypedImage::<P>::from_buffer(side(width)?, side(height)?, &mut made).map_err(|error| error.to_string())?;
    let options = ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false);
    // By its type: what chooses among all types of pixels brings the code of each into the module.
    let resized = Resizer::new().resize_typed(&source.map_err(|error| error.to_string())?, &mut target, &options);
    resized.map_err(|error| error.to_string())?;
    Ok(made)
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

    #[test]
    fn one_side_after_the_other_gives_the_same_numbers() {
        let noise = |width: usize, height: usize| {
            let pixels = (0..3 * width * height).map(|i| (i * i * 31 % 256) as u8).collect();
            Picture::new(width, height, pixels).unwrap()
        };
        let source = noise(53, 37);
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Smooth, Filter::Area, Filter::Lanczos] {
            for (width, height) in [(16, 16), (53, 20), (20, 37), (100, 11), (11, 100), (1, 1), (106, 74)] {
                let direct = resampled(&source, width, height, filter).unwrap();
                assert_eq!(by_rows(&source, width, height, filter).unwrap(), direct, "{filter:?} {width} x {height}");
            }
        }
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
