//! Answers and requests to bodies.

use bytes::Bytes;
use windrose_engine::Tensor;

use super::data::{self, Unwritable};
use super::json::write_string;
use super::{AnswerFormat, CodecError, Encoded, Envelope};
use crate::request::{Parameter, Request, Response};

/// See [`super::encode_response`].
pub(super) fn response(envelope: &Envelope, response: &Response, format: &AnswerFormat) -> Result<Encoded, CodecError> {
    let mut out = Vec::with_capacity(256);
    let mut binary = Vec::new();
    out.extend_from_slice(b"{\"model_name\":");
    write_string(&mut out, &envelope.model_name);
    if let Some(version) = &envelope.model_version {
        out.extend_from_slice(b",\"model_version\":");
        write_string(&mut out, version);
    }
    if let Some(id) = &envelope.id {
        out.extend_from_slice(b",\"id\":");
        write_string(&mut out, id);
    }
    if !response.parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":");
        parameters(&mut out, &response.parameters)?;
    }
    out.extend_from_slice(b",\"outputs\":[");
    for (index, (name, tensor)) in response.outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let as_binary = format.is_binary(name);
        item(&mut out, name, tensor, as_binary.then_some(&mut binary)).map_err(|e| unwritable("output", name, e))?;
    }
    out.extend_from_slice(b"]}");
    Ok(Encoded { json: out.into(), binary })
}

/// See [`super::encode_request`].
pub(super) fn request(request: &Request, as_binary: bool) -> Result<Encoded, CodecError> {
    let mut out = Vec::with_capacity(256);
    let mut binary = Vec::new();
    out.push(b'{');
    if let Some(id) = &request.id {
        out.extend_from_slice(b"\"id\":");
        write_string(&mut out, id);
        out.push(b',');
    }
    let mut all = request.parameters.clone();
    if as_binary {
        all.push(("binary_data_output".to_owned(), Parameter::Boolean(true)));
    }
    if !all.is_empty() {
        out.extend_from_slice(b"\"parameters\":");
        parameters(&mut out, &all)?;
        out.push(b',');
    }
    out.extend_from_slice(b"\"inputs\":[");
    for (index, (name, tensor)) in request.inputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(&mut out, name, tensor, as_binary.then_some(&mut binary)).map_err(|e| unwritable("input", name, e))?;
    }
    out.push(b']');
    for (index, name) in request.outputs.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"outputs\":[{\"name\":" } else { b",{\"name\":" });
        write_string(&mut out, name);
        out.push(b'}');
    }
    out.extend_from_slice(if request.outputs.is_empty() { b"}" } else { b"]}" });
    Ok(Encoded { json: out.into(), binary })
}

/// One input or output; its data goes to `binary` where that is given.
fn item(out: &mut Vec<u8>, name: &str, tensor: &Tensor, binary: Option<&mut Vec<Bytes>>) -> Result<(), Unwritable> {
    out.extend_from_slice(b"{\"name\":");
    write_string(out, name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    let mut buffer = itoa::Buffer::new();
    for (axis, dimension) in tensor.shape().iter().enumerate() {
        if axis > 0 {
            out.push(b',');
        }
        out.extend_from_slice(buffer.format(*dimension).as_bytes());
    }
    out.push(b']');
    match binary {
        Some(binary) => {
            out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            out.extend_from_slice(buffer.format(tensor.data().len()).as_bytes());
            out.extend_from_slice(b"}");
            binary.push(tensor.data().clone());
        }
        None => {
            out.extend_from_slice(b",\"data\":");
            data::write(out, tensor)?;
        }
    }
    out.push(b'}');
    Ok(())
}

fn parameters(out: &mut Vec<u8>, parameters: &[(String, Parameter)]) -> Result<(), CodecError> {
    out.push(b'{');
    for (index, (name, value)) in parameters.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        match value {
            Parameter::Boolean(true) => out.extend_from_slice(b"true"),
            Parameter::Boolean(false) => out.extend_from_slice(b"false"),
            Parameter::Integer(value) => out.extend_from_slice(itoa::Buffer::new().format(*value).as_bytes()),
            Parameter::Number(value) if value.is_finite() => {
                out.extend_from_slice(zmij::Buffer::new().format_finite(*value).as_bytes());
            }
            Parameter::Number(_) => {
                let why = "is NaN or an infinity, which JSON lacks";
                return Err(CodecError::Invalid(format!("parameter {name:?} {why}")));
            }
            Parameter::Text(value) => write_string(out, value),
        }
    }
    out.push(b'}');
    Ok(())
}

#[cold]
pub(super) fn unwritable(what: &str, name: &str, why: Unwritable) -> CodecError {
    let why = match why {
        Unwritable::Type(datatype) => format!("is {datatype}, which has no JSON form"),
        Unwritable::NotFinite => "holds NaN or an infinity, which JSON lacks".to_owned(),
        Unwritable::NotUtf8 => "holds byte strings that are not UTF-8".to_owned(),
    };
    let remedy = if what == "output" { ": ask for it with binary_data" } else { ": send it as binary data" };
    CodecError::Invalid(format!("{what} {name:?} {why}{remedy}"))
}
