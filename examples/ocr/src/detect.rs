//! Where the lines of text are: the detector's map of text pixels, made into quads (differentiable binarisation).

use windrose_guest::{Error, Graph, Result, Tensor};

use crate::contour::Bitmap;
use crate::picture::Picture;
use crate::planes;
use crate::quad::{self, Quad};
use crate::resize;
use crate::unclip;

/// The detector wants both sides as multiples of this.
const STEP: usize = 32;
/// A picture with a longer side is shrunk.
const LONGEST_SIDE: usize = 2000;
/// A picture with a shorter side is enlarged.
const SHORTEST_SIDE: usize = 30;
/// A picture that is wider than this many heights gets black rows above and below.
const WIDEST: f64 = 8.0;
/// The detector's input has no shorter side.
const DETECTOR_SIDE: usize = 736;
/// The most pixels of the detector's input; only a very long, narrow picture asks for more.
const MOST_DETECTOR_PIXELS: usize = 8 << 20;

/// From this probability on a pixel is text.
const TEXT: f32 = 0.3;
/// A quad's mean probability must reach this.
const BOX: f64 = 0.5;
/// The most borders that are looked at.
const MOST_BORDERS: usize = 1000;
/// Sides in pixels of the smallest quad, before and after it is grown.
const SMALLEST: (f32, f32) = (3.0, 5.0);
/// How far quads are grown: the network marks only the middle of a line.
const GROWTH: f64 = 1.6;
/// Quads whose top left corners differ by less, in pixels, are in one row.
const ROW: f32 = 10.0;

/// What [`frame`] did to a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Original width and height over the new ones, without the added rows.
    ratio: [f32; 2],
    /// Rows added above.
    rows: usize,
}

impl Frame {
    /// Where a point was in the original picture.
    pub fn original(&self, [x, y]: [f32; 2], width: f32, height: f32) -> [f32; 2] {
        [(x * self.ratio[0]).clamp(0.0, width), ((y - self.rows as f32) * self.ratio[1]).clamp(0.0, height)]
    }
}

/// Brings a picture to a size that the detector can work with.
pub fn frame(picture: Picture) -> (Picture, Frame) {
    let (width, height) = (picture.width, picture.height);
    let (long, short) = (width.max(height), width.min(height));
    let scaled = if long > LONGEST_SIDE {
        Some(LONGEST_SIDE as f64 / long as f64)
    } else if short < SHORTEST_SIDE {
        Some(SHORTEST_SIDE as f64 / short as f64)
    } else {
        None
    };
    let mut ratio = [1.0; 2];
    let mut picture = picture;
    if let Some(scale) = scaled {
        let (new_width, new_height) = (stepped(width, scale), stepped(height, scale));
        picture = resize::resized(&picture, new_width, new_height);
        ratio = [(width as f64 / new_width as f64) as f32, (height as f64 / new_height as f64) as f32];
    }
    let (width, height) = (picture.width, picture.height);
    let mut rows = 0;
    if height <= SHORTEST_SIDE || width as f64 / height as f64 > WIDEST {
        let wanted = ((width as f64 / WIDEST) as usize).max(SHORTEST_SIDE) * 2;
        rows = wanted.abs_diff(height) / 2;
        picture = picture.padded(rows);
    }
    (picture, Frame { ratio, rows })
}

/// A scaled length as the next multiple of [`STEP`], halves to even ones.
fn stepped(length: usize, scale: f64) -> usize {
    let scaled = (length as f64 * scale).floor();
    ((scaled / STEP as f64).round_ties_even() as usize).max(1) * STEP
}

/// The lines of text as quads in pixels of `picture`, in reading order.
pub fn lines(picture: &Picture) -> Result<Vec<Quad>> {
    let short = picture.width.min(picture.height);
    let scale = if short < DETECTOR_SIDE { DETECTOR_SIDE as f64 / short as f64 } else { 1.0 };
    let (width, height) = (stepped(picture.width, scale), stepped(picture.height, scale));
    if width * height > MOST_DETECTOR_PIXELS {
        let (width, height) = (picture.width, picture.height);
        return Err(Error::invalid_input(format!("{width} x {height} pixels are too long and narrow")));
    }
    let mut values = vec![0.0f32; 3 * height * width];
    planes::fill(picture, (width, height), width, &planes::detector_scale(), &mut values);
    let input = Tensor::new(&[1, 3, height, width], &values)?;
    drop(values);
    let map = Graph::by_name("detect")?.compute([("x", input)])?.only()?;
    if map.shape() != [1, 1, height, width] {
        return Err(Error::internal(format!("the detector's map is {:?}", map.shape())));
    }
    let map = map.read::<f32>()?;
    Ok(in_rows(quads(&map, (width, height), (picture.width, picture.height))))
}

/// The quads of a map, in pixels of a picture of another size.
fn quads(map: &[f32], (width, height): (usize, usize), picture: (usize, usize)) -> Vec<Quad> {
    let mut found = Vec::new();
    for border in bitmap(map, width, height).borders().into_iter().take(MOST_BORDERS) {
        let (quad, side) = quad::smallest_around(&border);
        if side < SMALLEST.0 || quad::mean_inside(map, width, &quad) < BOX {
            continue;
        }
        let (quad, side) = quad::smallest_around(&unclip::grown(&quad, GROWTH));
        if side < SMALLEST.1 {
            continue;
        }
        let scale = |value: f32, from: usize, to: usize| {
            (value / from as f32 * to as f32).round_ties_even().clamp(0.0, to as f32)
        };
        let scaled = quad.map(|[x, y]| [scale(x, width, picture.0), scale(y, height, picture.1)]);
        let (right, bottom) = (picture.0 as f32 - 1.0, picture.1 as f32 - 1.0);
        let quad = quad::in_order(scaled).map(|[x, y]| [x.min(right), y.min(bottom)]);
        let (wide, high) = (quad::distance(quad[0], quad[1]), quad::distance(quad[0], quad[3]));
        if wide >= 4.0 && high >= 4.0 {
            found.push(quad);
        }
    }
    found
}

/// The pixels that are text, each with its neighbours right of and below it, which closes hairline gaps.
fn bitmap(map: &[f32], width: usize, height: usize) -> Bitmap {
    let mut bitmap = Bitmap::new(width, height);
    for (y, row) in map.chunks_exact(width).enumerate() {
        for (x, _) in row.iter().enumerate().filter(|(_, value)| **value > TEXT) {
            for (x, y) in [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)] {
                if x < width && y < height {
                    bitmap.set(x, y);
                }
            }
        }
    }
    bitmap
}

/// Sorts quads by rows from top to bottom, and in a row from left to right.
fn in_rows(mut quads: Vec<Quad>) -> Vec<Quad> {
    quads.sort_by(|a, b| a[0][1].total_cmp(&b[0][1]));
    for row in quads.chunk_by_mut(|above, below| below[0][1] - above[0][1] < ROW) {
        row.sort_by(|a, b| a[0][0].total_cmp(&b[0][0]));
    }
    quads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upright(x0: f32, y0: f32, x1: f32, y1: f32) -> Quad {
        [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    }

    #[test]
    fn a_block_of_text_pixels_becomes_a_grown_quad() {
        let mut map = vec![0.0f32; 64 * 32];
        for y in 10..19 {
            map[y * 64 + 8..y * 64 + 47].fill(0.9);
        }
        // 8..=47 by 10..=19 after closing gaps: area 351, circumference 96, grown by 5.85.
        assert_eq!(quads(&map, (64, 32), (64, 32)), [upright(2.0, 4.0, 53.0, 25.0)]);
        assert_eq!(quads(&map, (64, 32), (128, 32)), [upright(4.0, 4.0, 106.0, 25.0)]);
    }

    #[test]
    fn faint_and_tiny_blocks_are_no_text() {
        let mut map = vec![0.0f32; 64 * 32];
        for y in 10..19 {
            map[y * 64 + 8..y * 64 + 47].fill(0.4);
        }
        map[0] = 1.0;
        assert!(quads(&map, (64, 32), (64, 32)).is_empty());
    }

    #[test]
    fn lines_are_read_by_rows() {
        let quad = |x: f32, y: f32| upright(x, y, x + 10.0, y + 10.0);
        let sorted = in_rows(vec![quad(50.0, 31.0), quad(90.0, 0.0), quad(5.0, 9.0), quad(5.0, 35.0)]);
        assert_eq!(sorted, [quad(5.0, 9.0), quad(90.0, 0.0), quad(5.0, 35.0), quad(50.0, 31.0)]);
    }

    #[test]
    fn a_large_picture_shrinks_and_points_go_back() {
        let (picture, frame) = frame(Picture::black(4000, 3000));
        assert_eq!((picture.width, picture.height), (1984, 1504));
        assert_eq!(frame.original([1984.0, 1504.0], 4000.0, 3000.0), [4000.0, 3000.0]);
    }

    #[test]
    fn a_flat_picture_gets_rows() {
        let (picture, frame) = frame(Picture::black(900, 40));
        assert_eq!((picture.width, picture.height, frame.rows), (900, 224, 92));
        assert_eq!(frame.original([10.0, 112.0], 900.0, 40.0), [10.0, 20.0]);
        assert_eq!(frame.original([10.0, 50.0], 900.0, 40.0), [10.0, 0.0]);
    }

    #[test]
    fn a_tiny_picture_grows() {
        let (picture, frame) = frame(Picture::black(20, 10));
        assert_eq!((picture.width, picture.height, frame.rows), (64, 32, 0));
    }
}
