//! Weights: their size is checked against their data, which is not copied.

use super::MAX_RANK;
use super::element::{Element, Typed};
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
    Ok(Weight { name, element, bytes, wide: parts.wide || parts.raw_is_wide(element) })
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
            4 => self.count_fixed::<4>(field, Typed::Float, |_| false)?,
            5 => self.count_integers(field, Typed::Int32, |_| false)?,
            6 => {
                field.bytes()?;
                self.count(Typed::Text, 1)?;
            }
            7 => self.count_integers(field, Typed::Int64, is_wide)?,
            8 => once(&mut self.name, field.text("a weight's name")?, "a weight's name")?,
            9 => once(&mut self.raw, field.bytes()?, "a weight's raw data")?,
            10 => self.count_fixed::<8>(field, Typed::Double, |v| overflows(f64::from_le_bytes(v)))?,
            11 => self.count_integers(field, Typed::Uint64, |_| false)?,
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

    fn count_integers(&mut self, field: &Field<'a>, typed: Typed, wide: fn(i64) -> bool) -> Result<(), EngineError> {
        let (mut count, mut any_wide) = (0, false);
        field.integers(|value| {
            count += 1;
            any_wide |= wide(value);
        })?;
        self.wide |= any_wide;
        self.count(typed, count)
    }

    fn count_fixed<const N: usize>(
        &mut self,
        field: &Field<'a>,
        typed: Typed,
        wide: fn([u8; N]) -> bool,
    ) -> Result<(), EngineError> {
        let (mut count, mut any_wide) = (0, false);
        field.fixed(|value| {
            count += 1;
            any_wide |= wide(value);
        })?;
        self.wide |= any_wide;
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
