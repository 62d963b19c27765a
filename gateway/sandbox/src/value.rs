//! What travels into a module of the world `model` and out of it, as the host sees it.

use windrose_engine::{GraphSpec, Tensor};

/// A parameter of a request or an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

/// One inference. Byte strings are tensors of type BYTES; the sandbox passes them to the guest as lists.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// Inputs by name, in the caller's order, already checked against the model's declaration.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs that the caller asked for; empty for all.
    pub outputs: Vec<String>,
    /// Parameters of the request.
    pub parameters: Vec<(String, Parameter)>,
}

/// Its answer. Each tensor has the type that the model declares for it.
#[derive(Clone, Debug, Default)]
pub struct InferResponse {
    /// Outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// Parameters of the answer.
    pub parameters: Vec<(String, Parameter)>,
}

/// How a model describes itself: its signature, with a graph's own looked up.
pub type Description = GraphSpec;
