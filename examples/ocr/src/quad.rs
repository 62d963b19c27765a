//! Rectangles at any angle.

/// Corners: top left, top right, bottom right, bottom left.
pub type Quad = [[f32; 2]; 4];

/// The rectangle of the smallest area around points, with its corners in order, and the length of its shorter side.
///
/// It lies along one edge of the convex hull.
pub fn smallest_around(points: &[[i32; 2]]) -> (Quad, f32) {
    let hull = hull(points);
    let mut best: Option<(f64, [[f64; 2]; 4], f64)> = None;
    for (index, &from) in hull.iter().enumerate() {
        let to = hull[(index + 1) % hull.len()];
        let (corners, sides) = along(&hull, from, to);
        let area = sides[0] * sides[1];
        if best.is_none_or(|(smallest, ..)| area <= smallest) {
            best = Some((area, corners, sides[0].min(sides[1])));
        }
    }
    let (corners, side) = best.map_or(([[0.0; 2]; 4], 0.0), |(_, corners, side)| (corners, side));
    (in_order(corners.map(|point| point.map(|value| value as f32))), side as f32)
}

/// The rectangle around a hull that lies along one of its edges, and its sides.
fn along(hull: &[[i32; 2]], from: [i32; 2], to: [i32; 2]) -> ([[f64; 2]; 4], [f64; 2]) {
    let edge = [f64::from(to[0] - from[0]), f64::from(to[1] - from[1])];
    let length = edge[0].hypot(edge[1]);
    let unit = if length > 0.0 { [edge[0] / length, edge[1] / length] } else { [1.0, 0.0] };
    let mut span = [[f64::INFINITY, f64::NEG_INFINITY]; 2];
    for point in hull {
        let (x, y) = (f64::from(point[0]), f64::from(point[1]));
        let places = [x * unit[0] + y * unit[1], y * unit[0] - x * unit[1]];
        for (span, place) in span.iter_mut().zip(places) {
            *span = [span[0].min(place), span[1].max(place)];
        }
    }
    let corner = |u: f64, v: f64| [u * unit[0] - v * unit[1], u * unit[1] + v * unit[0]];
    let ([u0, u1], [v0, v1]) = (span[0], span[1]);
    ([corner(u0, v0), corner(u1, v0), corner(u1, v1), corner(u0, v1)], [u1 - u0, v1 - v0])
}

/// The convex hull, counter-clockwise as seen with rows growing upwards, without points on its edges.
fn hull(points: &[[i32; 2]]) -> Vec<[i32; 2]> {
    let mut sorted = points.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < 3 {
        return sorted;
    }
    let turn = |a: [i32; 2], b: [i32; 2], c: [i32; 2]| {
        i64::from(b[0] - a[0]) * i64::from(c[1] - a[1]) - i64::from(b[1] - a[1]) * i64::from(c[0] - a[0])
    };
    let chain = |points: &mut dyn Iterator<Item = [i32; 2]>| {
        let mut chain: Vec<[i32; 2]> = Vec::new();
        for point in points {
            while let [.., a, b] = chain[..]
                && turn(a, b, point) <= 0
            {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = chain(&mut sorted.iter().copied());
    hull.extend(chain(&mut sorted.iter().rev().copied()));
    hull
}

/// Top left, top right, bottom right, bottom left: the two leftmost points are the left ones.
pub fn in_order(mut corners: Quad) -> Quad {
    corners.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [a, b, c, d] = corners;
    let (top_left, bottom_left) = if b[1] > a[1] { (a, b) } else { (b, a) };
    let (top_right, bottom_right) = if d[1] > c[1] { (c, d) } else { (d, c) };
    [top_left, top_right, bottom_right, bottom_left]
}

/// The distance between two points.
pub fn distance(a: [f32; 2], b: [f32; 2]) -> f32 {
    let (x, y) = (a[0] - b[0], a[1] - b[1]);
    (x * x + y * y).sqrt()
}

/// The mean of a map (`width` numbers a row) inside a quad, its edges included.
pub fn mean_inside(map: &[f32], width: usize, quad: &Quad) -> f64 {
    let height = map.len() / width;
    let limit = |value: f32, size: usize| (value as i64).clamp(0, size as i64 - 1);
    let column = |pick: fn(f32, f32) -> f32, start: f32| quad.iter().fold(start, |found, point| pick(found, point[0]));
    let row = |pick: fn(f32, f32) -> f32, start: f32| quad.iter().fold(start, |found, point| pick(found, point[1]));
    let left = limit(column(f32::min, f32::INFINITY).floor(), width);
    let right = limit(column(f32::max, f32::NEG_INFINITY).ceil(), width);
    let top = limit(row(f32::min, f32::INFINITY).floor(), height);
    let bottom = limit(row(f32::max, f32::NEG_INFINITY).ceil(), height);
    // Whole pixels, counted from the corner of the region.
    let corners = quad.map(|[x, y]| [(x - left as f32) as i64, (y - top as f32) as i64]);
    let mut spans = vec![(i64::MAX, i64::MIN); (bottom - top + 1) as usize];
    for (index, &from) in corners.iter().enumerate() {
        widen(&mut spans, from, corners[(index + 1) % 4]);
    }
    let (mut sum, mut count) = (0.0, 0usize);
    for (y, &(from, to)) in spans.iter().enumerate() {
        let (from, to) = (from.max(0), to.min(right - left));
        if from <= to {
            let start = (top as usize + y) * width + left as usize;
            let values = &map[start + from as usize..=start + to as usize];
            sum += values.iter().map(|&value| f64::from(value)).sum::<f64>();
            count += values.len();
        }
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Widens the span of each row to hold the pixels of a line.
fn widen(spans: &mut [(i64, i64)], from: [i64; 2], to: [i64; 2]) {
    let [x, y] = [to[0] - from[0], to[1] - from[1]];
    let steps = x.abs().max(y.abs()).max(1);
    for step in 0..=steps {
        let at = |start: i64, way: i64| start + (way as f64 * step as f64 / steps as f64).round() as i64;
        if let Some(span) = usize::try_from(at(from[1], y)).ok().and_then(|row| spans.get_mut(row)) {
            let column = at(from[0], x);
            *span = (span.0.min(column), span.1.max(column));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &Quad, b: &Quad) -> bool {
        a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-3)
    }

    #[test]
    fn an_upright_rectangle_is_exact() {
        let points = [[1, 7], [9, 2], [1, 2], [9, 7], [4, 3], [5, 2]];
        let wanted = [[1.0, 2.0], [9.0, 2.0], [9.0, 7.0], [1.0, 7.0]];
        assert_eq!(smallest_around(&points), (wanted, 5.0));
    }

    #[test]
    fn a_tilted_rectangle() {
        let (quad, side) = smallest_around(&[[0, 10], [20, 0], [25, 10], [5, 20], [12, 10]]);
        assert!(close(&quad, &[[0.0, 10.0], [20.0, 0.0], [25.0, 10.0], [5.0, 20.0]]), "{quad:?}");
        assert!((side - 125f32.sqrt()).abs() < 1e-4);
    }

    #[test]
    fn the_smallest_of_all_angles() {
        // A triangle: the rectangle along its longest edge is the smallest.
        let (quad, _) = smallest_around(&[[0, 0], [40, 20], [12, 16]]);
        let area = distance(quad[0], quad[1]) * distance(quad[1], quad[2]);
        for degree in 0..180 {
            let unit = f64::from(degree).to_radians().sin_cos();
            let span = |values: [f64; 3]| {
                values.iter().copied().fold(f64::MIN, f64::max) - values.iter().copied().fold(f64::MAX, f64::min)
            };
            let points = [[0.0, 0.0], [40.0, 20.0], [12.0, 16.0]];
            let wide = span(points.map(|[x, y]| x * unit.1 + y * unit.0));
            let high = span(points.map(|[x, y]| y * unit.1 - x * unit.0));
            assert!(f64::from(area) <= wide * high + 1e-3);
        }
    }

    #[test]
    fn points_on_one_line_have_no_height() {
        assert_eq!(smallest_around(&[[3, 3], [5, 5], [9, 9]]).1, 0.0);
        assert_eq!(smallest_around(&[[3, 3]]).1, 0.0);
        assert_eq!(smallest_around(&[]).1, 0.0);
    }

    #[test]
    fn corners_come_in_order() {
        let wanted = [[0.0, 1.0], [8.0, 0.0], [9.0, 5.0], [1.0, 6.0]];
        for turn in 0..4 {
            let mut corners = wanted;
            corners.rotate_left(turn);
            assert_eq!(in_order(corners), wanted);
        }
    }

    #[test]
    fn the_mean_counts_the_edges() {
        let map: Vec<f32> = (0..20).map(|i| if i % 5 < 3 && i / 5 < 2 { 1.0 } else { 0.0 }).collect();
        let quad = |x0: f32, y0: f32, x1: f32, y1: f32| [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
        assert_eq!(mean_inside(&map, 5, &quad(0.0, 0.0, 2.0, 1.0)), 1.0);
        assert_eq!(mean_inside(&map, 5, &quad(0.0, 0.0, 4.0, 1.0)), 0.6);
        assert_eq!(mean_inside(&map, 5, &quad(-3.0, -3.0, 90.0, 90.0)), 0.3);
    }
}
