//! Element types: those that the Open Inference Protocol and ONNX share.

use serde::{Deserialize, Serialize};

/// The type of a tensor's elements, named as the Open Inference Protocol writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Byte strings; in a tensor's memory each is a little-endian `u32` length and then its bytes.
    Bytes,
}

impl DataType {
    /// Every element type.
    pub const ALL: [DataType; 14] = [
        DataType::Bool,
        DataType::Uint8,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Fp16,
        DataType::Bf16,
        DataType::Fp32,
        DataType::Fp64,
        DataType::Bytes,
    ];

    /// Bytes of one element, or `None` for byte strings, whose elements differ in length.
    pub const fn width(self) -> Option<usize> {
        match self {
            DataType::Bool | DataType::Uint8 | DataType::Int8 => Some(1),
            DataType::Uint16 | DataType::Int16 | DataType::Fp16 | DataType::Bf16 => Some(2),
            DataType::Uint32 | DataType::Int32 | DataType::Fp32 => Some(4),
            DataType::Uint64 | DataType::Int64 | DataType::Fp64 => Some(8),
            DataType::Bytes => None,
        }
    }

    /// The type that carries this one where the types are those of `wasi:nn`, which has FP16, FP32, FP64, BF16, U8, I32
    /// and I64: the one of the same width. The declared type of a graph decides how a carrier's bytes are read. Byte
    /// strings travel as the bytes of their layout, each with its length prefix.
    pub const fn carrier(self) -> DataType {
        match self {
            DataType::Bool | DataType::Uint8 | DataType::Int8 | DataType::Bytes => DataType::Uint8,
            DataType::Int16 | DataType::Uint16 | DataType::Fp16 => DataType::Fp16,
            DataType::Uint32 | DataType::Int32 => DataType::Int32,
            DataType::Uint64 | DataType::Int64 => DataType::Int64,
            DataType::Bf16 => DataType::Bf16,
            DataType::Fp32 => DataType::Fp32,
            DataType::Fp64 => DataType::Fp64,
        }
    }

    /// Whether a tensor of this type may stand for one of type `other`: they are the same, or one carries the other.
    pub const fn stands_for(self, other: DataType) -> bool {
        let (a, b) = (self as u8, other as u8);
        a == b || self.carrier() as u8 == b || other.carrier() as u8 == a
    }

    /// The name in the Open Inference Protocol (`FP32`, `INT64`, `BYTES`, ...).
    pub const fn name(self) -> &'static str {
        match self {
            DataType::Bool => "BOOL",
            DataType::Uint8 => "UINT8",
            DataType::Uint16 => "UINT16",
            DataType::Uint32 => "UINT32",
            DataType::Uint64 => "UINT64",
            DataType::Int8 => "INT8",
            DataType::Int16 => "INT16",
            DataType::Int32 => "INT32",
            DataType::Int64 => "INT64",
            DataType::Fp16 => "FP16",
            DataType::Bf16 => "BF16",
            DataType::Fp32 => "FP32",
            DataType::Fp64 => "FP64",
            DataType::Bytes => "BYTES",
        }
    }

    /// The type with that protocol name, if there is one.
    pub fn from_name(name: &str) -> Option<DataType> {
        DataType::ALL.into_iter().find(|t| t.name() == name)
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type whose values stand in a tensor's memory as they are.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The element type that this Rust type stores.
    const DATATYPE: DataType;
}

macro_rules! element {
    ($($rust:ty => $name:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DATATYPE: DataType = DataType::$name;
        }
    )*};
}

element! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    half::f16 => Fp16, half::bf16 => Bf16, f32 => Fp32, f64 => Fp64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for t in DataType::ALL {
            assert_eq!(DataType::from_name(t.name()), Some(t));
            assert_eq!(serde_json::to_value(t).expect("a name"), t.name());
        }
        assert_eq!(DataType::from_name("STRING"), None);
        assert_eq!(DataType::from_name("fp32"), None);
    }

    #[test]
    fn the_table_of_carriers() {
        use DataType::*;
        let table = [
            (Bool, Uint8),
            (Uint8, Uint8),
            (Uint16, Fp16),
            (Uint32, Int32),
            (Uint64, Int64),
            (Int8, Uint8),
            (Int16, Fp16),
            (Int32, Int32),
            (Int64, Int64),
            (Fp16, Fp16),
            (Bf16, Bf16),
            (Fp32, Fp32),
            (Fp64, Fp64),
            (Bytes, Uint8),
        ];
        assert_eq!(table.map(|(t, _)| t), DataType::ALL);
        for (t, carrier) in table {
            assert_eq!(t.carrier(), carrier);
            assert_eq!(carrier.carrier(), carrier, "a carrier carries itself");
            assert!(t.width().is_none() || t.width() == carrier.width());
            assert!(t.stands_for(carrier) && carrier.stands_for(t));
        }
        assert!(!Fp32.stands_for(Int32) && !Bf16.stands_for(Fp16) && !Bool.stands_for(Int8));
    }
}
