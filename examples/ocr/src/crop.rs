//! Cutting a line out of a picture: the quad becomes a rectangle, with bicubic interpolation as OpenCV's.

use crate::picture::Picture;
use crate::quad::{self, Quad};

/// A line that is this many times as high as wide runs downwards, and is turned.
const UPRIGHT: f64 = 1.5;

/// The part of a picture inside a quad, as an upright line of text.
pub fn upright(picture: &Picture, quad: &Quad) -> Picture {
    let [top_left, top_right, bottom_right, bottom_left] = *quad;
    let side = |a: f32, b: f32| (a.max(b) as usize).max(1);
    let width = side(quad::distance(top_left, top_right), quad::distance(bottom_right, bottom_left));
    let height = side(quad::distance(top_left, bottom_left), quad::distance(top_right, bottom_right));
    let straight = top_left[0] == bottom_left[0]
        && top_right[0] == bottom_right[0]
        && top_left[1] == top_right[1]
        && bottom_left[1] == bottom_right[1];
    let crop = if straight {
        copied(picture, top_left.map(|value| value as usize), width, height)
    } else {
        warped(picture, quad, width, height)
    };
    if height as f64 / width as f64 >= UPRIGHT { crop.turned_left() } else { crop }
}

fn copied(picture: &Picture, [left, top]: [usize; 2], width: usize, height: usize) -> Picture {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in top..top + height {
        pixels.extend_from_slice(&picture.row(y)[left * 3..][..width * 3]);
    }
    Picture { width, height, pixels }
}

/// Maps `[0, 1] x [0, 1]` onto a quad, as a camera would see it.
struct Perspective {
    /// Rows: the numerators of x and y, and their common denominator, of `u`, `v` and 1.
    rows: [[f64; 3]; 3],
}

impl Perspective {
    fn onto(quad: &Quad) -> Perspective {
        let [[x0, y0], [x1, y1], [x2, y2], [x3, y3]] = quad.map(|point| point.map(f64::from));
        let (right, left) = ([x1 - x2, y1 - y2], [x3 - x2, y3 - y2]);
        let skew = [x0 - x1 + x2 - x3, y0 - y1 + y2 - y3];
        let determinant = right[0] * left[1] - left[0] * right[1];
        let g = (skew[0] * left[1] - skew[1] * left[0]) / determinant;
        let h = (right[0] * skew[1] - right[1] * skew[0]) / determinant;
        let (g, h) = if determinant == 0.0 { (0.0, 0.0) } else { (g, h) };
        Perspective {
            rows: [[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1.0]],
        }
    }

    fn at(&self, u: f64, v: f64) -> [f32; 2] {
        let [x, y, depth] = self.rows.map(|row| row[0] * u + row[1] * v + row[2]);
        [(x / depth) as f32, (y / depth) as f32]
    }
}

fn warped(picture: &Picture, quad: &Quad, width: usize, height: usize) -> Picture {
    let perspective = Perspective::onto(quad);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let v = y as f64 / height as f64;
        for x in 0..width {
            pixels.extend_from_slice(&sample(picture, perspective.at(x as f64 / width as f64, v)));
        }
    }
    Picture { width, height, pixels }
}

/// The weights of four neighbours for a place between the second and the third.
fn cubic(fraction: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let outer = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let inner = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let (first, second, third) = (outer(fraction + 1.0), inner(fraction), inner(1.0 - fraction));
    [first, second, third, 1.0 - first - second - third]
}

/// The colour at a place between pixels. Beyond its edges a picture goes on as it ends.
fn sample(picture: &Picture, [x, y]: [f32; 2]) -> [u8; 3] {
    let (column, row) = (x.floor(), y.floor());
    let (across, down) = (cubic(x - column), cubic(y - row));
    let clamp =
        |place: f32, offset: usize, size: usize| (place as i32 - 1 + offset as i32).clamp(0, size as i32 - 1) as usize;
    let columns: [usize; 4] = std::array::from_fn(|offset| clamp(column, offset, picture.width) * 3);
    let mut sum = [0.0f32; 3];
    for (offset, weight) in down.into_iter().enumerate() {
        let pixels = picture.row(clamp(row, offset, picture.height));
        for (&column, across) in columns.iter().zip(across) {
            let pixel = &pixels[column..column + 3];
            for (sum, &value) in sum.iter_mut().zip(pixel) {
                *sum += f32::from(value) * across * weight;
            }
        }
    }
    sum.map(|value| value.round_ties_even() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grey that grows to the right and downwards.
    fn ramp(width: usize, height: usize) -> Picture {
        let pixels = (0..width * height).flat_map(|i| [(4 * (i % width) + 2 * (i / width)) as u8; 3]).collect();
        Picture { width, height, pixels }
    }

    fn greys(picture: &Picture) -> Vec<u8> {
        picture.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn an_upright_quad_is_copied() {
        let quad = [[2.0, 1.0], [5.0, 1.0], [5.0, 3.0], [2.0, 3.0]];
        assert_eq!(greys(&upright(&ramp(9, 9), &quad)), [10, 14, 18, 12, 16, 20]);
        assert_eq!(greys(&warped(&ramp(9, 9), &quad, 3, 2)), [10, 14, 18, 12, 16, 20]);
    }

    #[test]
    fn a_tilted_quad_is_straightened() {
        // A square turned by an eighth: sides of length sqrt(200).
        let quad = [[10.0, 20.0], [20.0, 10.0], [30.0, 20.0], [20.0, 30.0]];
        let crop = upright(&ramp(40, 40), &quad);
        assert_eq!((crop.width, crop.height), (14, 14));
        for (x, y) in [(0, 0), (7, 0), (0, 7), (7, 7), (13, 13)] {
            let (u, v) = (x as f32 / 14.0, y as f32 / 14.0);
            let place = [10.0 + 10.0 * (u + v), 20.0 + 10.0 * (v - u)];
            let wanted = 4.0 * place[0] + 2.0 * place[1];
            assert!((f32::from(greys(&crop)[y * 14 + x]) - wanted).abs() <= 1.0, "{x} {y}");
        }
    }

    /// Answers of `cv2.getPerspectiveTransform` and `cv2.warpPerspective` of OpenCV 5.0.
    #[test]
    fn equals_opencv() {
        let value = |x: usize, y: usize| ((x * 37 + y * 91 + x * y * 13) % 256) as u8;
        let pixels = (0..12 * 16).flat_map(|i| [value(i % 16, i / 16); 3]).collect();
        let picture = Picture { width: 16, height: 12, pixels };
        let crop = upright(&picture, &[[2.0, 3.0], [11.0, 1.0], [13.0, 6.0], [3.0, 9.0]]);
        assert_eq!((crop.width, crop.height), (10, 6));
        let wanted = [
            169, 228, 110, 232, 83, 90, 189, 197, 68, 80, 33, 165, 106, 127, 207, 32, 127, 254, 105, 53, 183, 189, 152,
            46, 185, 124, 82, 176, 10, 59, 59, 189, 159, 107, 102, 194, 84, 189, 169, 75, 189, 208, 139, 199, 73, 234,
            119, 174, 127, 65, 179, 37, 249, 130, 200, 160, 62, 167, 12, 97,
        ];
        assert!(greys(&crop).iter().zip(wanted).all(|(&ours, theirs)| ours.abs_diff(theirs) <= 1));
    }

    #[test]
    fn a_high_quad_is_turned() {
        let quad = [[0.0, 0.0], [2.0, 0.0], [2.0, 3.0], [0.0, 3.0]];
        let crop = upright(&ramp(5, 5), &quad);
        assert_eq!((crop.width, crop.height, greys(&crop)), (3, 2, vec![4, 6, 8, 0, 2, 4]));
    }
}
