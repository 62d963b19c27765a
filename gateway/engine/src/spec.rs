//! What a graph or a model declares about its inputs and outputs.

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
