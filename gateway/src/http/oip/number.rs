//! JSON numbers, straight from their text to the element that they become.
//!
//! Digits are read eight at a time. Where mantissa and power of ten are exact in an `f64`, one multiplication or
//! division gives the correctly rounded result; `lexical-core` decides the rest.

use windrose_engine::Element;

use super::floats;

/// Why a text is not the number that an element wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberFault {
    /// Not a JSON number.
    Syntax,
    /// NaN, or too large for the type to be finite.
    NotFinite,
    /// A fraction or an exponent where an integer is wanted.
    NotAnInteger,
    /// An integer that the type does not hold.
    OutOfRange,
}

/// An element that JSON has a number for.
pub(super) trait Number: Element {
    /// Reads the number at `pos`; returns it and the offset behind it.
    fn read(bytes: &[u8], pos: usize) -> Result<(Self, usize), NumberFault>;

    /// Appends numbers from `pos` on, `most` at most, as long as each has a comma behind it and there is a way to read it that
    /// is quicker than [`Number::read`]. Returns the offset behind the last one's comma, or `pos`.
    #[inline]
    fn read_usual(_: &[u8], pos: usize, _most: usize, _values: &mut Vec<Self>) -> usize {
        pos
    }
}

/// A number's parts: `mantissa * 10^exponent`, exact when `digits` is at most 19.
struct Parts {
    negative: bool,
    mantissa: u64,
    /// Digits of the mantissa, leading zeros included.
    digits: usize,
    exponent: i64,
    /// Whether there is neither fraction nor exponent.
    integer: bool,
    end: usize,
}

/// Powers of ten that an `f64` holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Powers of ten for a run of up to eight digits.
const RUN: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// The offset behind the number at `pos`.
pub(super) fn end(bytes: &[u8], pos: usize) -> Result<usize, NumberFault> {
    parts(bytes, pos).map(|p| p.end)
}

/// The number in `text`, which is one whole number: an integer where it is one that fits.
pub(super) fn integer_or_float(text: &[u8]) -> Result<Result<i64, f64>, NumberFault> {
    match <i64 as Number>::read(text, 0) {
        Ok((value, _)) => Ok(Ok(value)),
        Err(NumberFault::NotAnInteger | NumberFault::OutOfRange) => Ok(Err(<f64 as Number>::read(text, 0)?.0)),
        Err(other) => Err(other),
    }
}

#[inline]
fn parts(bytes: &[u8], start: usize) -> Result<Parts, NumberFault> {
    let negative = bytes.get(start) == Some(&b'-');
    let first = start + usize::from(negative);
    let Some(digit @ b'0'..=b'9') = bytes.get(first) else {
        return Err(not_a_number(bytes, first));
    };
    let mut mantissa = u64::from(digit - b'0');
    let mut pos = first + 1;
    if let Some(b'0'..=b'9') = bytes.get(pos) {
        pos = digits(bytes, pos, &mut mantissa);
    }
    let mut count = pos - first;
    if count > 1 && bytes[first] == b'0' {
        return Err(NumberFault::Syntax);
    }
    let mut exponent = 0;
    let mut integer = true;
    if bytes.get(pos) == Some(&b'.') {
        let fraction = pos + 1;
        pos = digits(bytes, fraction, &mut mantissa);
        if pos == fraction {
            return Err(NumberFault::Syntax);
        }
        exponent = -((pos - fraction) as i64);
        count += pos - fraction;
        integer = false;
    }
    if let Some(b'e' | b'E') = bytes.get(pos) {
        let (power, after) = power(bytes, pos + 1)?;
        exponent += power;
        pos = after;
        integer = false;
    }
    Ok(Parts { negative, mantissa, digits: count, exponent, integer, end: pos })
}

/// The fault of what stands where a digit must: `NaN` and `Infinity` are what other writers put for what JSON lacks.
#[cold]
fn not_a_number(bytes: &[u8], pos: usize) -> NumberFault {
    match bytes.get(pos) {
        Some(b'N' | b'I') => NumberFault::NotFinite,
        Some(b'n') if bytes[pos..].starts_with(b"nan") => NumberFault::NotFinite,
        Some(b'i') => NumberFault::NotFinite,
        _ => NumberFault::Syntax,
    }
}

/// The digits of an exponent with their sign, saturated far beyond every type.
fn power(bytes: &[u8], start: usize) -> Result<(i64, usize), NumberFault> {
    let sign = matches!(bytes.get(start), Some(b'+' | b'-'));
    let mut pos = start + usize::from(sign);
    let first = pos;
    let mut power: i64 = 0;
    while let Some(digit @ b'0'..=b'9') = bytes.get(pos) {
        power = (power * 10 + i64::from(digit - b'0')).min(1_000_000_000);
        pos += 1;
    }
    if pos == first {
        return Err(NumberFault::Syntax);
    }
    Ok((if bytes[start] == b'-' { -power } else { power }, pos))
}

/// Appends the run of digits at `pos` to `mantissa`, which wraps beyond 19 digits; returns the offset behind the run.
#[inline]
fn digits(bytes: &[u8], mut pos: usize, mantissa: &mut u64) -> usize {
    while let Some(chunk) = bytes.get(pos..).and_then(|rest| rest.first_chunk::<8>()) {
        let values = u64::from_le_bytes(*chunk) ^ 0x3030_3030_3030_3030;
        // The high bit of each byte that is over 9. A carry only reaches bytes behind the first such.
        let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
        let run = (others.trailing_zeros() / 8) as usize;
        if run == 0 {
            return pos;
        }
        let run = run.min(8);
        // Shifted so that the digits stand last, behind zeros.
        let aligned = values << (64 - 8 * run);
        *mantissa = mantissa.wrapping_mul(RUN[run]).wrapping_add(eight_digits(aligned));
        pos += run;
        if run < 8 {
            return pos;
        }
    }
    while let Some(digit @ b'0'..=b'9') = bytes.get(pos) {
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        pos += 1;
    }
    pos
}

/// The number of eight digit values, the first in the lowest byte.
#[inline]
fn eight_digits(values: u64) -> u64 {
    const MASK: u64 = 0x0000_00FF_0000_00FF;
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let high = (pairs & MASK).wrapping_mul(0x000F_4240_0000_0064);
    let low = ((pairs >> 16) & MASK).wrapping_mul(0x0000_2710_0000_0001);
    high.wrapping_add(low) >> 32 & 0xFFFF_FFFF
}

/// `mantissa * 10^exponent` with at most two roundings, where tables allow it.
#[inline]
fn scale(parts: &Parts) -> Option<f64> {
    if parts.digits > 19 {
        return None;
    }
    let mantissa = parts.mantissa as f64;
    match parts.exponent {
        0 => Some(mantissa),
        -22..0 => Some(mantissa / POWERS[(-parts.exponent) as usize]),
        1..=22 => Some(mantissa * POWERS[parts.exponent as usize]),
        _ => None,
    }
}

impl Number for f32 {
    #[inline]
    fn read(bytes: &[u8], pos: usize) -> Result<(f32, usize), NumberFault> {
        let parts = parts(bytes, pos)?;
        if let Some(value) = scale(&parts)
            && (parts.mantissa == 0 || rounds_safely(value))
        {
            let value = value as f32;
            return Ok((if parts.negative { -value } else { value }, parts.end));
        }
        slow(bytes, pos, parts.end)
    }

    #[inline]
    fn read_usual(bytes: &[u8], pos: usize, most: usize, values: &mut Vec<f32>) -> usize {
        floats::read(bytes, pos, most, values)
    }
}

/// Whether `value`, which is within two units of its last place of the true number, rounds to the `f32` that the true
/// number rounds to: it is in the normal range and not next to the middle between two of them.
#[inline]
fn rounds_safely(value: f64) -> bool {
    const HALF: i64 = 1 << 28;
    let below = (value.to_bits() & 0x1FFF_FFFF) as i64;
    (below - HALF).abs() > 4 && value >= f64::from(f32::MIN_POSITIVE) && value <= f64::from(f32::MAX)
}

impl Number for f64 {
    #[inline]
    fn read(bytes: &[u8], pos: usize) -> Result<(f64, usize), NumberFault> {
        let parts = parts(bytes, pos)?;
        if parts.mantissa <= 1 << 53
            && let Some(value) = scale(&parts)
        {
            return Ok((if parts.negative { -value } else { value }, parts.end));
        }
        slow(bytes, pos, parts.end)
    }
}

/// What the quick ways could not decide.
#[cold]
fn slow<T: lexical_core::FromLexical + Float>(bytes: &[u8], pos: usize, end: usize) -> Result<(T, usize), NumberFault> {
    let value: T = lexical_core::parse(&bytes[pos..end]).map_err(|_| NumberFault::Syntax)?;
    if !value.is_finite() {
        return Err(NumberFault::NotFinite);
    }
    Ok((value, end))
}

/// What [`slow`] asks of a float.
trait Float {
    fn is_finite(&self) -> bool;
}

impl Float for f32 {
    fn is_finite(&self) -> bool {
        f32::is_finite(*self)
    }
}

impl Float for f64 {
    fn is_finite(&self) -> bool {
        f64::is_finite(*self)
    }
}

macro_rules! integers {
    ($($rust:ty),*) => {$(
        impl Number for $rust {
            #[inline]
            fn read(bytes: &[u8], pos: usize) -> Result<($rust, usize), NumberFault> {
                let parts = parts(bytes, pos)?;
                if !parts.integer {
                    return Err(NumberFault::NotAnInteger);
                }
                let magnitude = if parts.digits <= 19 {
                    i128::from(parts.mantissa)
                } else {
                    long_integer(bytes, pos + usize::from(parts.negative), parts.end)?
                };
                let value = if parts.negative { -magnitude } else { magnitude };
                <$rust>::try_from(value).map(|v| (v, parts.end)).map_err(|_| NumberFault::OutOfRange)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64);

/// An integer of twenty digits or more; it has no leading zero.
#[cold]
fn long_integer(bytes: &[u8], start: usize, end: usize) -> Result<i128, NumberFault> {
    lexical_core::parse::<u64>(&bytes[start..end]).map(i128::from).map_err(|_| NumberFault::OutOfRange)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<T: Number>(text: &str) -> Result<T, NumberFault> {
        // With and without room behind the number: both ways of reading digits.
        let near = T::read(text.as_bytes(), 0);
        let far = T::read(format!("{text},        ").as_bytes(), 0);
        assert_eq!(near.map(|(_, end)| end), far.map(|(_, end)| end), "{text}");
        let value = near.map(|(value, end)| {
            assert_eq!(end, text.len(), "{text}");
            value
        });
        let bytes = |v: T| bytemuck::bytes_of(&v).to_vec();
        assert_eq!(value.map(bytes), far.map(|(v, _)| bytes(v)), "{text}");
        value
    }

    #[test]
    fn floats_round_like_the_standard_library() {
        for text in [
            "0",
            "-0",
            "0.1",
            "1e-45",
            "1.4e-45",
            "7e-46",
            "3.4028235e38",
            "3.4028234e38",
            "16777217",
            "16777219",
            "0.500000029802322387695312",
            "0.500000089406967163085938",
            "9007199254740993",
            "1e22",
            "1e23",
            "123456789012345678",
            "1.17549435e-38",
            "1.1754942e-38",
            "8388608.5",
            "8388609.5",
            "0.12345679104328156",
            "2.2250738585072014e-308",
            "5e-324",
            "1.7976931348623157e308",
            "12345678901234567890123456789e-20",
            "0.000000000000000000000000000001",
        ] {
            let single: f32 = text.parse().unwrap();
            if single.is_finite() {
                assert_eq!(read::<f32>(text).unwrap().to_bits(), single.to_bits(), "{text}");
            }
            let double: f64 = text.parse().unwrap();
            assert_eq!(read::<f64>(text).unwrap().to_bits(), double.to_bits(), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "-", "+1", ".5", "5.", "1e", "1e+", "01", "-01", "x", "--1"] {
            let end = f32::read(text.as_bytes(), 0).map(|(_, end)| end);
            assert!(end.is_err() || end.is_ok_and(|end| end < text.len()), "{text}");
            assert!(i32::read(text.as_bytes(), 0).is_err(), "{text}");
        }
        for text in ["NaN", "Infinity", "-Infinity", "nan", "inf"] {
            assert_eq!(f64::read(text.as_bytes(), 0), Err(NumberFault::NotFinite), "{text}");
        }
        assert_eq!(read::<f32>("3.5e38"), Err(NumberFault::NotFinite));
        assert_eq!(read::<f32>("1e39"), Err(NumberFault::NotFinite));
        assert_eq!(read::<f64>("1e309"), Err(NumberFault::NotFinite));
        assert_eq!(read::<f64>("1e99999999999999999999"), Err(NumberFault::NotFinite));
        assert_eq!(read::<f64>("0e99999999999999999999"), Ok(0.0));
        assert_eq!(read::<f64>("1e-99999999999999999999"), Ok(0.0));
    }

    #[test]
    fn integers_keep_to_their_range() {
        assert_eq!(read::<u8>("255"), Ok(255));
        assert_eq!(read::<u8>("256"), Err(NumberFault::OutOfRange));
        assert_eq!(read::<u8>("-1"), Err(NumberFault::OutOfRange));
        assert_eq!(read::<u8>("-0"), Ok(0));
        assert_eq!(read::<i8>("-128"), Ok(-128));
        assert_eq!(read::<i64>("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(read::<i64>("9223372036854775808"), Err(NumberFault::OutOfRange));
        assert_eq!(read::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(read::<u64>("18446744073709551616"), Err(NumberFault::OutOfRange));
        assert_eq!(read::<u64>("99999999999999999999999999"), Err(NumberFault::OutOfRange));
        assert_eq!(read::<i32>("1.0"), Err(NumberFault::NotAnInteger));
        assert_eq!(read::<i32>("1e3"), Err(NumberFault::NotAnInteger));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn any_single_reads_back(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value:?}"), format!("{value:e}"), format!("{:?}", f64::from(value))] {
                prop_assert_eq!(read::<f32>(&text).unwrap().to_bits(), value.to_bits());
            }
        }

        #[test]
        fn any_double_reads_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value:?}"), format!("{value:e}")] {
                prop_assert_eq!(read::<f64>(&text).unwrap().to_bits(), value.to_bits());
            }
        }

        #[test]
        fn any_decimal_reads_as_the_standard_library_reads_it(text in "-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?") {
            let single: f32 = text.parse().unwrap();
            match read::<f32>(&text) {
                Ok(value) => prop_assert_eq!(value.to_bits(), single.to_bits()),
                Err(fault) => prop_assert!(fault == NumberFault::NotFinite && single.is_infinite()),
            }
            let double: f64 = text.parse().unwrap();
            prop_assert_eq!(read::<f64>(&text).unwrap().to_bits(), double.to_bits());
        }

        #[test]
        fn any_integer_reads_back(value: i64) {
            prop_assert_eq!(read::<i64>(&value.to_string()).unwrap(), value);
            prop_assert_eq!(read::<u64>(&(value as u64).to_string()).unwrap(), value as u64);
            prop_assert_eq!(integer_or_float(value.to_string().as_bytes()), Ok(Ok(value)));
        }
    }
}
