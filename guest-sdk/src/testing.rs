//! A stand-in for the host, so that a model's own code can be tested natively with `cargo test`.

use crate::{Outputs, Result};

/// Makes a closure the graph of this name, for this thread: it gets the inputs of a `compute` and returns its outputs.
///
/// ```
/// use windrose_guest::{prelude::*, testing};
///
/// testing::graph("model", |mut inputs| Ok(Outputs::from([("y", inputs.tensor("x")?)])));
/// let mut outputs = Graph::by_name("model")?.compute([("x", Tensor::new(&[2], &[1i64, 2])?)])?;
/// assert_eq!(outputs.tensor("y")?.to_vec::<i64>()?, [1, 2]);
/// # Ok::<(), Error>(())
/// ```
///
/// A graph that the model loads from its own bytes is the one of the name `onnx`:
///
/// ```
/// use windrose_guest::{prelude::*, testing};
///
/// assert!(Graph::from_onnx(b"any bytes").is_err());
/// testing::graph("onnx", |mut inputs| Ok(Outputs::from([("y", inputs.tensor("x")?)])));
/// let mut outputs = Graph::from_onnx(b"any bytes")?.compute([("x", Tensor::new(&[1], &[7i64])?)])?;
/// assert_eq!(outputs.tensor("y")?.to_vec::<i64>()?, [7]);
/// # Ok::<(), Error>(())
/// ```
pub fn graph(name: &str, compute: impl Fn(Outputs) -> Result<Outputs> + 'static) {
    crate::host::register(name, compute);
}
