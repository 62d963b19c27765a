//! Resizing of pictures, with the SIMD instructions of the target.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::pixels::Picture;
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
    /// The mean of all pixels beneath, as OpenCV's `INTER_AREA`.
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
    let side = |side: usize| match u32::try_from(side) {
        Ok(0) | Err(_) => Err(Error::internal(format!("resize: a side of {side} pixels"))),
        Ok(side) => Ok(side),
    };
    let source = ImageRef::new(side(picture.width())?, side(picture.height())?, picture.pixels(), PixelType::U8x3)
        .map_err(Error::wrap("resize"))?;
    let mut target = Image::new(side(width)?, side(height)?, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false);
    Resizer::new().resize(&source, &mut target, &options).map_err(Error::wrap("resize"))?;
    Picture::new(width, height, target.into_vec())
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
