//! What is done with scores: softmax, the largest values.

use std::cmp::Ordering;

/// Turns scores into probabilities, in place; the sum is 1.
///
/// ```
/// let mut scores = [0.0f32, 0.0, 1.0f32.ln() + 2.0f32.ln()];
/// windrose_guest::numeric::softmax(&mut scores);
/// assert!((scores[2] - 0.5).abs() < 1e-6);
/// ```
pub fn softmax(scores: &mut [f32]) {
    let largest = max(scores);
    let sum = crate::simd::exp_in_place(scores, largest);
    crate::simd::scale_in_place(scores, 1.0 / sum);
}

/// The largest value; negative infinity when there is none. Values that are not numbers are passed over.
pub fn max(values: &[f32]) -> f32 {
    crate::simd::max(values)
}

/// The place of the largest value, the first of equals.
///
/// ```
/// assert_eq!(windrose_guest::numeric::argmax(&[0.1, 0.7, 0.7]), Some(1));
/// assert_eq!(windrose_guest::numeric::argmax(&[]), None);
/// ```
pub fn argmax(values: &[f32]) -> Option<usize> {
    let largest = max(values);
    values.iter().position(|&value| value == largest)
}

/// The places and values of the `k` largest values, largest first; of equals, the first first.
///
/// ```
/// let best = windrose_guest::numeric::top_k(&[0.1, 0.6, 0.3], 2);
/// assert_eq!(best, [(1, 0.6), (2, 0.3)]);
/// ```
pub fn top_k(values: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = values.iter().copied().enumerate().filter(|(_, value)| !value.is_nan()).collect();
    // Not by `total_cmp`, to which the two zeros are not equal.
    let order =
        |a: &(usize, f32), b: &(usize, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    if k < best.len() {
        best.select_nth_unstable_by(k, order);
        best.truncate(k);
    }
    best.sort_unstable_by(order);
    best
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Scales a vector to length 1, in place, as sentence embeddings are; one of only zeros stays.
///
/// ```
/// let mut vector = [3.0f32, 4.0];
/// windrose_guest::numeric::l2_normalize(&mut vector);
/// assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6);
/// ```
pub fn l2_normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
    for value in vector {
        *value /= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_equals_its_definition_in_double_precision() {
        for count in [1, 3, 4, 7, 8, 64, 1001] {
            let scores: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.31).collect();
            let exact: Vec<f64> = scores.iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = exact.iter().sum();
            let mut ours = scores.clone();
            softmax(&mut ours);
            for (ours, exact) in ours.iter().zip(&exact) {
                assert!((f64::from(*ours) - exact / sum).abs() <= 1e-6 * (exact / sum) + 1e-12);
            }
        }
    }

    #[test]
    fn softmax_of_large_scores_does_not_overflow() {
        let mut scores = [1e30f32, 1e30, -1e30, f32::NEG_INFINITY];
        softmax(&mut scores);
        assert_eq!(scores, [0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn the_first_of_equals_is_the_best_whatever_the_sign_of_zero() {
        for values in [[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0], [-1.0, -0.0, 0.0], [f32::NAN, -0.0, 0.0]] {
            assert_eq!(argmax(&values), top_k(&values, 1).first().map(|best| best.0), "{values:?}");
        }
        assert_eq!(top_k(&[-0.0, 0.0, 1.0], 3).iter().map(|best| best.0).collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[test]
    fn top_k_equals_a_full_sort() {
        let values: Vec<f32> = (0..200).map(|i| (i * 7919 % 83) as f32).collect();
        let mut sorted: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for k in [0, 1, 5, 199, 200, 300] {
            assert_eq!(top_k(&values, k), sorted[..k.min(200)]);
        }
    }
}
