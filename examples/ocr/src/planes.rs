//! From bytes to what the networks take: numbers between -1 and 1, one plane per channel, blue first.

use crate::picture::Picture;
use crate::resize;

/// The number for each byte.
pub type Scale = [f32; 256];

/// As the detector was trained: rounded to single precision once, at the end.
pub fn detector_scale() -> Scale {
    std::array::from_fn(|byte| {
        let share = byte as f32 * (1.0 / 255.0);
        ((f64::from(share) - 0.5) / 0.5) as f32
    })
}

/// As the recogniser and the orientation classifier were trained: in single precision throughout.
pub fn reader_scale() -> Scale {
    std::array::from_fn(|byte| (byte as f32 / 255.0 - 0.5) / 0.5)
}

/// Writes a picture, resized to `width * height`, into three planes of `height` rows of `stride` numbers. What is right of
/// the picture stays as it is.
pub fn fill(picture: &Picture, (width, height): (usize, usize), stride: usize, scale: &Scale, planes: &mut [f32]) {
    let (blue, rest) = planes.split_at_mut(height * stride);
    let (green, red) = rest.split_at_mut(height * stride);
    resize::rows(picture, width, height, |y, row| {
        let place = y * stride..y * stride + width;
        let outputs = blue[place.clone()].iter_mut().zip(&mut green[place.clone()]).zip(&mut red[place]);
        for (pixel, ((blue, green), red)) in row.chunks_exact(3).zip(outputs) {
            *red = scale[usize::from(pixel[0])];
            *green = scale[usize::from(pixel[1])];
            *blue = scale[usize::from(pixel[2])];
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_blue_green_red_and_padded() {
        let picture = Picture { width: 2, height: 1, pixels: vec![255, 0, 51, 255, 0, 51] };
        let mut planes = vec![9.0; 9];
        fill(&picture, (2, 1), 3, &reader_scale(), &mut planes);
        let close = |value: f32, wanted: f32| (value - wanted).abs() < 1e-6;
        let wanted = [-0.6, -0.6, 9.0, -1.0, -1.0, 9.0, 1.0, 1.0, 9.0];
        assert!(planes.iter().zip(wanted).all(|(&value, wanted)| close(value, wanted)), "{planes:?}");
    }

    #[test]
    fn scales_span_minus_one_to_one() {
        for scale in [detector_scale(), reader_scale()] {
            assert_eq!((scale[0], scale[255]), (-1.0, 1.0));
            assert!(scale.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
