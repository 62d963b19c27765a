//! The real host.

use crate::bindings::wasi::nn::errors::{Error as NnError, ErrorCode};
use crate::bindings::wasi::nn::{graph, inference, tensor};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// A tensor in the host's memory.
#[derive(Debug)]
pub(crate) struct RawTensor(pub(crate) tensor::Tensor);

impl RawTensor {
    pub(crate) fn new(dimensions: &[u32], ty: TensorType, data: &[u8]) -> RawTensor {
        RawTensor(tensor::Tensor::new(dimensions, ty.into(), data))
    }

    pub(crate) fn dimensions(&self) -> Vec<u32> {
        self.0.dimensions()
    }

    pub(crate) fn ty(&self) -> TensorType {
        self.0.ty().into()
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        self.0.data()
    }
}

/// A graph with the context that runs it.
#[derive(Debug)]
pub(crate) struct RawGraph {
    context: inference::GraphExecutionContext,
}

impl RawGraph {
    pub(crate) fn by_name(name: &str) -> Result<RawGraph> {
        RawGraph::prepared(&graph::load_by_name(name).map_err(|error| failed("load", &error))?)
    }

    pub(crate) fn from_onnx(onnx: &[u8]) -> Result<RawGraph> {
        let loaded = graph::load(&[onnx.to_vec()], graph::GraphEncoding::Onnx, graph::ExecutionTarget::Cpu);
        RawGraph::prepared(&loaded.map_err(|error| failed("load", &error))?)
    }

    fn prepared(graph: &graph::Graph) -> Result<RawGraph> {
        let context = graph.init_execution_context().map_err(|error| failed("prepare", &error))?;
        Ok(RawGraph { context })
    }

    pub(crate) fn compute(&self, inputs: Vec<(String, RawTensor)>) -> Result<Vec<(String, RawTensor)>> {
        let inputs: Vec<_> = inputs.into_iter().map(|(name, tensor)| (name, tensor.0)).collect();
        let outputs = self.context.compute(inputs).map_err(|error| failed("compute", &error))?;
        Ok(outputs.into_iter().map(|(name, tensor)| (name, RawTensor(tensor))).collect())
    }
}

/// An invalid argument is what the caller's own tensors make of a graph's free dimensions; the rest is not theirs.
fn failed(what: &str, error: &NnError) -> Error {
    let message = format!("{what}: {}", error.data());
    match error.code() {
        ErrorCode::InvalidArgument => Error::invalid_input(message),
        _ => Error::internal(message),
    }
}

impl From<TensorType> for tensor::TensorType {
    fn from(ty: TensorType) -> tensor::TensorType {
        match ty {
            TensorType::Fp16 => tensor::TensorType::Fp16,
            TensorType::Fp32 => tensor::TensorType::Fp32,
            TensorType::Fp64 => tensor::TensorType::Fp64,
            TensorType::Bf16 => tensor::TensorType::Bf16,
            TensorType::U8 => tensor::TensorType::U8,
            TensorType::I32 => tensor::TensorType::I32,
            TensorType::I64 => tensor::TensorType::I64,
        }
    }
}

impl From<tensor::TensorType> for TensorType {
    fn from(ty: tensor::TensorType) -> TensorType {
        match ty {
            tensor::TensorType::Fp16 => TensorType::Fp16,
            tensor::TensorType::Fp32 => TensorType::Fp32,
            tensor::TensorType::Fp64 => TensorType::Fp64,
            tensor::TensorType::Bf16 => TensorType::Bf16,
            tensor::TensorType::U8 => TensorType::U8,
            tensor::TensorType::I32 => TensorType::I32,
            tensor::TensorType::I64 => TensorType::I64,
        }
    }
}
