//! What a model takes and returns.

/// A dimension that differs from call to call, in the shapes of a [`Signature`].
pub const ANY: i64 = -1;

/// The element types of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's own names")]
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
    Bytes,
}

/// One declared input or output.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) shape: Vec<Option<u32>>,
}

/// What a model takes and returns.
///
/// ```
/// use windrose_guest::{ANY, DataType, Signature};
/// Signature::new()
///     .input("file", DataType::Bytes, &[ANY])
///     .output("label", DataType::Bytes, &[ANY])
///     .output("score", DataType::Fp32, &[ANY]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signature {
    pub(crate) graph: Option<String>,
    pub(crate) inputs: Vec<Spec>,
    pub(crate) outputs: Vec<Spec>,
}

impl Signature {
    /// An empty signature, to be filled with [`Signature::input`] and [`Signature::output`].
    pub fn new() -> Signature {
        Signature::default()
    }

    /// Just what the graph of this name takes and returns.
    pub fn of_graph(name: &str) -> Signature {
        Signature { graph: Some(name.to_owned()), ..Signature::default() }
    }

    /// Adds an input; a negative dimension ([`ANY`]) is free.
    #[must_use]
    pub fn input(mut self, name: &str, data_type: DataType, shape: &[i64]) -> Signature {
        self.inputs.push(spec(name, data_type, shape));
        self
    }

    /// Adds an output; a negative dimension ([`ANY`]) is free.
    #[must_use]
    pub fn output(mut self, name: &str, data_type: DataType, shape: &[i64]) -> Signature {
        self.outputs.push(spec(name, data_type, shape));
        self
    }
}

fn spec(name: &str, data_type: DataType, shape: &[i64]) -> Spec {
    let shape = shape.iter().map(|&size| u32::try_from(size).ok()).collect();
    Spec { name: name.to_owned(), data_type, shape }
}
