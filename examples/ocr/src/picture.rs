//! Pictures: decoding, and the few turns that the pipeline needs.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use windrose_guest::picture::is_cut_off;

/// The most pixels of a picture: 6000 x 4000, as a camera makes them.
const MOST_PIXELS: u64 = 24_000_000;

/// Eight bits per channel: red, green, blue, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Decodes a JPEG, PNG or WebP file and turns it as its EXIF tag says.
    ///
    /// # Errors
    /// When it is none, cut off or too large; the message is for the caller.
    pub fn decode(file: &[u8]) -> Result<Picture, String> {
        let mut reader =
            ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|error| error.to_string())?;
        match reader.format() {
            None => return Err("neither a JPEG nor a PNG nor a WebP file".to_owned()),
            Some(ImageFormat::Jpeg) if is_cut_off(file) => {
                return Err("the JPEG file is cut off: its end marker is missing".to_owned());
            }
            Some(_) => {}
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(MOST_PIXELS * 8);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MOST_PIXELS {
            return Err(format!("{width} x {height} pixels are more than {MOST_PIXELS}"));
        }
        let orientation = decoder.orientation().map_err(|error| error.to_string())?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
        image.apply_orientation(orientation);
        Ok(opaque(image))
    }

    /// A picture of one colour.
    pub fn black(width: usize, height: usize) -> Picture {
        Picture { width, height, pixels: vec![0; width * height * 3] }
    }

    /// One row.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.width * 3..][..self.width * 3]
    }

    /// The picture with black rows above and below.
    pub fn padded(self, rows: usize) -> Picture {
        let mut padded = Picture::black(self.width, self.height + 2 * rows);
        padded.pixels[rows * self.width * 3..][..self.pixels.len()].copy_from_slice(&self.pixels);
        padded
    }

    /// Turned upside down.
    pub fn turned_over(&self) -> Picture {
        let mut turned =
            Picture { width: self.width, height: self.height, pixels: Vec::with_capacity(self.pixels.len()) };
        for pixel in self.pixels.chunks_exact(3).rev() {
            turned.pixels.extend_from_slice(pixel);
        }
        turned
    }

    /// Turned by a quarter to the left.
    pub fn turned_left(&self) -> Picture {
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for x in (0..self.width).rev() {
            for y in 0..self.height {
                pixels.extend_from_slice(&self.row(y)[x * 3..x * 3 + 3]);
            }
        }
        Picture { width: self.height, height: self.width, pixels }
    }
}

/// Without transparency. What shines through is chosen as the reference does: white behind grey, and behind colours
/// black or white, whichever stands out more.
fn opaque(image: DynamicImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let colour = image.color();
    let pixels = match (colour.has_alpha(), colour.has_color()) {
        (false, _) => image.into_rgb8().into_raw(),
        (true, false) => {
            image.into_luma_alpha8().chunks_exact(2).flat_map(|pixel| over_white(pixel[0], pixel[1])).collect()
        }
        (true, true) => over_contrast(&image.into_rgba8().into_raw()),
    };
    Picture { width, height, pixels }
}

/// Grey with its transparency added as brightness; invisible grey counts as black first.
fn over_white(grey: u8, alpha: u8) -> [u8; 3] {
    let visible = if alpha == 0 { 0 } else { grey };
    [visible.saturating_add(255 - alpha); 3]
}

fn over_contrast(rgba: &[u8]) -> Vec<u8> {
    let (mut brightness, mut visible) = (0.0, 0u32);
    for pixel in rgba.chunks_exact(4).filter(|pixel| pixel[3] > 0) {
        brightness += 0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2]);
        visible += 1;
    }
    let paper = if visible == 0 || brightness / f64::from(visible) < 128.0 { 255.0f32 } else { 0.0 };
    let blend = |value: u8, alpha: f32| (f32::from(value) * alpha + paper * (1.0 - alpha)) as u8;
    let mut pixels = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = f32::from(pixel[3]) / 255.0;
        pixels.extend_from_slice(&[blend(pixel[0], alpha), blend(pixel[1], alpha), blend(pixel[2], alpha)]);
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbaImage;

    fn numbered(width: usize, height: usize) -> Picture {
        Picture { width, height, pixels: (0..width * height).flat_map(|i| [i as u8; 3]).collect() }
    }

    fn png(image: &DynamicImage) -> Vec<u8> {
        encoded(image, ImageFormat::Png)
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    #[test]
    fn turns() {
        let left: Vec<u8> = numbered(3, 2).turned_left().pixels.chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(left, [2, 5, 1, 4, 0, 3]);
        let over: Vec<u8> = numbered(3, 2).turned_over().pixels.chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(over, [5, 4, 3, 2, 1, 0]);
        let four = (0..4).fold(numbered(3, 2), |picture, _| picture.turned_left());
        assert_eq!(four, numbered(3, 2));
    }

    #[test]
    fn dark_text_on_nothing_gets_white_paper_and_bright_text_black() {
        for (ink, paper) in [(10, 255), (240, 0)] {
            let mut image = RgbaImage::new(2, 1);
            image.put_pixel(0, 0, image::Rgba([ink, ink, ink, 255]));
            let picture = Picture::decode(&png(&image.into())).unwrap();
            assert_eq!(picture.pixels, [ink, ink, ink, paper, paper, paper]);
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        assert!(Picture::decode(b"hello").unwrap_err().contains("neither"));
        assert!(Picture::decode(b"").is_err());
        let file = png(&DynamicImage::new_rgb8(9, 9));
        assert!(Picture::decode(&file[..file.len() / 2]).is_err());
        let file = encoded(&DynamicImage::new_rgb8(90, 90), ImageFormat::Jpeg);
        assert!(Picture::decode(&file).is_ok());
        assert!(Picture::decode(&file[..file.len() - 2]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn a_huge_picture_is_refused_by_its_header() {
        let mut file = png(&DynamicImage::new_luma8(1, 1));
        // Width and height of the IHDR chunk, and its checksum.
        file[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let reason = Picture::decode(&file).unwrap_err();
        assert!(reason.contains("more than") || reason.contains("CRC") || reason.contains("limit"), "{reason}");
    }
}
