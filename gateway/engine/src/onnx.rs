//! Our own bounded reader of ONNX files: what must be known and refused before any engine sees the bytes.
//!
//! It walks the file once, without copying a weight, in time linear in its length and with bounded recursion. What it
//! refuses: data outside the file, operator domains that no engine here has, local functions, subgraphs nested too
//! deep, sizes that overflow or disagree with their data, more nodes than any real graph has, and inputs and outputs
//! of types that the protocol cannot express. What it does not do is check that the graph makes sense: the engines do.
//!
//! In the same walk it follows what is known of each value from node to node (`infer`): its element type, and whether
//! its integers come from data, of which anything may come, or from constants, sizes and indices, which 32 bits hold.
//! Two questions are answered from that: may a run trap, and would an engine of 32 bits compute something else.

mod counters;
mod declared;
mod element;
mod halves;
mod infer;
mod node;
mod reader;
#[cfg(test)]
mod tests;
mod value;
mod weight;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

pub use element::Element;

use crate::{EngineError, GraphSpec};

/// Longest file, in bytes: the format's own limit, that of a protocol buffer.
pub const MAX_BYTES: usize = i32::MAX as usize;
/// Most nodes, those of subgraphs included.
pub const MAX_NODES: usize = 200_000;
/// Most weights, those of subgraphs and attributes included.
pub const MAX_WEIGHTS: usize = 200_000;
/// Most values with a name, and most of which the file tells the type.
pub const MAX_NAMES: usize = 2_000_000;
/// Most inputs, and most outputs, of the graph.
pub const MAX_VALUES: usize = 1_024;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 32;
/// How deep subgraphs may nest in subgraphs.
pub const MAX_DEPTH: usize = 8;
/// Longest name of an input or output, in bytes.
pub const MAX_NAME: usize = 4_096;

/// What the reader found in a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The signature, with the declared types.
    pub spec: GraphSpec,
    /// Nodes, those of subgraphs included.
    pub nodes: usize,
    /// The operators used, as `domain:Name`, or `Name` alone for ONNX's own.
    pub operators: BTreeSet<String>,
    /// The element types of inputs, outputs, weights and of what nodes make, as far as that can be told, each with what
    /// has it.
    pub elements: BTreeMap<Element, String>,
    /// The operators that take or make integers of 8 bits, as far as that can be told, each with the first such type
    /// and node.
    pub on_bytes: BTreeMap<String, (Element, String)>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Why an engine whose integers and floats have 32 bits, and whose BOOL are such integers, would compute something
    /// else, if it would: a constant that it cannot hold and that is not merely the open end of a slice, or a node whose
    /// results it may not hold, or that takes what was cast to BOOL for numbers.
    pub beyond_32_bits: Option<String>,
    /// What has half floats and is more than a weight that is only widened to FLOAT, if anything is.
    pub half: Option<String>,
    /// The node that may end a process in which native code runs it, if there is one: it divides integers by what may
    /// be 0 or -1.
    pub may_trap: Option<String>,
}

/// Reads the signature of a graph and refuses what may not reach an engine. No engine is involved.
///
/// # Errors
/// [`EngineError::InvalidGraph`] or [`EngineError::Unsupported`], with what was refused.
pub fn inspect(onnx: &[u8]) -> Result<GraphSpec, EngineError> {
    read(onnx).map(|model| model.spec)
}

/// Reads everything that is to be known of a graph before an engine loads it.
///
/// # Errors
/// As [`inspect`].
pub fn read(onnx: &[u8]) -> Result<Model, EngineError> {
    reader::read(onnx)
}
