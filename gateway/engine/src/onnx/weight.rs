//! Weights: their size is checked against their data, which is not copied.

use super::MAX_RANK;
use super::element::{Element, Typed};
use super::value::{Bound, Value};
use super::wire::{Field, Message, invalid, once};
use crate::EngineError;

/// What is to be known of one weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight<'a> {
    pub name: &'a str,
    pub element: Element,
    /// Bytes of its elements in memory.
    pub bytes: u64,
    /// Whether a 32-bit engine would lose one of its values.
    pub wide: bool,
    /// What is known of its values.
    pub value: Value,
}

/// Most floats of a weight that are looked at: what has more is no factor or offset of a size.
const LOOKED_AT: usize = 4_096;

/// What was seen of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    low: f64,
    high: f64,
    whole: bool,
    /// None is 0 or -1.
    divides: bool,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { low: f64::INFINITY, high: f64::NEG_INFINITY, whole: true, divides: true }
    }
}

impl Seen {
    pub fn integer(&mut self, value: i64) {
        self.divides &= value != 0 && value != -1;
        self.low = self.low.min(value as f64);
        self.high = self.high.max(value as f64);
    }

    pub fn float(&mut self, value: f64) {
        self.whole &= value.is_finite() && value.fract() == 0.0;
        let (low, high) = if value.is_nan() { (f64::NEG_INFINITY, f64::INFINITY) } else { (value, value) };
        self.low = self.low.min(low);
        self.high = self.high.max(high);
    }

    /// What is known of a value of this type of which all was seen.
    pub fn value(self, element: Element) -> Value {
        let bound = if self.low <= self.high { Bound::Within(self.low, self.high) } else { Bound::Within(0.0, 0.0) };
        let divides = self.divides && !element.is_float();
        Value { element: Some(element), bound, whole: self.whole, divides, loose: false }
    }
}

/// The fields of a tensor as they come.
#[derive(Default)]
struct Parts<'a> {
    dims: Vec<i64>,
    element: Option<i64>,
    name: Option<&'a str>,
    raw: Option<&'a [u8]>,
    /// Which typed field holds values, and how many.
    typed: Option<(Typed, usize)>,
    location: Option<i64>,
    wide: bool,
    /// What was seen of the typed values.
    seen: Seen,
}

/// Reads a tensor.
pub(super) fn read<'a>(mut message: Message<'a>) -> Result<Weight<'a>, EngineError> {
    let mut parts = Parts::default();
    while let Some(field) = message.next()? {
        parts.take(&field)?;
    }
    let name = parts.name.unwrap_or_default();
    let named = |why: &str| invalid(format!("weight '{name}' {why}"));
    if parts.location.unwrap_or(0) != 0 {
        return Err(external(name));
    }
    let element = parts.element.and_then(Element::from_number).ok_or_else(|| named("has no known element type"))?;
    let count = count(&parts.dims).ok_or_else(|| named("has dimensions that are negative or overflow"))?;
    let bits = count.checked_mul(element.bits()).filter(|bits| *bits <= isize::MAX as usize);
    let size = bits.ok_or_else(|| named("is larger than memory"))?.div_ceil(8);
    parts.check_length(element, count, size).map_err(|why| named(&why))?;
    let bytes = if element.bits() == 0 { message_text_bytes(&parts) } else { size as u64 };
    Ok(Weight { name, element, bytes, wide: parts.wide || parts.raw_is_wide(element), value: parts.value(element) })
}

/// Text is counted by its elements: their bytes stand in the file anyway.
fn message_text_bytes(parts: &Parts<'_>) -> u64 {
    parts.typed.map_or(0, |(_, count)| count as u64)
}

/// The refusal of data that is not in the file.
pub(super) fn external(name: &str) -> EngineError {
    EngineError::InvalidGraph(format!("weight '{name}' is external data: put the weights into the ONNX file itself"))
}

impl<'a> Parts<'a> {
    fn take(&mut self, field: &Field<'a>) -> Result<(), EngineError> {
        match field.number {
            1 => {
                let dims = &mut self.dims;
                // One more than the limit shows that it was passed.
                field.integers(|dim| {
                    if dims.len() <= MAX_RANK {
                        dims.push(dim);
                    }
                })?;
                if dims.len() > MAX_RANK {
                    return Err(invalid(format!("a weight has more than {MAX_RANK} dimensions")));
                }
            }
            2 => once(&mut self.element, field.integer()?, "a weight's type")?,
            3 => return Err(invalid("a weight is cut into segments".into())),
            4 => self.count_fixed::<4>(field, Typed::Float, |v| f32::from_le_bytes(v).into())?,
            5 => self.count_integers(field, Typed::Int32)?,
            6 => {
                field.bytes()?;
                self.count(Typed::Text, 1)?;
            }
            7 => self.count_integers(field, Typed::Int64)?,
            8 => once(&mut self.name, field.text("a weight's name")?, "a weight's name")?,
            9 => once(&mut self.raw, field.bytes()?, "a weight's raw data")?,
            10 => self.count_fixed::<8>(field, Typed::Double, f64::from_le_bytes)?,
            11 => self.count_integers(field, Typed::Uint64)?,
            13 => return Err(external(self.name.unwrap_or_default())),
            14 => once(&mut self.location, field.integer()?, "a weight's data location")?,
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, typed: Typed, more: usize) -> Result<(), EngineError> {
        let (kind, count) = self.typed.get_or_insert((typed, 0));
        if *kind != typed {
            return Err(invalid("a weight has values of two kinds".into()));
        }
        *count = count.saturating_add(more);
        Ok(())
    }

    fn count_integers(&mut self, field: &Field<'a>, typed: Typed) -> Result<(), EngineError> {
        let (mut count, mut seen, mut wide) = (0, self.seen, false);
        field.integers(|value| {
            count += 1;
            seen.integer(value);
            wide |= is_wide(value);
        })?;
        self.seen = seen;
        self.wide |= wide && typed == Typed::Int64;
        self.count(typed, count)
    }

    fn count_fixed<const N: usize>(
        &mut self,
        field: &Field<'a>,
        typed: Typed,
        number: fn([u8; N]) -> f64,
    ) -> Result<(), EngineError> {
        let (mut count, mut seen, mut wide) = (0, self.seen, false);
        field.fixed(|value| {
            count += 1;
            let value = number(value);
            seen.float(value);
            wide |= overflows(value);
        })?;
        self.seen = seen;
        self.wide |= wide && typed == Typed::Double;
        self.count(typed, count)
    }

    /// Whether there are just the values that type and shape ask for.
    fn check_length(&self, element: Element, count: usize, size: usize) -> Result<(), String> {
        let typed = self.typed.filter(|(_, n)| *n > 0);
        match (self.raw.filter(|raw| !raw.is_empty()), typed) {
            (Some(_), Some(_)) => Err("has raw and typed values".into()),
            (Some(_), None) if element.bits() == 0 => Err("is text in raw bytes".into()),
            (Some(raw), None) if raw.len() != size => Err(format!("takes {size} bytes, not {}", raw.len())),
            (Some(_), None) => Ok(()),
            (None, Some((kind, n))) => {
                let expected = element.typed_count(count).ok_or("is larger than memory")?;
                if kind != element.typed() {
                    return Err(format!("of type {} has values of another type", element.name()));
                }
                if n != expected {
                    return Err(format!("takes {expected} values, not {n}"));
                }
                Ok(())
            }
            (None, None) if count == 0 => Ok(()),
            (None, None) => Err(format!("takes {count} values and has none")),
        }
    }

    /// Whether the raw values hold one that a 32-bit engine would lose.
    fn raw_is_wide(&self, element: Element) -> bool {
        let values = self.raw.unwrap_or_default().as_chunks::<8>().0;
        match element {
            Element::INT64 => values.iter().any(|v| is_wide(i64::from_le_bytes(*v))),
            Element::DOUBLE => values.iter().any(|v| overflows(f64::from_le_bytes(*v))),
            _ => false,
        }
    }
}

/// What is known of a weight's values.
impl Parts<'_> {
    fn value(&self, element: Element) -> Value {
        let (mut seen, raw) = (self.seen, self.raw.unwrap_or_default());
        if self.typed.is_some_and(|(_, n)| n > 0) {
            return self.typed_value(element);
        }
        let looked_at = raw.len() <= LOOKED_AT * 8;
        let known = match element.name() {
            "BOOL" | "UINT8" if looked_at => integers::<1>(&mut seen, raw, |v| u8::from_le_bytes(v).into()),
            "INT8" if looked_at => integers::<1>(&mut seen, raw, |v| i8::from_le_bytes(v).into()),
            "UINT16" => integers::<2>(&mut seen, raw, |v| u16::from_le_bytes(v).into()),
            "INT16" => integers::<2>(&mut seen, raw, |v| i16::from_le_bytes(v).into()),
            "UINT32" => integers::<4>(&mut seen, raw, |v| u32::from_le_bytes(v).into()),
            "INT32" => integers::<4>(&mut seen, raw, |v| i32::from_le_bytes(v).into()),
            "UINT64" | "INT64" => integers::<8>(&mut seen, raw, i64::from_le_bytes),
            "FLOAT" if looked_at => {
                raw.as_chunks().0.iter().for_each(|v| seen.float(f32::from_le_bytes(*v).into()));
                true
            }
            "DOUBLE" if looked_at => {
                raw.as_chunks().0.iter().for_each(|v| seen.float(f64::from_le_bytes(*v)));
                true
            }
            _ => false,
        };
        if known { seen.value(element) } else { Value::data(Some(element)) }
    }

    /// Values of a typed field. Where its number is no value of the element type, or is not a number but bits, nothing
    /// is known: an engine cuts it.
    fn typed_value(&self, element: Element) -> Value {
        let seen = self.seen;
        let fits = match (element.typed(), element.name()) {
            (Typed::Int64 | Typed::Uint64, "INT64" | "UINT64") | (Typed::Float, "FLOAT") => true,
            (Typed::Double, "DOUBLE") => true,
            _ => element.range().is_some_and(|(low, high)| seen.low >= low && seen.high <= high),
        };
        if fits { seen.value(element) } else { Value::data(Some(element)) }
    }
}

fn integers<const N: usize>(seen: &mut Seen, raw: &[u8], number: fn([u8; N]) -> i64) -> bool {
    raw.as_chunks().0.iter().for_each(|value| seen.integer(number(*value)));
    true
}

/// Whether an integer does not fit 32 bits.
pub(super) fn is_wide(value: i64) -> bool {
    i32::try_from(value).is_err()
}

/// Whether a finite double is infinite as a float.
fn overflows(value: f64) -> bool {
    value.is_finite() && !(value as f32).is_finite()
}

/// The product of dimensions, if none is negative and it fits.
fn count(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}
