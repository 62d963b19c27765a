//! One inference as every dialect means it.

use windrose_engine::Tensor;
pub use windrose_sandbox::Parameter;

/// One inference, decoded from a dialect and not yet admitted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The caller's own id for this inference; echoed in the answer.
    pub id: Option<String>,
    /// Inputs by name, in the caller's order. Names are unique.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs that the caller asked for, in order; empty for all.
    pub outputs: Vec<String>,
    /// Parameters of the request, less those that the dialect itself understands.
    pub parameters: Vec<(String, Parameter)>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// Parameters of the answer.
    pub parameters: Vec<(String, Parameter)>,
}
