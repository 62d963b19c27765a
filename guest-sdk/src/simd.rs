//! The inner loops. Arithmetic is written over lanes, which the compiler turns into SIMD instructions on every target; what
//! it cannot find by itself, taking colours apart, is written with those of WebAssembly, beside a plain way for the others.

/// Values that are worked on together: more than a vector holds, since what a loop keeps in vectors goes to memory and back
/// at its head, where a guest can be interrupted.
const LANES: usize = 16;

/// Values that are added up in single precision; their sums are added up in double.
const STRETCH: usize = 4096;

/// Replaces each value by `e^(value - offset)` and returns the sum.
pub(crate) fn exp_in_place(values: &mut [f32], offset: f32) -> f32 {
    values.chunks_mut(STRETCH).map(|stretch| f64::from(exp_of_stretch(stretch, offset))).sum::<f64>() as f32
}

fn exp_of_stretch(values: &mut [f32], offset: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut blocks = values.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for (value, sum) in block.iter_mut().zip(&mut sums) {
            *value = exp(*value - offset);
            *sum += *value;
        }
    }
    let mut sum = sums.iter().sum();
    for value in blocks.into_remainder() {
        *value = exp(*value - offset);
        sum += *value;
    }
    sum
}

/// Multiplies each value.
pub(crate) fn scale_in_place(values: &mut [f32], factor: f32) {
    let mut blocks = values.chunks_exact_mut(2 * LANES);
    for block in &mut blocks {
        block.iter_mut().for_each(|value| *value *= factor);
    }
    blocks.into_remainder().iter_mut().for_each(|value| *value *= factor);
}

/// The largest value that is a number; negative infinity when there is none.
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let blocks = values.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (largest, &value) in largest.iter_mut().zip(block) {
            // What is not a number is not larger.
            *largest = if value > *largest { value } else { *largest };
        }
    }
    largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x` without branches, within 2 units of the last place (Cephes' polynomial). Below -87.3 it is 0.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.0);
    let whole = clamped * std::f32::consts::LOG2_E + ROUND - ROUND;
    // ln 2 in two parts, so that the difference stays exact.
    let rest = clamped - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4f32;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        sum = sum * rest + factor;
    }
    let fraction = sum * rest * rest + rest + 1.0;
    // `whole` lies between -126 and 127, so that the power of two is a normal number.
    let power = f32::from_bits(((whole as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { fraction * power }
}

/// Takes RGB pixels apart: `planes[c][i] = pixels[3 i + c] * scale[c] + bias[c]`. The planes are as long as there are
/// pixels.
pub(crate) fn planes(pixels: &[u8], scale: [f32; 3], bias: [f32; 3], planes: [&mut [f32]; 3]) {
    let [red, green, blue] = planes;
    let blocks = pixels.chunks_exact(48);
    let rest = blocks.remainder();
    let done = pixels.len() / 48 * 16;
    let outputs = red.chunks_exact_mut(16).zip(green.chunks_exact_mut(16)).zip(blue.chunks_exact_mut(16));
    for (block, ((red, green), blue)) in blocks.zip(outputs) {
        let channels = deinterleave(block);
        for ((output, channel), (scale, bias)) in
            [red, green, blue].into_iter().zip(channels).zip(scale.iter().zip(bias))
        {
            for (output, byte) in output.iter_mut().zip(channel) {
                *output = f32::from(byte) * scale + bias;
            }
        }
    }
    for (index, pixel) in rest.chunks_exact(3).enumerate() {
        red[done + index] = f32::from(pixel[0]) * scale[0] + bias[0];
        green[done + index] = f32::from(pixel[1]) * scale[1] + bias[1];
        blue[done + index] = f32::from(pixel[2]) * scale[2] + bias[2];
    }
}

/// Sixteen RGB pixels as sixteen reds, greens and blues.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
#[inline(always)]
fn deinterleave(block: &[u8]) -> [[u8; 16]; 3] {
    use core::arch::wasm32::{i8x16_shuffle, v128};
    let [a, b, c]: [v128; 3] = [0, 16, 32].map(|at| bytemuck::pod_read_unaligned(&block[at..at + 16]));
    let red = i8x16_shuffle::<0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0>(a, b);
    let red = i8x16_shuffle::<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29>(red, c);
    let green = i8x16_shuffle::<1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0>(a, b);
    let green = i8x16_shuffle::<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30>(green, c);
    let blue = i8x16_shuffle::<2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0>(a, b);
    let blue = i8x16_shuffle::<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31>(blue, c);
    [red, green, blue].map(bytemuck::cast)
}

/// Sixteen RGB pixels as sixteen reds, greens and blues.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
#[inline(always)]
fn deinterleave(block: &[u8]) -> [[u8; 16]; 3] {
    let mut channels = [[0; 16]; 3];
    for (index, pixel) in block.chunks_exact(3).enumerate() {
        for (channel, &byte) in channels.iter_mut().zip(pixel) {
            channel[index] = byte;
        }
    }
    channels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for step in -8_730..8_800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * 2.4e-7, "{x}: {} {exact}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-90.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_long_sum_is_as_good_as_a_short_one() {
        let mut values: Vec<f32> = (0..1_000_000).map(|i| (i % 97) as f32 / 97.0).collect();
        let exact: f64 = values.iter().map(|&value| f64::from(value).exp()).sum();
        let sum = f64::from(exp_in_place(&mut values, 0.0));
        assert!((sum - exact).abs() < exact * 1e-5, "{sum} {exact}");
    }

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for count in [1, 15, 16, 17, 40] {
            for place in 0..count {
                let mut values: Vec<f32> =
                    (0..count).map(|i| if i % 3 == 0 { f32::NAN } else { -(i as f32) }).collect();
                values[place] = 0.5;
                assert_eq!(max(&values), 0.5, "{count} {place}");
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::NAN; 20]), f32::NEG_INFINITY);
    }

    #[test]
    fn every_value_is_scaled() {
        for count in [0, 1, 31, 32, 33, 70] {
            let mut values: Vec<f32> = (0..count).map(|i| i as f32).collect();
            scale_in_place(&mut values, 0.5);
            assert!(values.iter().enumerate().all(|(i, &value)| value == i as f32 * 0.5));
        }
    }

    #[test]
    fn planes_hold_each_colour_in_order() {
        for count in [0, 1, 15, 16, 17, 48, 100] {
            let pixels: Vec<u8> = (0..3 * count).map(|i| (i * 7 % 256) as u8).collect();
            let mut outputs = [vec![0.0; count], vec![0.0; count], vec![0.0; count]];
            let [red, green, blue] = &mut outputs;
            planes(&pixels, [1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [red, green, blue]);
            for (index, pixel) in pixels.chunks_exact(3).enumerate() {
                let found = [outputs[0][index], outputs[1][index], outputs[2][index]];
                let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
                assert_eq!(found, [r, g * 2.0 + 1.0, b * 0.5 - 1.0]);
            }
        }
    }
}
