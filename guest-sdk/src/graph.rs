//! Graphs, which the host computes.

use crate::host::{RawGraph, RawTensor};
use crate::tensor::Tensor;
use crate::{Error, Request, Response, Result, Value};

/// A graph of the model's manifest.
#[derive(Debug)]
pub struct Graph(RawGraph);

impl Graph {
    /// The graph that the manifest calls so. A graph deployed without a name of its own is called `model`.
    ///
    /// # Errors
    /// When the manifest names no such graph.
    pub fn by_name(name: &str) -> Result<Graph> {
        Ok(Graph(RawGraph::by_name(name)?))
    }

    /// A graph of the model's own bytes, in ONNX. It must ask for `load = true` in the manifest's `[grants]`, and the
    /// operator must allow that; loading costs far more than computing, and the graph goes with the request.
    ///
    /// # Errors
    /// When `load` is not granted, or the bytes are no graph that can be served.
    pub fn from_onnx(onnx: &[u8]) -> Result<Graph> {
        Ok(Graph(RawGraph::from_onnx(onnx)?))
    }

    /// Computes the graph. Names are those of the graph's own inputs.
    ///
    /// # Errors
    /// When names, types or shapes are not the graph's, or the engine fails.
    pub fn compute<'a>(&self, inputs: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Outputs> {
        let inputs = inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.0)).collect();
        self.compute_raw(inputs)
    }

    /// Passes every input of a request to the graph, and every output back: nothing enters the module's memory.
    ///
    /// # Errors
    /// As [`Graph::compute`]; and when an input is not a tensor.
    pub fn run(&self, request: Request) -> Result<Response> {
        let inputs = request
            .inputs
            .into_iter()
            .map(|(name, value)| match value {
                Value::Tensor(tensor) => Ok((name, tensor.0)),
                Value::Strings(_) => Err(Error::invalid_input(format!("{name}: the graph takes no byte strings"))),
            })
            .collect::<Result<Vec<_>>>()?;
        let outputs = self.compute_raw(inputs)?;
        let wanted = |name: &String| request.outputs.is_empty() || request.outputs.contains(name);
        let mut response = Response::new();
        for (name, tensor) in outputs.0.into_iter().filter(|(name, _)| wanted(name)) {
            response = response.with(&name, tensor);
        }
        Ok(response)
    }

    fn compute_raw(&self, inputs: Vec<(String, RawTensor)>) -> Result<Outputs> {
        let outputs = self.0.compute(inputs)?;
        Ok(Outputs(outputs.into_iter().map(|(name, tensor)| (name, Tensor(tensor))).collect()))
    }
}

/// What a graph computed: tensors by name, still in the host's memory.
#[derive(Debug, Default)]
pub struct Outputs(pub(crate) Vec<(String, Tensor)>);

impl Outputs {
    /// Takes the tensor of this name out.
    ///
    /// # Errors
    /// When there is none, or it was taken.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        match self.0.iter().position(|(found, _)| found == name) {
            Some(index) => Ok(self.0.swap_remove(index).1),
            None => Err(Error::internal(format!("the graph has no output {name:?}, only {:?}", self.names()))),
        }
    }

    /// Takes the only tensor out.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn only(mut self) -> Result<Tensor> {
        match (self.0.pop(), self.0.is_empty()) {
            (Some((_, tensor)), true) => Ok(tensor),
            _ => Err(Error::internal("the graph has not exactly one output")),
        }
    }

    /// The names that are left.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

impl<const N: usize> From<[(&str, Tensor); N]> for Outputs {
    fn from(tensors: [(&str, Tensor); N]) -> Outputs {
        Outputs(tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
    }
}
