//! Borders of the regions of a bitmap (Suzuki and Abe, 1985): outer borders and those of holes.

/// A point of the bitmap: column, row.
pub type Point = [i32; 2];

/// On a border that was followed.
const SEEN: i8 = 2;
/// On a border that was followed, with background to the right: no hole starts here again.
const RIGHT_EDGE: i8 = -2;

/// Columns and rows of the eight neighbours, counter-clockwise (rows grow downwards), from the right one on.
const NEIGHBOURS: [Point; 8] = [[1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1]];

/// A bitmap with a frame of background around it.
pub struct Bitmap {
    /// Columns with the frame.
    stride: usize,
    height: usize,
    cells: Vec<i8>,
}

impl Bitmap {
    /// An empty bitmap.
    pub fn new(width: usize, height: usize) -> Bitmap {
        Bitmap { stride: width + 2, height, cells: vec![0; (width + 2) * (height + 2)] }
    }

    /// Marks a pixel as foreground.
    pub fn set(&mut self, x: usize, y: usize) {
        let cell = self.cell(x, y);
        self.cells[cell] = 1;
    }

    fn cell(&self, x: usize, y: usize) -> usize {
        (y + 1) * self.stride + x + 1
    }

    /// Follows every border and returns the points where each changes direction, the last border found first (which is
    /// OpenCV's order). Uses the bitmap up.
    pub fn borders(mut self) -> Vec<Vec<Point>> {
        let offsets = self.offsets();
        let mut borders = Vec::new();
        for y in 0..self.height {
            let start = (y + 1) * self.stride;
            let mut before = 0;
            for x in 1..self.stride {
                let here = self.cells[start + x];
                if here == before {
                    continue;
                }
                let outer = before == 0 && here == 1;
                let hole = here == 0 && before >= 1;
                if outer || hole {
                    let column = x - usize::from(hole);
                    let origin = [column as i32 - 1, y as i32];
                    borders.push(self.follow(start + column, origin, hole, &offsets));
                }
                before = self.cells[start + x];
            }
        }
        borders.reverse();
        borders
    }

    /// The neighbours as distances between cells.
    fn offsets(&self) -> [isize; 8] {
        NEIGHBOURS.map(|[x, y]| y as isize * self.stride as isize + x as isize)
    }

    /// Follows one border from its first cell around and marks it.
    fn follow(&mut self, first: usize, origin: Point, hole: bool, offsets: &[isize; 8]) -> Vec<Point> {
        let neighbour = |cell: usize, direction: usize| cell.wrapping_add_signed(offsets[direction & 7]);
        let from = if hole { 0 } else { 4 };
        // Clockwise to the cell from which the border will be closed.
        let Some(mut direction) =
            (1..8).map(|turn| (from + 8 - turn) & 7).find(|&d| self.cells[neighbour(first, d)] != 0)
        else {
            self.cells[first] = RIGHT_EDGE;
            return vec![origin];
        };
        let last = neighbour(first, direction);
        let mut last_direction = direction ^ 4;
        let (mut cell, mut point) = (first, origin);
        let mut points = Vec::new();
        loop {
            let came_from = direction;
            // Counter-clockwise to the next cell; there is one, the one that we came from.
            let turned = (came_from + 1..came_from + 9).find(|&d| self.cells[neighbour(cell, d)] != 0);
            direction = turned.unwrap_or(came_from) & 7;
            if direction.wrapping_sub(1) < came_from {
                self.cells[cell] = RIGHT_EDGE;
            } else if self.cells[cell] == 1 {
                self.cells[cell] = SEEN;
            }
            if direction != last_direction {
                points.push(point);
                last_direction = direction;
            }
            let next = neighbour(cell, direction);
            if next == first && cell == last {
                return points;
            }
            point = [point[0] + NEIGHBOURS[direction][0], point[1] + NEIGHBOURS[direction][1]];
            cell = next;
            direction = (direction + 4) & 7;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borders(picture: &[&str]) -> Vec<Vec<Point>> {
        let mut bitmap = Bitmap::new(picture[0].len(), picture.len());
        for (y, row) in picture.iter().enumerate() {
            for x in row.bytes().enumerate().filter(|(_, byte)| *byte == b'#').map(|(x, _)| x) {
                bitmap.set(x, y);
            }
        }
        bitmap.borders()
    }

    #[test]
    fn a_rectangle_has_four_corners() {
        assert_eq!(borders(&["    ", " ## ", " ## "]), [vec![[1, 1], [1, 2], [2, 2], [2, 1]]]);
    }

    #[test]
    fn a_pixel_and_a_line() {
        assert_eq!(borders(&["#  ##"]), [vec![[3, 0], [4, 0]], vec![[0, 0]]]);
        assert_eq!(borders(&[""]), Vec::<Vec<Point>>::new());
    }

    #[test]
    fn the_whole_bitmap_and_nothing() {
        assert_eq!(borders(&["###", "###"]), [vec![[0, 0], [0, 1], [2, 1], [2, 0]]]);
        assert!(borders(&["   ", "   "]).is_empty());
    }

    /// Answers of `cv2.findContours` with `RETR_LIST` and `CHAIN_APPROX_SIMPLE`.
    #[test]
    fn a_ring_with_an_island_has_three_borders() {
        let found = borders(&["#######", "#     #", "#  #  #", "#     #", "#######"]);
        assert_eq!(
            found,
            [
                vec![[3, 2]],
                vec![[0, 1], [1, 0], [5, 0], [6, 1], [6, 3], [5, 4], [1, 4], [0, 3]],
                vec![[0, 0], [0, 4], [6, 4], [6, 0]]
            ]
        );
    }

    #[test]
    fn diagonal_neighbours_are_one_region() {
        assert_eq!(borders(&["# #", " # ", "# #"]).len(), 1);
    }
}
