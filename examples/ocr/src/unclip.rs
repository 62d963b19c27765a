//! Growing a quad by a distance, with round corners, on whole pixels: the Clipper library's offset of a convex polygon.

use std::f64::consts::PI;

use crate::quad::Quad;

/// How far the straight pieces of a round corner may be from the circle, in pixels.
const ARC_TOLERANCE: f64 = 0.25;

/// The outline of `quad`, grown by `ratio` times its area over its circumference. Empty when the quad has no area.
pub fn grown(quad: &Quad, ratio: f64) -> Vec<[i32; 2]> {
    let distance = ratio * area(quad) / circumference(quad);
    if !distance.is_finite() || distance <= 0.0 {
        return Vec::new();
    }
    // Whole pixels, towards zero.
    let mut corners: Vec<[f64; 2]> = quad.iter().map(|point| point.map(|value| f64::from(value).trunc())).collect();
    corners.dedup();
    if corners.len() > 1 && corners.first() == corners.last() {
        corners.pop();
    }
    if corners.len() < 3 {
        return Vec::new();
    }
    offset(&corners, distance)
}

fn area(quad: &Quad) -> f64 {
    let twice: f64 = edges(quad).map(|([x0, y0], [x1, y1])| x0 * y1 - x1 * y0).sum();
    twice.abs() / 2.0
}

fn circumference(quad: &Quad) -> f64 {
    edges(quad).map(|([x0, y0], [x1, y1])| (x1 - x0).hypot(y1 - y0)).sum()
}

fn edges(quad: &Quad) -> impl Iterator<Item = ([f64; 2], [f64; 2])> + '_ {
    let point = |index: usize| quad[index % 4].map(f64::from);
    (0..4).map(move |index| (point(index), point(index + 1)))
}

/// Offsets a polygon whose corners run clockwise as seen on the screen.
fn offset(corners: &[[f64; 2]], distance: f64) -> Vec<[i32; 2]> {
    let tolerance = ARC_TOLERANCE.min(distance * ARC_TOLERANCE);
    let circle = (PI / (1.0 - tolerance / distance).acos()).min(distance * PI);
    let (sine, cosine) = (2.0 * PI / circle).sin_cos();
    let next = |index: usize| corners[(index + 1) % corners.len()];
    let normals: Vec<[f64; 2]> = corners.iter().enumerate().map(|(index, &from)| normal(from, next(index))).collect();
    let mut outline = Vec::new();
    for (index, &corner) in corners.iter().enumerate() {
        let before = normals[(index + corners.len() - 1) % corners.len()];
        let after = normals[index];
        let cross = before[0] * after[1] - after[0] * before[1];
        let dot = before[0] * after[0] + before[1] * after[1];
        let mut push =
            |[x, y]: [f64; 2]| outline.push([away(corner[0] + x * distance), away(corner[1] + y * distance)]);
        if (cross * distance).abs() < 1.0 && dot > 0.0 {
            push(before);
            continue;
        }
        let angle = cross.clamp(-1.0, 1.0).atan2(dot);
        let steps = ((circle / (2.0 * PI) * angle.abs()).round() as usize).max(1);
        let mut arm = before;
        for _ in 0..steps {
            push(arm);
            arm = [arm[0] * cosine - arm[1] * sine, arm[0] * sine + arm[1] * cosine];
        }
        push(after);
    }
    outline
}

/// The unit vector that points out of an edge.
fn normal(from: [f64; 2], to: [f64; 2]) -> [f64; 2] {
    let (x, y) = (to[0] - from[0], to[1] - from[1]);
    let length = x.hypot(y);
    [y / length, -x / length]
}

/// To the nearest whole number, halves away from zero.
fn away(value: f64) -> i32 {
    value.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quad;

    /// Answers of `pyclipper` 1.4 with `JT_ROUND` and `ET_CLOSEDPOLYGON`, as sets of points.
    #[test]
    fn equals_clipper() {
        let sorted = |quad: &Quad| {
            let mut outline = grown(quad, 1.6);
            outline.sort_unstable();
            outline.dedup();
            outline
        };
        assert_eq!(
            sorted(&[[10.0, 20.0], [90.7, 20.0], [90.7, 44.2], [10.0, 44.2]]),
            [
                [-5, 20],
                [-5, 44],
                [-4, 15],
                [-3, 51],
                [-1, 10],
                [0, 55],
                [3, 7],
                [5, 58],
                [10, 5],
                [10, 59],
                [90, 5],
                [90, 59],
                [95, 6],
                [97, 57],
                [100, 9],
                [101, 54],
                [103, 13],
                [104, 49],
                [105, 20],
                [105, 44]
            ]
        );
        assert_eq!(
            sorted(&[[12.5, 40.25], [80.0, 8.5], [88.75, 27.0], [21.3, 59.0]]),
            [
                [-1, 41],
                [0, 36],
                [0, 46],
                [2, 31],
                [7, 28],
                [9, 65],
                [12, 69],
                [17, 71],
                [22, 72],
                [27, 71],
                [75, -4],
                [79, -5],
                [84, -4],
                [89, -2],
                [92, 3],
                [94, 39],
                [97, 36],
                [100, 22],
                [100, 32],
                [101, 27]
            ]
        );
        assert_eq!(
            sorted(&[[3.0, 3.0], [8.0, 3.0], [8.0, 7.0], [3.0, 7.0]]),
            [[1, 3], [1, 7], [3, 1], [3, 9], [8, 1], [8, 9], [10, 3], [10, 7]]
        );
    }

    #[test]
    fn an_upright_box_grows_by_the_distance_on_all_sides() {
        // Area 1000, circumference 140: 1.4 * 1000 / 140 = 10.
        let outline = grown(&[[20.0, 30.0], [70.0, 30.0], [70.0, 50.0], [20.0, 50.0]], 1.4);
        let (around, _) = quad::smallest_around(&outline);
        assert_eq!(around, [[10.0, 20.0], [80.0, 20.0], [80.0, 60.0], [10.0, 60.0]]);
    }

    #[test]
    fn what_has_no_area_grows_to_nothing() {
        assert!(grown(&[[5.0, 5.0]; 4], 1.6).is_empty());
        assert!(grown(&[[1.0, 1.0], [9.0, 1.0], [9.0, 1.0], [1.0, 1.0]], 1.6).is_empty());
        assert!(grown(&[[1.0, 1.0], [1.4, 1.0], [1.4, 1.4], [1.0, 1.4]], 1.6).is_empty());
    }
}
