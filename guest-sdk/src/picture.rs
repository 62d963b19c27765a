//! Decoding of JPEG, PNG and WebP.

use std::io::Cursor;

use image::error::{DecodingError, ImageFormatHint};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

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

/// Whether a JPEG file ends before its end marker. Whatever follows the marker does not count.
///
/// The decoder of crate `image` makes a picture of such a file, with grey where nothing came; [`decode`] refuses it.
pub fn is_cut_off(jpeg: &[u8]) -> bool {
    let mut rest = jpeg;
    while let Some(at) = rest.iter().position(|&byte| byte == 0xff) {
        rest = &rest[at + 1..];
        let length = match rest {
            [0xd9, ..] => return false,
            // Another fill byte, whose turn is next.
            [0xff, ..] => 0,
            // 0xff in the data of a scan, and markers that stand alone.
            [0x00 | 0x01 | 0xd0..=0xd8, ..] => 1,
            // Segments say how long they are. A small picture in one of them has an end marker of its own.
            [_, high, low, ..] => 1 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return true,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    true
}

fn read(bytes: &[u8]) -> Result<(DynamicImage, Orientation), ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    if reader.format() == Some(ImageFormat::Jpeg) && is_cut_off(bytes) {
        let hint = ImageFormatHint::Exact(ImageFormat::Jpeg);
        return Err(ImageError::Decoding(DecodingError::new(hint, "it is cut off: its end marker is missing")));
    }
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
    use image::{Rgba, RgbaImage};

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
    fn a_jpeg_is_whole_with_its_end_marker_and_cut_off_without() {
        let whole = encoded(ImageFormat::Jpeg);
        for length in whole.len() / 2..whole.len() {
            let refused = decode(&whole[..length]).unwrap_err();
            assert!(refused.is_invalid_input() && refused.to_string().contains("cut off"), "{length}: {refused}");
        }
        let picture = decode(&whole).unwrap();
        for more in [b"\0\0".as_slice(), b"\xff", b"anything"] {
            assert_eq!(decode(&[&whole, more].concat()).unwrap().pixels(), picture.pixels());
        }
        // Fill bytes may stand in front of a marker.
        let (data, end) = whole.split_at(whole.len() - 2);
        assert!(decode(&[data, b"\xff\xff", end].concat()).is_ok());
    }

    #[test]
    fn the_end_of_a_small_picture_within_is_not_the_end() {
        let whole = encoded(ImageFormat::Jpeg);
        let mut segment = vec![0xff, 0xe1];
        segment.extend_from_slice(&(2 + whole.len() as u16).to_be_bytes());
        segment.extend_from_slice(&whole);
        let with_small = [&whole[..2], &segment, &whole[2..]].concat();
        assert_eq!(decode(&with_small).unwrap().pixels(), decode(&whole).unwrap().pixels());
        assert!(decode(&with_small[..with_small.len() - 2]).unwrap_err().is_invalid_input());
        assert!(is_cut_off(&with_small[..segment.len() - 10]));
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
