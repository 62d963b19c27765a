//! ONNX's element types, by their numbers in the format.

use crate::DataType;

/// An element type that a weight may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element(u8);

/// Which field of a tensor holds elements that are not in its raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Float,
    Int32,
    Text,
    Int64,
    Double,
    Uint64,
}

/// Name, bits of one element (0 for text), the field of its typed values, by ONNX's number.
const ELEMENTS: [(&str, usize, Typed); 27] = [
    ("UNDEFINED", 0, Typed::Int32),
    ("FLOAT", 32, Typed::Float),
    ("UINT8", 8, Typed::Int32),
    ("INT8", 8, Typed::Int32),
    ("UINT16", 16, Typed::Int32),
    ("INT16", 16, Typed::Int32),
    ("INT32", 32, Typed::Int32),
    ("INT64", 64, Typed::Int64),
    ("STRING", 0, Typed::Text),
    ("BOOL", 8, Typed::Int32),
    ("FLOAT16", 16, Typed::Int32),
    ("DOUBLE", 64, Typed::Double),
    ("UINT32", 32, Typed::Uint64),
    ("UINT64", 64, Typed::Uint64),
    ("COMPLEX64", 64, Typed::Float),
    ("COMPLEX128", 128, Typed::Double),
    ("BFLOAT16", 16, Typed::Int32),
    ("FLOAT8E4M3FN", 8, Typed::Int32),
    ("FLOAT8E4M3FNUZ", 8, Typed::Int32),
    ("FLOAT8E5M2", 8, Typed::Int32),
    ("FLOAT8E5M2FNUZ", 8, Typed::Int32),
    ("UINT4", 4, Typed::Int32),
    ("INT4", 4, Typed::Int32),
    ("FLOAT4E2M1", 4, Typed::Int32),
    ("FLOAT8E8M0", 8, Typed::Int32),
    ("UINT2", 2, Typed::Int32),
    ("INT2", 2, Typed::Int32),
];

impl Element {
    pub(super) const FLOAT: Element = Element(1);
    pub(super) const UINT8: Element = Element(2);
    pub(super) const INT32: Element = Element(6);
    pub(super) const INT64: Element = Element(7);
    pub(super) const STRING: Element = Element(8);
    pub(super) const BOOL: Element = Element(9);
    pub(crate) const FLOAT16: Element = Element(10);
    pub(super) const DOUBLE: Element = Element(11);

    /// The type with this number, if the format knows it.
    pub(super) fn from_number(number: i64) -> Option<Element> {
        u8::try_from(number).ok().filter(|n| (1..ELEMENTS.len()).contains(&usize::from(*n))).map(Element)
    }

    fn row(self) -> (&'static str, usize, Typed) {
        // `from_number` and the constants above stay inside the table.
        ELEMENTS.get(usize::from(self.0)).copied().unwrap_or(ELEMENTS[0])
    }

    /// ONNX's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bits of one element; 0 for text.
    pub(super) fn bits(self) -> usize {
        self.row().1
    }

    /// Whether it is a number with a fraction.
    pub(super) fn is_float(self) -> bool {
        self.name().contains("FLOAT") || matches!(self.name(), "DOUBLE" | "COMPLEX64" | "COMPLEX128")
    }

    /// Whether it is an integer of 8 bits.
    pub(super) fn is_byte(self) -> bool {
        matches!(self.name(), "UINT8" | "INT8")
    }

    /// The least and the largest integer of this type that an engine of 32 bits can hold.
    pub(super) fn range(self) -> Option<(f64, f64)> {
        Some(match self.name() {
            "BOOL" => (0.0, 1.0),
            "UINT8" => (0.0, u8::MAX.into()),
            "INT8" => (i8::MIN.into(), i8::MAX.into()),
            "UINT16" => (0.0, u16::MAX.into()),
            "INT16" => (i16::MIN.into(), i16::MAX.into()),
            "INT32" | "INT64" => (i32::MIN.into(), i32::MAX.into()),
            "UINT32" | "UINT64" => (0.0, u32::MAX.into()),
            _ => return None,
        })
    }

    /// Where values that are not raw stand.
    pub(super) fn typed(self) -> Typed {
        self.row().2
    }

    /// Values in the typed field for so many elements: complex numbers are pairs there, small ones share.
    pub(super) fn typed_count(self, elements: usize) -> Option<usize> {
        match self.bits() {
            bits @ (2 | 4) => Some(elements.div_ceil(8 / bits)),
            _ if self.name().starts_with("COMPLEX") => elements.checked_mul(2),
            _ => Some(elements),
        }
    }

    /// The protocol's type, where there is one: complex numbers, eight-bit floats and smaller have none.
    pub fn datatype(self) -> Option<DataType> {
        Some(match self.name() {
            "FLOAT" => DataType::Fp32,
            "UINT8" => DataType::Uint8,
            "INT8" => DataType::Int8,
            "UINT16" => DataType::Uint16,
            "INT16" => DataType::Int16,
            "INT32" => DataType::Int32,
            "INT64" => DataType::Int64,
            "STRING" => DataType::Bytes,
            "BOOL" => DataType::Bool,
            "FLOAT16" => DataType::Fp16,
            "DOUBLE" => DataType::Fp64,
            "UINT32" => DataType::Uint32,
            "UINT64" => DataType::Uint64,
            "BFLOAT16" => DataType::Bf16,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_type_is_one_element_type() {
        let all: Vec<_> = (1..27).filter_map(|n| Element::from_number(n)?.datatype()).collect();
        assert_eq!(all.len(), DataType::ALL.len());
        for t in DataType::ALL {
            assert_eq!(all.iter().filter(|d| **d == t).count(), 1, "{t}");
            let element = (1..27).find_map(|n| Element::from_number(n).filter(|e| e.datatype() == Some(t)));
            assert_eq!(element.expect("an element type").bits() / 8, t.width().unwrap_or(0));
        }
        assert!(Element::from_number(0).is_none() && Element::from_number(27).is_none());
        assert!(Element::from_number(-1).is_none() && Element::from_number(1 << 40).is_none());
    }

    #[test]
    fn small_elements_share_bytes() {
        let four = Element::from_number(21).expect("UINT4");
        assert_eq!((four.typed_count(3), four.bits()), (Some(2), 4));
        assert_eq!(Element::from_number(14).expect("COMPLEX64").typed_count(3), Some(6));
    }
}
