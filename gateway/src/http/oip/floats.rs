//! The usual elements of an FP32 tensor in JSON, a vector register at a time.
//!
//! A number of at most 15 characters without an exponent, with a comma behind it, is taken in one piece: it is told from
//! anything else by masks over its characters, its digits are moved together by one shuffle, and one division scales
//! them. There is no branch on what the number is, so that numbers of different lengths and signs cost the same. Whatever
//! else a text holds is left to [`super::number`], which is what this must agree with.

/// Reads numbers from `pos` on into the end of `values`, `most` at most, as long as they are of the usual form. Returns the
/// offset behind the comma of the last one.
#[cfg(target_arch = "x86_64")]
pub(super) fn read(bytes: &[u8], pos: usize, most: usize, values: &mut Vec<f32>) -> usize {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
        #[expect(unsafe_code, reason = "the processor has been asked")]
        // SAFETY: it has every feature that the function is compiled for.
        return unsafe { vector::read(bytes, pos, most, values) };
    }
    pos
}

/// Other processors read all numbers one character run at a time.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn read(_: &[u8], pos: usize, _: usize, _: &mut Vec<f32>) -> usize {
    pos
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::*;

    /// Characters that are looked at at once.
    const WIDTH: usize = 16;

    /// Powers of ten that an `f64` holds exactly.
    const POWERS: [f64; WIDTH] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

    /// Where each of sixteen digits comes from, for a number of so many characters whose point is so far from its start, or
    /// as far as it is long where it has none. What is no digit becomes a zero in front.
    static MOVES: [[[u8; WIDTH]; WIDTH]; WIDTH] = moves();

    const fn moves() -> [[[u8; WIDTH]; WIDTH]; WIDTH] {
        let mut moves = [[[0x80; WIDTH]; WIDTH]; WIDTH];
        let mut length = 0;
        while length < WIDTH {
            let mut point = 0;
            while point <= length {
                // From the last character to the first.
                let (mut from, mut to) = (length, WIDTH);
                while from > 0 {
                    from -= 1;
                    if from != point {
                        to -= 1;
                        moves[length][point][to] = from as u8;
                    }
                }
                point += 1;
            }
            length += 1;
        }
        moves
    }

    /// As [`super::read`], on a processor that has these features.
    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub(super) fn read(bytes: &[u8], mut pos: usize, most: usize, values: &mut Vec<f32>) -> usize {
        for _ in 0..most {
            let Some(text) = bytes.get(pos..).and_then(|rest| rest.first_chunk()) else { break };
            let text = load(text);
            let length = equal(text, b',').trailing_zeros();
            if length as usize >= WIDTH {
                break;
            }
            let digits = _mm_sub_epi8(text, _mm_set1_epi8(b'0' as i8));
            let is_digit = _mm_cmpeq_epi8(_mm_min_epu8(digits, _mm_set1_epi8(9)), digits);
            let is_zero = bits(_mm_cmpeq_epi8(digits, _mm_setzero_si128()));
            let digits = _mm_and_si128(digits, is_digit);
            let is_digit = bits(is_digit);
            // What most writers put behind a comma, and a sign.
            let space = equal(text, b' ') & 1;
            let minus = equal(text, b'-') & (1 + space);
            let negative = u32::from(minus != 0);
            let point = (equal(text, b'.') | 1 << length).trailing_zeros();
            // All characters have their place; the first one that is not a sign and the last are digits, and a zero is not
            // followed by another digit there.
            let known = is_digit | 1 << point | minus | space;
            let first = is_digit & !(is_zero & is_digit >> 1);
            let ends = first >> (space + negative) & is_digit >> (length.wrapping_sub(1) & 31) & 1;
            if _bzhi_u32(!known, length) | (ends ^ 1) != 0 {
                break;
            }
            let mantissa = number(_mm_shuffle_epi8(digits, load(&MOVES[length as usize][point as usize % WIDTH])));
            let places = (length - point).saturating_sub(1);
            // Both are exact, so that the quotient is rounded once. It is no subnormal number and within the range.
            let quotient = mantissa as f64 / POWERS[places as usize % WIDTH];
            // Next to the middle between two singles, a second rounding might go the wrong way.
            if (quotient.to_bits() as u32 & 0x1FFF_FFFF).wrapping_sub((1 << 28) - 4) <= 8 {
                break;
            }
            values.push(f32::from_bits((quotient as f32).to_bits() ^ negative << 31));
            pos += length as usize + 1;
        }
        pos
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; WIDTH]) -> __m128i {
        let both = u128::from_le_bytes(*bytes);
        _mm_set_epi64x((both >> 64) as i64, both as i64)
    }

    /// A bit for each byte: whether all of its bits are set, or none.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits(bytes: __m128i) -> u32 {
        _mm_movemask_epi8(bytes) as u32
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn equal(text: __m128i, character: u8) -> u32 {
        bits(_mm_cmpeq_epi8(text, _mm_set1_epi8(character as i8)))
    }

    /// The number of sixteen digits, the first one first.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn number(digits: __m128i) -> u64 {
        let pairs = _mm_maddubs_epi16(digits, _mm_set1_epi16(0x010A));
        let fours = _mm_madd_epi16(pairs, _mm_set1_epi32(0x0001_0064));
        let fours = _mm_packus_epi32(fours, fours);
        let eights = _mm_cvtsi128_si64(_mm_madd_epi16(fours, _mm_set1_epi32(0x0001_2710))) as u64;
        (eights & 0xFFFF_FFFF) * 100_000_000 + (eights >> 32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::number::Number;
    use super::*;

    /// What is read from a text: the numbers, and what of the text is left.
    fn quick(text: &str, most: usize) -> (Vec<f32>, &str) {
        let mut values = vec![0.5];
        let end = read(text.as_bytes(), 0, most, &mut values);
        assert_eq!(values.remove(0), 0.5);
        (values, &text[end..])
    }

    /// The first number of `text,` where it is of the usual form; it is the same wherever it stands.
    fn one(text: &str) -> Option<f32> {
        let padded = format!("{text},1,2,3,4,5,6,7,8");
        let (values, left) = quick(&padded, 1);
        let (spaced, _) = quick(&format!(" {padded}"), 1);
        let longest = text.len() < 15;
        assert!(!longest || values == spaced, "{text}");
        assert_eq!(left, if values.is_empty() { &padded } else { &padded[text.len() + 1..] });
        values.first().copied()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn usual_numbers_are_read_and_others_left() {
        for text in ["0", "-0", "7", "-12", "0.5", "-0.12345678", "12345678.25", "0.0001", "123456789012345", "1.0"] {
            let value = one(text).map(f32::to_bits);
            assert_eq!(value, Some(text.parse::<f32>().unwrap().to_bits()), "{text}");
        }
        let others =
            ["", " ", "-", ".", ".5", "5.", "-.5", "01", "-01", "00", "1e3", "+1", "1.2.3", "--1", "1-", "1 2", "1 "];
        for text in
            others.into_iter().chain(["NaN", "null", "[1", "1]", "]", "\"1\"", "0x1", "1/2", "1:", "\n1", "  1"])
        {
            assert_eq!(one(text), None, "{text:?}");
        }
        assert_eq!(one("1234567890123456"), None, "too long");
        assert_eq!(one("16777217"), None, "in the middle between two singles");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_more_are_read_than_wanted_or_have_room_behind_them() {
        let text = "1,2, 3,-4,5.5,6,7,8,9,10,11,12,13,14,15]";
        assert_eq!(quick(text, 3), (vec![1.0, 2.0, 3.0], "-4,5.5,6,7,8,9,10,11,12,13,14,15]"));
        let (values, left) = quick(text, 100);
        assert!(values.len() > 8 && left.len() < 16 && left.ends_with(",15]"), "{values:?} {left}");
        assert_eq!(quick(text, 0), (vec![], text));
        assert_eq!(quick("1,2]", 100), (vec![], "1,2]"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn any_decimal_is_what_the_other_reader_makes_of_it(text in "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,12})?") {
            let (exact, end) = f32::read(text.as_bytes(), 0).unwrap();
            prop_assert_eq!(end, text.len());
            if let Some(value) = one(&text) {
                prop_assert_eq!(value.to_bits(), exact.to_bits());
            } else if cfg!(target_arch = "x86_64") {
                let middle = f64::from(exact) != text.parse::<f64>().unwrap();
                prop_assert!(text.len() > 15 || middle);
            }
        }

        /// Characters in any order: what is taken, the other reader takes as well, to the same end.
        #[test]
        fn nothing_is_taken_that_is_no_number(text in "[-0-9., eE+]{0,40}") {
            let padded = format!("{text},0,0,0,0,0,0,0,0");
            let (values, left) = quick(&padded, usize::MAX);
            let mut pos = 0;
            for value in values {
                pos += usize::from(padded.as_bytes()[pos] == b' ');
                let (exact, end) = f32::read(padded.as_bytes(), pos).unwrap();
                prop_assert_eq!(value.to_bits(), exact.to_bits());
                prop_assert_eq!(padded.as_bytes()[end], b',');
                pos = end + 1;
            }
            prop_assert_eq!(&padded[pos..], left);
        }
    }
}
