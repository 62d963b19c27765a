//! Vectors of 16 bytes: those of WebAssembly, and arrays that are tested elsewhere. They are read from memory as vectors;
//! an array that becomes one is put together byte by byte.

pub(crate) use these::{Bytes, Lanes, Pairs, bytes, pixels, rows, splat, weigh, weigh_rows};

/// The most bits of a weight behind the point: 8 are a colour's, and what lies beyond black and white is far less than
/// eight times as much.
pub(crate) const MOST_BITS: u32 = 21;

/// The first 16 bytes.
#[inline(always)]
pub(crate) fn load(bytes: &[u8]) -> Bytes {
    bytemuck::pod_read_unaligned(&bytes[..16])
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod these {
    use core::arch::wasm32::{
        i8x16, i8x16_shuffle, i8x16_swizzle, i16x8_extend_high_u8x16, i16x8_extend_low_u8x16, i16x8_shr, i32x4_add,
        i32x4_dot_i16x8, i32x4_mul, i32x4_shuffle, i32x4_splat, u8x16_narrow_i16x8, v128,
    };

    use super::MOST_BITS;

    /// Bytes.
    pub(crate) type Bytes = v128;
    /// Eight numbers, each two beside each other weighted together.
    pub(crate) type Pairs = v128;
    /// Four sums.
    pub(crate) type Lanes = v128;

    /// The number four times.
    #[inline(always)]
    pub(crate) fn splat(number: i32) -> Lanes {
        i32x4_splat(number)
    }

    /// Adds pairs of neighbours times pairs of weights.
    #[inline(always)]
    pub(crate) fn weigh(sum: Lanes, pairs: Pairs, weights: Lanes) -> Lanes {
        i32x4_add(sum, i32x4_dot_i16x8(pairs, weights))
    }

    /// Adds 16 bytes above each other times a pair of weights.
    #[inline(always)]
    pub(crate) fn weigh_rows(sums: &mut [Lanes; 4], upper: Bytes, lower: Bytes, weights: Lanes) {
        let left = i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(upper, lower);
        let right = i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(upper, lower);
        let add = |sum, pairs| i32x4_add(sum, i32x4_dot_i16x8(pairs, weights));
        sums[0] = add(sums[0], i16x8_extend_low_u8x16(left));
        sums[1] = add(sums[1], i16x8_extend_high_u8x16(left));
        sums[2] = add(sums[2], i16x8_extend_low_u8x16(right));
        sums[3] = add(sums[3], i16x8_extend_high_u8x16(right));
    }

    /// What is above the point, between 0 and 255.
    #[inline(always)]
    pub(crate) fn bytes(sums: [Lanes; 4], bits: u32) -> Bytes {
        // The upper half of each sum is taken as it lies there: narrowing would compare it with the ends of 16 bits, which
        // it is far from once 21 bits are behind the point.
        // Multiplied and not shifted: what a shift goes by is made ready anew for each.
        let scale = i32x4_splat(1 << (MOST_BITS - bits));
        let [a, b, c, d] = sums.map(|sum| i32x4_mul(sum, scale));
        let halves = |a, b| {
            let halves = i8x16_shuffle::<2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31>(a, b);
            i16x8_shr(halves, MOST_BITS - 16)
        };
        u8x16_narrow_i16x8(halves(a, b), halves(c, d))
    }

    /// Four columns of four pixels with a byte behind each, as rows of 12 bytes and anything.
    #[inline(always)]
    pub(crate) fn rows([a, b, c, d]: [Bytes; 4]) -> [Bytes; 4] {
        let (upper, lower) = (i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
        let (upper_right, lower_right) = (i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
        [
            i32x4_shuffle::<0, 1, 4, 5>(upper, upper_right),
            i32x4_shuffle::<2, 3, 6, 7>(upper, upper_right),
            i32x4_shuffle::<0, 1, 4, 5>(lower, lower_right),
            i32x4_shuffle::<2, 3, 6, 7>(lower, lower_right),
        ]
        .map(|row| i8x16_swizzle(row, i8x16(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 16, 16, 16)))
    }

    /// Four RGB pixels, the last four bytes left, as two pairs of neighbours: colour by colour, and then anything.
    #[inline(always)]
    pub(crate) fn pixels(bytes: Bytes) -> [Pairs; 2] {
        let pairs = i8x16_swizzle(bytes, i8x16(0, 3, 1, 4, 2, 5, 16, 16, 6, 9, 7, 10, 8, 11, 16, 16));
        [i16x8_extend_low_u8x16(pairs), i16x8_extend_high_u8x16(pairs)]
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod these {
    /// Bytes.
    pub(crate) type Bytes = [u8; 16];
    /// Eight numbers, each two beside each other weighted together.
    pub(crate) type Pairs = [i16; 8];
    /// Four sums.
    pub(crate) type Lanes = [i32; 4];

    /// The number four times.
    pub(crate) fn splat(number: i32) -> Lanes {
        [number; 4]
    }

    /// Adds pairs of neighbours times pairs of weights.
    pub(crate) fn weigh(sum: Lanes, pairs: Pairs, weights: Lanes) -> Lanes {
        std::array::from_fn(|lane| {
            let pair = [pairs[2 * lane], pairs[2 * lane + 1]].map(i32::from);
            sum[lane] + pair[0] * i32::from(weights[lane] as i16) + pair[1] * (weights[lane] >> 16)
        })
    }

    /// Adds 16 bytes above each other times a pair of weights.
    pub(crate) fn weigh_rows(sums: &mut [Lanes; 4], upper: Bytes, lower: Bytes, weights: Lanes) {
        for (quarter, sum) in sums.iter_mut().enumerate() {
            let pairs = std::array::from_fn(|i| [upper, lower][i % 2][4 * quarter + i / 2].into());
            *sum = weigh(*sum, pairs, weights);
        }
    }

    /// What is above the point, between 0 and 255.
    pub(crate) fn bytes(sums: [Lanes; 4], bits: u32) -> Bytes {
        std::array::from_fn(|i| (sums[i / 4][i % 4] >> bits).clamp(0, 255) as u8)
    }

    /// Four columns of four pixels with a byte behind each, as rows of 12 bytes and anything.
    pub(crate) fn rows(columns: [Bytes; 4]) -> [Bytes; 4] {
        std::array::from_fn(|row| std::array::from_fn(|i| columns[i.min(11) / 3][4 * row + i.min(11) % 3]))
    }

    /// Four RGB pixels, the last four bytes left, as two pairs of neighbours: colour by colour, and then anything.
    pub(crate) fn pixels(bytes: Bytes) -> [Pairs; 2] {
        [0, 6].map(|at| std::array::from_fn(|i| bytes[at + (i / 2).min(2) + 3 * (i % 2)].into()))
    }
}
