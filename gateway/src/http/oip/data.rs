//! The `data` of a tensor in JSON: numbers, booleans and strings, parsed straight into the tensor's memory.
//!
//! The elements may come flat or nested as the shape says. Memory is taken once, for as many elements as there can be in the
//! text, and never for more than the shape asks for.

use bytes::Bytes;
use windrose_engine::{DataType, Tensor, TensorError};

use super::Memory;
use super::json::{Cursor, Syntax, write_string};
use super::number::{Number, NumberFault};

/// Dimensions that a tensor may have.
pub(super) const MAX_RANK: usize = 32;

/// Why `data` is not a tensor of its type and shape. Does not name the field; the caller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DataFault {
    /// Not JSON.
    Syntax(Syntax),
    /// JSON that does not fit type or shape.
    Invalid(String),
    /// There is no memory for it now.
    NoMemory,
}

impl From<Syntax> for DataFault {
    fn from(syntax: Syntax) -> DataFault {
        DataFault::Syntax(syntax)
    }
}

impl From<TensorError> for DataFault {
    fn from(error: TensorError) -> DataFault {
        DataFault::Invalid(error.to_string())
    }
}

/// The number of elements of a shape whose tensor can be addressed at all.
pub(super) fn element_count(datatype: DataType, shape: &[usize]) -> Option<usize> {
    let width = datatype.width().unwrap_or(4);
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    count.checked_mul(width).filter(|bytes| *bytes <= isize::MAX as usize)?;
    Some(count)
}

/// Parses the `data` at the cursor as a tensor, which takes `memory`.
pub(super) fn parse(
    cursor: &mut Cursor,
    datatype: DataType,
    shape: Box<[usize]>,
    memory: Memory,
) -> Result<Tensor, DataFault> {
    match datatype {
        DataType::Bool => {
            let bools: Bools = walk(cursor, datatype, &shape, memory)?;
            Ok(Tensor::new(datatype, shape, bools.0.into())?)
        }
        DataType::Bytes => {
            let strings: Strings = walk(cursor, datatype, &shape, memory)?;
            Ok(Tensor::new(datatype, shape, strings.0.into())?)
        }
        DataType::Uint8 => numbers::<u8>(cursor, shape, memory),
        DataType::Uint16 => numbers::<u16>(cursor, shape, memory),
        DataType::Uint32 => numbers::<u32>(cursor, shape, memory),
        DataType::Uint64 => numbers::<u64>(cursor, shape, memory),
        DataType::Int8 => numbers::<i8>(cursor, shape, memory),
        DataType::Int16 => numbers::<i16>(cursor, shape, memory),
        DataType::Int32 => numbers::<i32>(cursor, shape, memory),
        DataType::Int64 => numbers::<i64>(cursor, shape, memory),
        DataType::Fp32 => numbers::<f32>(cursor, shape, memory),
        DataType::Fp64 => numbers::<f64>(cursor, shape, memory),
        DataType::Fp16 | DataType::Bf16 => {
            Err(DataFault::Invalid(format!("{datatype} has no JSON form: send it as binary data")))
        }
    }
}

fn numbers<T: Number>(cursor: &mut Cursor, shape: Box<[usize]>, memory: Memory) -> Result<Tensor, DataFault> {
    let values: Vec<T> = walk(cursor, T::DATATYPE, &shape, memory)?;
    Ok(Tensor::from_vec(shape, values)?)
}

/// What takes elements one by one.
trait Sink: Sized {
    /// The room that so many elements take at most, bytes. The first is at the cursor.
    fn room(elements: usize, cursor: &Cursor) -> usize;

    /// With this room.
    fn with_room(bytes: usize) -> Self;

    /// Takes the element at the cursor.
    fn element(&mut self, cursor: &mut Cursor) -> Result<(), Element>;

    /// Takes elements with the comma behind each, `most` at most, as long as there is a quicker way; how many it took.
    #[inline]
    fn usual(&mut self, _cursor: &mut Cursor, _most: usize) -> usize {
        0
    }
}

/// Elements that are taken one by one before the quicker way is tried again.
const UNUSUAL: u32 = 16;

/// Why one element was not taken.
enum Element {
    Number(NumberFault),
    NotABoolean,
    Syntax(Syntax),
    TooLong,
}

impl<T: Number> Sink for Vec<T> {
    fn room(elements: usize, _: &Cursor) -> usize {
        elements.saturating_mul(size_of::<T>())
    }

    fn with_room(bytes: usize) -> Vec<T> {
        Vec::with_capacity(bytes / size_of::<T>())
    }

    #[inline]
    fn element(&mut self, cursor: &mut Cursor) -> Result<(), Element> {
        cursor.peek();
        let (value, end) = T::read(cursor.bytes(), cursor.position()).map_err(Element::Number)?;
        cursor.seek(end);
        self.push(value);
        Ok(())
    }

    #[inline]
    fn usual(&mut self, cursor: &mut Cursor, most: usize) -> usize {
        let before = self.len();
        let end = T::read_usual(cursor.bytes(), cursor.position(), most, self);
        cursor.seek(end);
        self.len() - before
    }
}

/// Booleans as bytes.
struct Bools(Vec<u8>);

impl Sink for Bools {
    fn room(elements: usize, _: &Cursor) -> usize {
        elements
    }

    fn with_room(bytes: usize) -> Bools {
        Bools(Vec::with_capacity(bytes))
    }

    fn element(&mut self, cursor: &mut Cursor) -> Result<(), Element> {
        let value = cursor.word("true");
        if !value && !cursor.word("false") {
            return Err(Element::NotABoolean);
        }
        self.0.push(u8::from(value));
        Ok(())
    }
}

/// What the length of a string takes, bytes.
const LENGTH: usize = 4;

/// Byte strings in a tensor's layout: a length and the bytes, each.
struct Strings(Vec<u8>);

impl Sink for Strings {
    /// Unescaped, no string is longer than in the text.
    fn room(elements: usize, cursor: &Cursor) -> usize {
        let left = cursor.bytes().len() - cursor.position();
        // What is malformed is said in its place.
        let length = cursor.clone().skip().map_or(left, <[u8]>::len);
        length.saturating_add(elements.min(length / 2).saturating_mul(LENGTH))
    }

    fn with_room(bytes: usize) -> Strings {
        Strings(Vec::with_capacity(bytes))
    }

    fn element(&mut self, cursor: &mut Cursor) -> Result<(), Element> {
        let raw = cursor.raw_string().map_err(Element::Syntax)?;
        let start = self.0.len();
        self.0.extend_from_slice(&[0; LENGTH]);
        raw.append_to(&mut self.0).map_err(Element::Syntax)?;
        let length = u32::try_from(self.0.len() - start - LENGTH).map_err(|_| Element::TooLong)?;
        self.0[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

/// How far the walk through nested arrays has come.
struct Walk<'s> {
    datatype: DataType,
    shape: &'s [usize],
    /// Elements that the shape asks for.
    expected: usize,
    /// Elements so far.
    count: usize,
    /// Open arrays.
    depth: usize,
    /// Items of the open array of each depth.
    items: [usize; MAX_RANK + 2],
    /// The depth at which elements stand; 0 before the first.
    leaf: usize,
    /// Whether an array without items was seen.
    empty: bool,
}

/// Takes every element of the array at the cursor, flat or nested, in order.
fn walk<S: Sink>(cursor: &mut Cursor, datatype: DataType, shape: &[usize], memory: Memory) -> Result<S, DataFault> {
    let expected = element_count(datatype, shape)
        .ok_or_else(|| DataFault::Invalid(format!("the shape {shape:?} has too many elements")))?;
    // Each element takes at least two bytes of text.
    let room = S::room(expected.min((cursor.bytes().len() - cursor.position()) / 2 + 1), cursor);
    if !memory(room) {
        return Err(DataFault::NoMemory);
    }
    let mut sink = S::with_room(room);
    let mut walk =
        Walk { datatype, shape, expected, count: 0, depth: 0, items: [0; MAX_RANK + 2], leaf: 0, empty: false };
    if cursor.peek() != b'[' {
        return match shape.is_empty() {
            true => walk.elements(cursor, &mut sink, false).map(|()| sink),
            false => Err(DataFault::Invalid("is not an array".to_owned())),
        };
    }
    let mut may_close = false;
    loop {
        match cursor.peek() {
            b'[' => {
                walk.open()?;
                cursor.bump();
                may_close = true;
                continue;
            }
            b']' if may_close => {}
            _ => walk.elements(cursor, &mut sink, true)?,
        }
        while cursor.accept(b']') {
            if walk.close()? {
                return walk.finish().map(|()| sink);
            }
        }
        cursor.expect(b',', "expected ',' or ']'")?;
        may_close = false;
    }
}

impl Walk<'_> {
    /// Goes into an array.
    fn open(&mut self) -> Result<(), DataFault> {
        if self.leaf != 0 && self.depth >= self.leaf {
            return Err(self.mixed());
        }
        if self.depth >= self.shape.len().max(1) {
            return Err(DataFault::Invalid(format!("nests deeper than its shape {:?}", self.shape)));
        }
        self.depth += 1;
        self.items[self.depth] = 0;
        Ok(())
    }

    /// Takes the elements up to the end of the innermost array, or only one.
    #[inline]
    fn elements<S: Sink>(&mut self, cursor: &mut Cursor, sink: &mut S, more: bool) -> Result<(), DataFault> {
        if self.leaf == 0 {
            self.leaf = self.depth;
        } else if self.leaf != self.depth {
            return Err(self.mixed());
        }
        let before = self.count;
        let mut unusual = 0;
        loop {
            if more && unusual == 0 {
                let taken = sink.usual(cursor, self.expected - self.count);
                self.count += taken;
                if taken == 0 {
                    unusual = UNUSUAL;
                } else if cursor.peek() == b'[' {
                    return Err(self.mixed());
                }
            } else {
                unusual -= u32::from(more);
            }
            if self.count == self.expected {
                let expected = self.expected;
                return Err(DataFault::Invalid(format!(
                    "holds more elements than the {expected} of its shape {:?}",
                    self.shape
                )));
            }
            sink.element(cursor).map_err(|e| self.element_fault(&e, cursor))?;
            self.count += 1;
            if !more || !cursor.accept(b',') {
                break;
            }
            if cursor.peek() == b'[' {
                return Err(self.mixed());
            }
        }
        self.items[self.depth] += self.count - before;
        Ok(())
    }

    /// Leaves an array; whether it was the outermost.
    fn close(&mut self) -> Result<bool, DataFault> {
        let items = self.items[self.depth];
        self.empty |= items == 0;
        if self.leaf == self.shape.len()
            && let Some(wanted) = self.depth.checked_sub(1).and_then(|axis| self.shape.get(axis))
            && *wanted != items
            && self.shape.len() > 1
        {
            return Err(DataFault::Invalid(format!(
                "has an array of {items} where dimension {} of its shape {:?} is {wanted}",
                self.depth - 1,
                self.shape
            )));
        }
        self.depth -= 1;
        self.items[self.depth] += 1;
        Ok(self.depth == 0)
    }

    /// Checks what can only be known at the end.
    fn finish(&self) -> Result<(), DataFault> {
        if self.count != self.expected {
            return Err(DataFault::Invalid(format!(
                "holds {} elements, its shape {:?} takes {}",
                self.count, self.shape, self.expected
            )));
        }
        if self.leaf > 1 && self.leaf != self.shape.len() {
            return Err(DataFault::Invalid(format!(
                "nests {} deep, neither flat nor as its shape {:?}",
                self.leaf, self.shape
            )));
        }
        if self.empty && self.count > 0 {
            return Err(self.mixed());
        }
        Ok(())
    }

    #[cold]
    fn mixed(&self) -> DataFault {
        DataFault::Invalid(format!("is ragged: its arrays do not nest as its shape {:?} says", self.shape))
    }

    #[cold]
    fn element_fault(&self, fault: &Element, cursor: &mut Cursor) -> DataFault {
        let (index, datatype) = (self.count, self.datatype);
        let what = match fault {
            Element::Syntax(syntax) if cursor.peek() == b'"' || syntax.what != "expected a string" => {
                return DataFault::Syntax(*syntax);
            }
            _ if cursor.peek() == 0 => return DataFault::Syntax(cursor.fault("the text ends too early")),
            Element::Syntax(_) => format!("element {index} is not a string"),
            Element::TooLong => format!("element {index} is longer than 4 GiB"),
            Element::NotABoolean => format!("element {index} is not true or false"),
            Element::Number(NumberFault::NotFinite) => format!("element {index} is not a finite {datatype}"),
            Element::Number(NumberFault::NotAnInteger) => format!("element {index} is not an integer"),
            Element::Number(NumberFault::OutOfRange) => format!("element {index} is out of range for {datatype}"),
            Element::Number(NumberFault::Syntax) => {
                let start = cursor.position();
                return match cursor.skip() {
                    Ok(_) => DataFault::Invalid(format!("element {index} is not a number")),
                    Err(_) => DataFault::Syntax(Syntax { at: start, what: "a malformed number" }),
                };
            }
        };
        DataFault::Invalid(what)
    }
}

/// Why a tensor has no JSON form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// FP16 and BF16.
    Type(DataType),
    /// NaN or an infinity.
    NotFinite,
    /// A byte string that is not text.
    NotUtf8,
}

/// Whether JSON has a form for elements of this type.
pub(super) fn has_json_form(datatype: DataType) -> bool {
    !matches!(datatype, DataType::Fp16 | DataType::Bf16)
}

/// Appends the elements as a flat JSON array.
pub(super) fn write(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), Unwritable> {
    let usual = match tensor.datatype() {
        DataType::Fp32 => 11,
        DataType::Fp64 => 18,
        _ => 4,
    };
    out.reserve(tensor.len().saturating_mul(usual));
    out.push(b'[');
    match tensor.datatype() {
        DataType::Bool => {
            for value in tensor.data() {
                out.extend_from_slice(if *value == 0 { b"false," } else { b"true," });
            }
        }
        DataType::Bytes => {
            for value in tensor.strings() {
                write_string(out, std::str::from_utf8(&value).map_err(|_| Unwritable::NotUtf8)?);
                out.push(b',');
            }
        }
        DataType::Uint8 => write_integers::<u8>(out, tensor),
        DataType::Uint16 => write_integers::<u16>(out, tensor),
        DataType::Uint32 => write_integers::<u32>(out, tensor),
        DataType::Uint64 => write_integers::<u64>(out, tensor),
        DataType::Int8 => write_integers::<i8>(out, tensor),
        DataType::Int16 => write_integers::<i16>(out, tensor),
        DataType::Int32 => write_integers::<i32>(out, tensor),
        DataType::Int64 => write_integers::<i64>(out, tensor),
        DataType::Fp32 => write_floats::<f32>(out, tensor)?,
        DataType::Fp64 => write_floats::<f64>(out, tensor)?,
        other @ (DataType::Fp16 | DataType::Bf16) => return Err(Unwritable::Type(other)),
    }
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
    Ok(())
}

fn write_integers<T: Number + itoa::Integer>(out: &mut Vec<u8>, tensor: &Tensor) {
    let mut buffer = itoa::Buffer::new();
    for value in tensor.values::<T>().as_deref().unwrap_or_default() {
        out.extend_from_slice(buffer.format(*value).as_bytes());
        out.push(b',');
    }
}

fn write_floats<T: Number + zmij::Float + Into<f64>>(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), Unwritable> {
    let mut buffer = zmij::Buffer::new();
    for value in tensor.values::<T>().as_deref().unwrap_or_default() {
        if !Into::<f64>::into(*value).is_finite() {
            return Err(Unwritable::NotFinite);
        }
        out.extend_from_slice(buffer.format_finite(*value).as_bytes());
        out.push(b',');
    }
    Ok(())
}

/// A tensor over a slice of the body.
pub(super) fn binary(datatype: DataType, shape: Box<[usize]>, data: Bytes) -> Result<Tensor, DataFault> {
    element_count(datatype, &shape)
        .ok_or_else(|| DataFault::Invalid(format!("the shape {shape:?} has too many elements")))?;
    Ok(Tensor::new(datatype, shape, data)?)
}
