//! Graphs, which the host computes.

use crate::host::RawGraph;
use crate::tensor::Tensor;
use crate::{Error, Request, Response, Result, Strings, Value};

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

    /// Computes the graph. Names are those of the graph's own inputs; an input is a [`Tensor`], [`Strings`] where the
    /// graph takes those, or a [`Value`], which is either.
    ///
    /// ```
    /// use windrose_guest::{prelude::*, testing};
    ///
    /// testing::graph("model", |mut inputs| {
    ///     let words = inputs.strings("words")?;
    ///     let upper = words.texts()?.into_iter().map(str::to_uppercase);
    ///     Ok(Outputs::from([("upper", Tensor::from_strings(&Strings::row(upper))?)]))
    /// });
    /// let mut outputs = Graph::by_name("model")?.compute([("words", Strings::row(["north"]))])?;
    /// assert_eq!(outputs.strings("upper")?, Strings::row(["NORTH"]));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// When names, types or shapes are not the graph's, or the engine fails.
    pub fn compute<'a, V: Into<Value>>(&self, inputs: impl IntoIterator<Item = (&'a str, V)>) -> Result<Outputs> {
        self.compute_values(inputs.into_iter().map(|(name, value)| (name.to_owned(), value.into())))
    }

    /// Passes every input of a request to the graph, and every output back. No number enters the module's memory, and
    /// no byte string of an output.
    ///
    /// # Errors
    /// As [`Graph::compute`].
    pub fn run(&self, request: Request) -> Result<Response> {
        let outputs = self.compute_values(request.inputs)?;
        let wanted = |name: &String| request.outputs.is_empty() || request.outputs.contains(name);
        let mut response = Response::new();
        for (name, tensor) in outputs.0.into_iter().filter(|(name, _)| wanted(name)) {
            response = response.with(&name, tensor);
        }
        Ok(response)
    }

    fn compute_values(&self, inputs: impl IntoIterator<Item = (String, Value)>) -> Result<Outputs> {
        let raw = |(name, value): (String, Value)| Ok((name, value.into_tensor()?.0));
        let inputs = inputs.into_iter().map(raw).collect::<Result<Vec<_>>>()?;
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

    /// Takes the byte strings of this name out.
    ///
    /// # Errors
    /// As [`Outputs::tensor`], and when the graph returned numbers.
    pub fn strings(&mut self, name: &str) -> Result<Strings> {
        self.tensor(name)?.to_strings().map_err(Error::wrap(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph that turns the order of its strings and negates its numbers.
    fn graph() -> Graph {
        crate::testing::graph("mixed", |mut inputs| {
            let (words, numbers) = (inputs.strings("words")?, inputs.tensor("numbers")?.to_vec::<i32>()?);
            let numbers: Vec<i32> = numbers.into_iter().map(|number| -number).collect();
            let turned: Vec<Vec<u8>> = words.elements().iter().rev().cloned().collect();
            let turned = Tensor::from_strings(&Strings::new(&words.shape(), turned)?)?;
            Ok(Outputs::from([("turned", turned), ("negative", Tensor::new(&[numbers.len()], &numbers)?)]))
        });
        Graph::by_name("mixed").unwrap()
    }

    fn words() -> Strings {
        Strings::new(&[3, 1], vec![b"north".to_vec(), vec![], vec![0xff]]).unwrap()
    }

    fn turned() -> Strings {
        Strings::new(&[3, 1], vec![vec![0xff], vec![], b"north".to_vec()]).unwrap()
    }

    #[test]
    fn strings_and_numbers_run_through_a_graph() {
        let numbers = Tensor::new(&[2], &[1i32, -2]).unwrap();
        let mut answer = graph().run(Request::new().with("words", words()).with("numbers", numbers)).unwrap();
        assert_eq!(answer.strings("turned").unwrap(), turned());
        assert_eq!(answer.tensor("negative").unwrap().to_vec::<i32>().unwrap(), [-1, 2]);
    }

    #[test]
    fn strings_and_numbers_are_computed_together() {
        let numbers = Tensor::new(&[1], &[7i32]).unwrap();
        let inputs = [("words", Value::from(words())), ("numbers", numbers.into())];
        let mut outputs = graph().compute(inputs).unwrap();
        let error = outputs.strings("negative").unwrap_err();
        assert!(!error.is_invalid_input() && error.message().starts_with("negative: "), "{error}");
        assert_eq!(outputs.strings("turned").unwrap(), turned());
    }
}
