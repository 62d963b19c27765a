//! Requests and answers.

use crate::{Error, Result, Strings, Tensor};

/// One input or output.
#[derive(Debug)]
pub enum Value {
    /// Numbers, in the host's memory.
    Tensor(Tensor),
    /// Byte strings.
    Strings(Strings),
}

impl Value {
    /// What a graph takes.
    pub(crate) fn into_tensor(self) -> Result<Tensor> {
        match self {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Strings(strings) => Tensor::from_strings(&strings),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value::Tensor(tensor)
    }
}

impl From<Strings> for Value {
    fn from(strings: Strings) -> Value {
        Value::Strings(strings)
    }
}

/// A parameter of a request or an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
}

/// One inference that a caller asks for.
#[derive(Debug, Default)]
pub struct Request {
    pub(crate) inputs: Vec<(String, Value)>,
    pub(crate) outputs: Vec<String>,
    pub(crate) parameters: Vec<(String, Parameter)>,
}

impl Request {
    /// An empty request, for tests.
    pub fn new() -> Request {
        Request::default()
    }

    /// Adds an input, for tests.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Request {
        self.inputs.push((name.to_owned(), value.into()));
        self
    }

    /// Takes an input out.
    ///
    /// # Errors
    /// The caller's fault, when there is none of this name.
    pub fn take(&mut self, name: &str) -> Result<Value> {
        self.optional(name).ok_or_else(|| Error::invalid_input(format!("input {name:?} is missing")))
    }

    /// Takes an input out, where the caller sent it.
    pub fn optional(&mut self, name: &str) -> Option<Value> {
        let index = self.inputs.iter().position(|(found, _)| found == name)?;
        Some(self.inputs.swap_remove(index).1)
    }

    /// Takes a tensor out.
    ///
    /// # Errors
    /// The caller's fault, when there is none of this name.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        match self.take(name)? {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Strings(_) => Err(Error::invalid_input(format!("input {name:?} holds byte strings, not numbers"))),
        }
    }

    /// Takes byte strings out.
    ///
    /// # Errors
    /// The caller's fault, when there are none of this name.
    pub fn strings(&mut self, name: &str) -> Result<Strings> {
        match self.take(name)? {
            Value::Strings(strings) => Ok(strings),
            Value::Tensor(_) => Err(Error::invalid_input(format!("input {name:?} holds numbers, not byte strings"))),
        }
    }

    /// Whether the caller wants this output: one that asks for none gets all.
    pub fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|name| name == output)
    }

    /// A parameter of the request.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        find(&self.parameters, name)
    }
}

/// The answer to a request.
#[derive(Debug, Default)]
pub struct Response {
    pub(crate) outputs: Vec<(String, Value)>,
    pub(crate) parameters: Vec<(String, Parameter)>,
}

impl Response {
    /// An empty answer.
    pub fn new() -> Response {
        Response::default()
    }

    /// Adds an output.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Response {
        self.outputs.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a parameter.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: Parameter) -> Response {
        self.parameters.push((name.to_owned(), value));
        self
    }

    /// Takes a tensor out, for tests.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        match self.take(name)? {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Strings(_) => Err(Error::internal(format!("output {name:?} holds byte strings"))),
        }
    }

    /// Takes byte strings out, for tests; those that a graph made as well.
    ///
    /// # Errors
    /// When there are none of this name.
    pub fn strings(&mut self, name: &str) -> Result<Strings> {
        match self.take(name)? {
            Value::Strings(strings) => Ok(strings),
            Value::Tensor(tensor) => tensor.to_strings().map_err(Error::wrap(name)),
        }
    }

    fn take(&mut self, name: &str) -> Result<Value> {
        match self.outputs.iter().position(|(found, _)| found == name) {
            Some(index) => Ok(self.outputs.swap_remove(index).1),
            None => Err(Error::internal(format!("there is no output {name:?}"))),
        }
    }
}

fn find<'a>(parameters: &'a [(String, Parameter)], name: &str) -> Option<&'a Parameter> {
    parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value)
}
