//! What a graph declares of its inputs, outputs and other values: names, types and shapes.

use super::MAX_RANK;
use super::element::Element;
use super::wire::{Message, invalid, once};
use crate::{DataType, Dim, EngineError};

/// The name of a declared value, and its element type where it is a tensor of a type that is known.
pub(super) fn value_type<'a>(mut message: Message<'a>) -> Result<(&'a str, Option<Element>), EngineError> {
    let (mut name, mut element) = (None, None);
    while let Some(field) = message.next()? {
        match field.number {
            1 => once(&mut name, field.text("the name of a value")?, "a name")?,
            2 => {
                let mut kind = field.message("type")?;
                while let Some(field) = kind.next()? {
                    if field.number == 1 {
                        element = tensor_element(field.message("tensor type")?)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((name.unwrap_or_default(), element))
}

fn tensor_element(mut tensor: Message<'_>) -> Result<Option<Element>, EngineError> {
    let mut element = None;
    while let Some(field) = tensor.next()? {
        if field.number == 1 {
            element = Element::from_number(field.integer()?);
        }
    }
    Ok(element)
}

/// The element type and shape of a type, which must be a tensor's.
pub(super) fn tensor_type(
    mut message: Message<'_>,
    name: &str,
    role: &str,
) -> Result<(Element, Option<Vec<Dim>>), EngineError> {
    let mut tensor = None;
    while let Some(field) = message.next()? {
        let other = match field.number {
            1 => {
                once(&mut tensor, field.message("tensor type")?, "a tensor type")?;
                continue;
            }
            4 => "a sequence",
            5 => "a map",
            7 => "opaque",
            8 => "a sparse tensor",
            9 => "optional",
            _ => continue,
        };
        return Err(EngineError::Unsupported(format!("{role} '{name}' is {other}: only tensors can be served")));
    }
    let mut tensor = tensor.ok_or_else(|| invalid(format!("{role} '{name}' declares no type")))?;
    let (mut element, mut shape) = (None, None);
    while let Some(field) = tensor.next()? {
        match field.number {
            1 => once(&mut element, field.integer()?, "an element type")?,
            2 => once(&mut shape, dims(field.message("shape")?, name)?, "a shape")?,
            _ => {}
        }
    }
    let element = element.and_then(Element::from_number);
    Ok((element.ok_or_else(|| invalid(format!("{role} '{name}' has no known element type")))?, shape))
}

/// The dimensions of a shape.
fn dims(mut shape: Message<'_>, name: &str) -> Result<Vec<Dim>, EngineError> {
    let mut dims = Vec::new();
    while let Some(field) = shape.next()? {
        if field.number != 1 {
            continue;
        }
        let (mut size, mut symbol) = (None, None);
        let mut dim = field.message("dimension")?;
        while let Some(field) = dim.next()? {
            match field.number {
                1 => once(&mut size, field.integer()?, "a dimension's size")?,
                2 => once(&mut symbol, field.text("a dimension's symbol")?, "a dimension's symbol")?,
                _ => {}
            }
        }
        dims.push(match (size, symbol) {
            (Some(_), Some(_)) => return Err(invalid(format!("a dimension of '{name}' has a size and a symbol"))),
            // How some exporters write a size that differs from call to call.
            (Some(-1), None) => Dim::Symbol(String::new()),
            (Some(size), None) => {
                let size = u64::try_from(size);
                Dim::Fixed(size.map_err(|_| invalid(format!("a dimension of '{name}' is negative")))?)
            }
            // A question mark is an exporter's way to name nothing: two of them are not the same size.
            (None, symbol) => Dim::Symbol(symbol.filter(|s| *s != "?").unwrap_or_default().to_owned()),
        });
        if dims.len() > MAX_RANK {
            return Err(invalid(format!("'{name}' has more than {MAX_RANK} dimensions")));
        }
    }
    Ok(dims)
}

/// Refuses a declaration whose fixed dimensions alone are larger than memory.
pub(super) fn check_size(datatype: DataType, shape: Option<&[Dim]>, name: &str, role: &str) -> Result<(), EngineError> {
    let fixed = shape.unwrap_or_default().iter().filter_map(|dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Symbol(_) => None,
    });
    let mut size = datatype.width().unwrap_or(4) as u64;
    for dim in fixed {
        size = size
            .checked_mul(dim)
            .filter(|n| *n <= isize::MAX as u64)
            .ok_or_else(|| invalid(format!("{role} '{name}' is larger than memory")))?;
    }
    Ok(())
}
