//! What a graph or a model declares about its inputs and outputs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::DataType;

/// One declared dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Always this many elements.
    Fixed(u64),
    /// Differs from call to call; equal symbols mean equal sizes within one call. Empty when the graph names none.
    Symbol(String),
}

/// One declared input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The name that callers use.
    pub name: String,
    /// The type that the graph declares, whatever the engine runs it with.
    pub datatype: DataType,
    /// The declared dimensions, outermost first; `None` when the graph declares no rank.
    pub shape: Option<Vec<Dim>>,
}

/// Everything that a graph declares about its signature, in declaration order. Initialisers are not inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphSpec {
    /// What a caller passes.
    pub inputs: Vec<TensorSpec>,
    /// What a caller may ask for.
    pub outputs: Vec<TensorSpec>,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => write!(f, "{size}"),
            Dim::Symbol(symbol) if symbol.is_empty() => f.write_str("-1"),
            Dim::Symbol(symbol) => f.write_str(symbol),
        }
    }
}

impl TensorSpec {
    /// Whether a tensor of this shape is what is declared. Symbols stand for any size.
    pub fn fits(&self, shape: &[usize]) -> bool {
        let equal = |(dim, size): (&Dim, &usize)| match dim {
            Dim::Fixed(fixed) => *fixed == *size as u64,
            Dim::Symbol(_) => true,
        };
        self.shape.as_ref().is_none_or(|dims| dims.len() == shape.len() && dims.iter().zip(shape).all(equal))
    }
}
