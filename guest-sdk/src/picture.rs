//! Decoding of JPEG, PNG and WebP.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use crate::pixels::Picture;
use crate::{Error, Result};

/// The most pixels that [`decode`] accepts: 64 million, 192 MB.
pub const MOST_PIXELS: u64 = 64_000_000;

/// Decodes a JPEG, PNG or WebP, turned upright as its EXIF data says. Transparency is dropped, grey becomes RGB.
///
/// ```
/// # let mut png = std::io::Cursor::new(Vec::new());
/// # image::RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3])).write_to(&mut png, image::ImageFormat::Png).unwrap();
/// # let bytes = png.into_inner();
/// let picture = windrose_guest::picture::decode(&bytes)?;
/// assert_eq!((picture.width(), picture.height()), (3, 2));
/// assert_eq!(picture.pixels()[..3], [1, 2, 3]);
/// assert!(windrose_guest::picture::decode(b"not a picture").unwrap_err().is_invalid_input());
/// # Ok::<(), windrose_guest::Error>(())
/// ```
///
/// # Errors
/// The caller's fault, when the bytes are no such picture, are cut off, or hold more than [`MOST_PIXELS`].
pub fn decode(bytes: &[u8]) -> Result<Picture> {
    let (image, orientation) = read(bytes).map_err(|error| Error::invalid_input(format!("picture: {error}")))?;
    let mut image = DynamicImage::ImageRgb8(image.into_rgb8());
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Picture::new(image.width() as usize, image.height() as usize, image.into_raw())
}

fn read(bytes: &[u8]) -> Result<(DynamicImage, Orientation), ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    // What a decoder may allocate besides: enough for the largest picture in 16 bits and with transparency.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_PIXELS * 8);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let kind = image::error::LimitErrorKind::DimensionError;
        return Err(ImageError::Limits(image::error::LimitError::from_kind(kind)));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder)?, orientation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgba, RgbaImage};

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let image = RgbaImage::from_fn(40, 30, |x, y| Rgba([(x * 6) as u8, (y * 8) as u8, 128, 255]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::ImageRgba8(image).into_rgb8().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_format_is_read() {
        for (format, tolerance) in [(ImageFormat::Png, 0), (ImageFormat::WebP, 0), (ImageFormat::Jpeg, 24)] {
            let picture = decode(&encoded(format)).unwrap();
            assert_eq!((picture.width(), picture.height()), (40, 30));
            let pixel = &picture.pixels()[3 * (10 * 40 + 20)..][..3];
            for (found, wanted) in pixel.iter().zip([120u8, 80, 128]) {
                assert!(found.abs_diff(wanted) <= tolerance, "{format:?}: {pixel:?}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_the_callers_fault() {
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encoded(format);
            assert!(decode(&bytes[..bytes.len() / 2]).unwrap_err().is_invalid_input());
        }
        assert!(decode(b"").unwrap_err().is_invalid_input());
    }

    #[test]
    fn a_small_file_of_a_huge_picture_is_refused() {
        // The head of a PNG of 65,000 x 65,000 pixels.
        let mut bytes = encoded(ImageFormat::Png);
        bytes[16..20].copy_from_slice(&65_000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&65_000u32.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(decode(&bytes).unwrap_err().is_invalid_input());
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        })
    }
}
