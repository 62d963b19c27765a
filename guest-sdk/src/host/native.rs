//! A host for native tests: tensors in this process, graphs as closures of this thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::graph::Outputs;
use crate::tensor::{Tensor, TensorType};
use crate::{Error, Result};

type Compute = Rc<dyn Fn(Outputs) -> Result<Outputs>>;

thread_local! {
    static GRAPHS: RefCell<HashMap<String, Compute>> = RefCell::default();
}

/// Makes `compute` the graph of this name, for this thread.
pub(crate) fn register(name: &str, compute: impl Fn(Outputs) -> Result<Outputs> + 'static) {
    GRAPHS.with_borrow_mut(|graphs| graphs.insert(name.to_owned(), Rc::new(compute)));
}

/// A tensor in this process.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    dimensions: Vec<u32>,
    ty: TensorType,
    data: Vec<u8>,
}

impl RawTensor {
    pub(crate) fn new(dimensions: &[u32], ty: TensorType, data: &[u8]) -> RawTensor {
        RawTensor { dimensions: dimensions.to_vec(), ty, data: data.to_vec() }
    }

    pub(crate) fn dimensions(&self) -> Vec<u32> {
        self.dimensions.clone()
    }

    pub(crate) fn ty(&self) -> TensorType {
        self.ty
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        self.data.clone()
    }
}

/// A closure that was registered.
pub(crate) struct RawGraph {
    compute: Compute,
}

impl RawGraph {
    pub(crate) fn by_name(name: &str) -> Result<RawGraph> {
        GRAPHS
            .with_borrow(|graphs| graphs.get(name).cloned())
            .map(|compute| RawGraph { compute })
            .ok_or_else(|| Error::internal(format!("load: no graph is named {name:?}")))
    }

    /// There is no engine here: the graph is the one that was registered under `onnx`.
    pub(crate) fn from_onnx(_: &[u8]) -> Result<RawGraph> {
        RawGraph::by_name("onnx")
    }

    pub(crate) fn compute(&self, inputs: Vec<(String, RawTensor)>) -> Result<Vec<(String, RawTensor)>> {
        let inputs = inputs.into_iter().map(|(name, tensor)| (name, Tensor(tensor))).collect();
        let outputs = (self.compute)(Outputs(inputs))?;
        Ok(outputs.0.into_iter().map(|(name, tensor)| (name, tensor.0)).collect())
    }
}

impl std::fmt::Debug for RawGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawGraph").finish_non_exhaustive()
    }
}
