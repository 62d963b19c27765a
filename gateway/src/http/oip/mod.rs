//! The Open Inference Protocol, version 2, over HTTP: bodies to requests and answers to bodies. Knows neither sockets
//! nor models.

mod data;
mod decode;
mod encode;
mod floats;
pub mod halves;
mod json;
mod number;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use windrose_engine::DataType;

use crate::request::{Request, Response};

/// Why a body is not a request or an answer. The message names the field and is for the caller.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// Not the JSON or the framing that the protocol describes.
    #[error("{0}")]
    Malformed(String),
    /// Well-formed, with a value that does not fit.
    #[error("{0}")]
    Invalid(String),
    /// There is no memory for its tensors now.
    #[error("there is no memory for its tensors")]
    NoMemory,
}

/// Asked for the memory of each tensor, bytes, before it is taken.
pub type Memory<'a> = &'a mut dyn FnMut(usize) -> bool;

/// How the caller wants each output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    /// Whether outputs come as binary data where nothing else is said: `binary_data_output`.
    pub binary: bool,
    /// What single outputs asked for with `binary_data`.
    pub outputs: Vec<(String, bool)>,
}

/// A decoded inference request.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// What is asked.
    pub request: Request,
    /// How the answer is to be encoded.
    pub format: AnswerFormat,
    /// The protocol's `timeout`.
    pub timeout: Option<Duration>,
}

/// Who answers: the envelope of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The model's name.
    pub model_name: String,
    /// The model's version.
    pub model_version: Option<String>,
    /// The caller's own id.
    pub id: Option<String>,
}

/// An encoded body: JSON, then binary tensors in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The JSON. When `binary` is not empty, its length goes into `Inference-Header-Content-Length`.
    pub json: Bytes,
    /// Binary tensors, shared with the answer and not copied.
    pub binary: Vec<Bytes>,
}

impl AnswerFormat {
    /// Whether this output is to come as binary data.
    pub fn is_binary(&self, output: &str) -> bool {
        self.outputs.iter().find(|(name, _)| name == output).map_or(self.binary, |(_, binary)| *binary)
    }

    /// Whether an output of this type can be written in this format at all: before anything is computed for it.
    ///
    /// # Errors
    /// When it would have to be JSON and JSON has no form for the type.
    pub fn check(&self, output: &str, datatype: DataType) -> Result<(), CodecError> {
        if data::has_json_form(datatype) || self.is_binary(output) {
            return Ok(());
        }
        Err(encode::unwritable("output", output, data::Unwritable::Type(datatype)))
    }
}

impl Encoded {
    /// Bytes of JSON and binary data together.
    pub fn len(&self) -> usize {
        self.json.len() + self.binary.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body in one piece.
    pub fn into_bytes(self) -> Bytes {
        if self.binary.is_empty() {
            return self.json;
        }
        let mut body = Vec::with_capacity(self.len());
        body.extend_from_slice(&self.json);
        self.binary.iter().for_each(|part| body.extend_from_slice(part));
        body.into()
    }
}

/// Decodes the body of an inference. `json_length` is the header `Inference-Header-Content-Length`. Tensors that are no slices
/// of the body take `memory`.
///
/// # Errors
/// As [`CodecError`] says.
pub fn decode_request(body: &Bytes, json_length: Option<usize>, memory: Memory) -> Result<Decoded, CodecError> {
    decode::request(body, json_length, memory)
}

/// Encodes an answer as `format` asks.
///
/// # Errors
/// When an output cannot be written as JSON (FP16, BF16, non-finite numbers, bytes that are not UTF-8).
pub fn encode_response(envelope: &Envelope, response: &Response, format: &AnswerFormat) -> Result<Encoded, CodecError> {
    encode::response(envelope, response, format)
}

/// Decodes an answer.
///
/// # Errors
/// As [`CodecError`] says.
pub fn decode_response(body: &Bytes, json_length: Option<usize>) -> Result<(Envelope, Response), CodecError> {
    decode::response(body, json_length)
}

/// Encodes a request, with its inputs as binary data or as JSON. Outputs are asked for in the same way.
///
/// # Errors
/// When an input cannot be written as JSON.
pub fn encode_request(request: &Request, binary: bool) -> Result<Encoded, CodecError> {
    encode::request(request, binary)
}

/// The body of an error: `{"error": message}`.
pub fn encode_error(message: &str) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 16);
    out.extend_from_slice(b"{\"error\":");
    json::write_string(&mut out, message);
    out.push(b'}');
    out.into()
}
