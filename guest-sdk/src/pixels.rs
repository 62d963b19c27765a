//! Pictures as pixels, and as the numbers that a net wants.

use crate::{Error, Result, Tensor};

/// A picture: red, green and blue of each pixel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture of these pixels.
    ///
    /// # Errors
    /// When there are not `3 * width * height` bytes.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Picture> {
        if width.checked_mul(height).and_then(|count| count.checked_mul(3)) != Some(pixels.len()) {
            return Err(Error::internal(format!("{} bytes are no picture of {width} x {height}", pixels.len())));
        }
        Ok(Picture { width, height, pixels })
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, `3 * width * height`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, taken.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The part of a picture from (`x`, `y`) on.
    ///
    /// # Errors
    /// When it reaches beyond the picture.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<Picture> {
        let inside = |start: usize, length: usize, whole| start.checked_add(length).is_some_and(|end| end <= whole);
        if !inside(x, width, self.width) || !inside(y, height, self.height) {
            return Err(Error::internal(format!(
                "{width} x {height} at ({x}, {y}) is not inside {} x {}",
                self.width, self.height
            )));
        }
        let rows = (y..y + height).map(|row| &self.pixels[3 * (row * self.width + x)..][..3 * width]);
        Ok(Picture { width, height, pixels: rows.collect::<Vec<_>>().concat() })
    }
}

/// How bytes become numbers: `(value / 255 - mean) / deviation` for each colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    scale: [f32; 3],
    bias: [f32; 3],
}

impl Normalize {
    /// From 0 to 1.
    pub const UNIT: Normalize = Normalize { scale: [1.0 / 255.0; 3], bias: [0.0; 3] };
    /// From -1 to 1.
    pub const SIGNED: Normalize = Normalize { scale: [2.0 / 255.0; 3], bias: [-1.0; 3] };

    /// With the mean and the deviation of each colour, on the scale from 0 to 1.
    pub fn new(mean: [f32; 3], deviation: [f32; 3]) -> Normalize {
        Normalize {
            scale: deviation.map(|deviation| 1.0 / (255.0 * deviation)),
            bias: [0, 1, 2].map(|colour| -mean[colour] / deviation[colour]),
        }
    }

    /// As nets trained on ImageNet want it.
    pub fn imagenet() -> Normalize {
        Normalize::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    }

    /// One plane for each colour: red, green, blue (CHW). `3 * width * height` numbers.
    ///
    /// ```
    /// use windrose_guest::pixels::{Normalize, Picture};
    /// let picture = Picture::new(2, 1, vec![255, 0, 0, 0, 255, 255])?;
    /// assert_eq!(Normalize::UNIT.planes(&picture), [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
    /// # Ok::<(), windrose_guest::Error>(())
    /// ```
    pub fn planes(&self, picture: &Picture) -> Vec<f32> {
        self.planes_of(picture, [0, 1, 2])
    }

    /// The same with the planes in the order blue, green, red; the mean and the deviation stay those of their colours.
    pub fn planes_bgr(&self, picture: &Picture) -> Vec<f32> {
        self.planes_of(picture, [2, 1, 0])
    }

    /// One tensor `[1, 3, height, width]` of the planes.
    ///
    /// # Errors
    /// None but those of [`Tensor::new`].
    pub fn tensor(&self, picture: &Picture) -> Result<Tensor> {
        Tensor::new(&[1, 3, picture.height, picture.width], &self.planes(picture))
    }

    /// Pixel by pixel (HWC). `3 * width * height` numbers.
    pub fn interleaved(&self, picture: &Picture) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(picture.pixels.len());
        for pixel in picture.pixels.chunks_exact(3) {
            let colour = |index: usize| f32::from(pixel[index]) * self.scale[index] + self.bias[index];
            numbers.extend_from_slice(&[colour(0), colour(1), colour(2)]);
        }
        numbers
    }

    /// `places[c]` is where the plane of colour `c` goes.
    fn planes_of(&self, picture: &Picture, places: [usize; 3]) -> Vec<f32> {
        let count = picture.width * picture.height;
        let mut numbers = vec![0.0; 3 * count];
        if count > 0 {
            let mut chunks = numbers.chunks_exact_mut(count);
            let mut planes = [chunks.next(), chunks.next(), chunks.next()].map(Option::unwrap_or_default);
            planes.swap(0, places[0]);
            crate::simd::planes(&picture.pixels, self.scale, self.bias, planes);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Picture {
        Picture::new(width, height, (0..3 * width * height).map(|i| (i * 31 % 256) as u8).collect()).unwrap()
    }

    #[test]
    fn planes_equal_the_definition() {
        let (mean, deviation) = ([0.485f32, 0.456, 0.406], [0.229f32, 0.224, 0.225]);
        let picture = picture(37, 5);
        let (rgb, bgr) = (Normalize::imagenet().planes(&picture), Normalize::imagenet().planes_bgr(&picture));
        let flat = Normalize::imagenet().interleaved(&picture);
        let count = 37 * 5;
        for (index, &byte) in picture.pixels().iter().enumerate() {
            let (pixel, colour) = (index / 3, index % 3);
            let exact = (f32::from(byte) / 255.0 - mean[colour]) / deviation[colour];
            assert!((rgb[colour * count + pixel] - exact).abs() < 1e-6);
            assert_eq!(rgb[colour * count + pixel], bgr[(2 - colour) * count + pixel]);
            assert_eq!(rgb[colour * count + pixel], flat[index]);
        }
    }

    #[test]
    fn a_part_is_cut_out() {
        let whole = picture(8, 6);
        let part = whole.crop(2, 3, 4, 2).unwrap();
        assert_eq!(part.pixels()[..12], whole.pixels()[3 * (3 * 8 + 2)..][..12]);
        assert_eq!(part.pixels()[12..], whole.pixels()[3 * (4 * 8 + 2)..][..12]);
        assert!(whole.crop(5, 0, 4, 1).is_err());
        assert!(whole.crop(usize::MAX, 0, 4, 1).is_err());
    }

    #[test]
    fn an_empty_picture_has_no_numbers() {
        assert!(Normalize::UNIT.planes(&Picture::new(0, 4, vec![]).unwrap()).is_empty());
        assert!(Picture::new(2, 2, vec![0; 11]).is_err());
    }
}
