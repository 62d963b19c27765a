//! FP16 and BF16, which the protocol has no JSON for: numbers that people write and read, binary data on the way.

use bytes::Bytes;
use half::{bf16, f16};
use serde_json::{Value, json};
use windrose_engine::{DataType, Tensor};

use super::{AnswerFormat, CodecError, decode_response, encode_response};

/// Whether a datatype, as the protocol names it, is one of the two.
pub fn is_half(datatype: &str) -> bool {
    matches!(datatype, "FP16" | "BF16")
}

/// The elements of a tensor as binary data, each rounded to the nearest that the type has.
///
/// # Errors
/// When an element is no number, or larger than the type holds.
pub fn bytes(tensor: &str, datatype: &str, numbers: &[Value]) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(numbers.len() * 2);
    for (index, number) in numbers.iter().enumerate() {
        let wrong = |what: &str| CodecError::Invalid(format!("{tensor}: element {index}, {number}, is {what}"));
        let number = number.as_f64().ok_or_else(|| wrong("not a number"))?;
        let (bits, is_finite) = match datatype {
            "FP16" => (f16::from_f64(number).to_bits(), f16::from_f64(number).is_finite()),
            _ => (bf16::from_f64(number).to_bits(), bf16::from_f64(number).is_finite()),
        };
        if !is_finite {
            return Err(wrong(&format!("out of range for {datatype}")));
        }
        bytes.extend_from_slice(&bits.to_le_bytes());
    }
    Ok(bytes)
}

/// What a tensor list of a message is called.
#[derive(Clone, Copy, Debug)]
pub enum List {
    /// That of a request.
    Inputs,
    /// That of an answer.
    Outputs,
}

/// Moves the numbers of such tensors behind the JSON of a message that has nothing behind it yet. Returns the binary
/// data; nothing where the message has no such tensor.
///
/// # Errors
/// As [`bytes`].
pub fn move_behind(message: &mut Value, list: List) -> Result<Vec<u8>, CodecError> {
    let list = match list {
        List::Inputs => "inputs",
        List::Outputs => "outputs",
    };
    let mut binary = Vec::new();
    for tensor in message.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(tensor) = tensor.as_object_mut() else { continue };
        let Some(datatype) = tensor.get("datatype").and_then(Value::as_str).filter(|d| is_half(d)) else { continue };
        let name = tensor.get("name").and_then(Value::as_str).unwrap_or("?");
        let Some(data) = tensor.get("data") else { continue };
        let mut numbers = Vec::new();
        flatten(data, &mut numbers);
        let data = bytes(name, datatype, &numbers)?;
        let parameters = tensor.entry("parameters").or_insert_with(|| json!({}));
        let Some(parameters) = parameters.as_object_mut() else { continue };
        parameters.insert("binary_data_size".into(), json!(data.len()));
        tensor.remove("data");
        binary.extend(data);
    }
    Ok(binary)
}

/// A message that somebody wrote, as it travels, and how much of it is then JSON, where that is not all.
///
/// # Errors
/// As [`bytes`]. What is no JSON is its decoder's to refuse.
pub fn as_sent(written: &Bytes, list: List) -> Result<(Bytes, Option<usize>), CodecError> {
    let unchanged = (written.clone(), None);
    // Hardly any message names such a type: those that do not are read once.
    if !written.windows(4).any(|word| word == b"FP16" || word == b"BF16") {
        return Ok(unchanged);
    }
    let Ok(mut message) = serde_json::from_slice::<Value>(written) else { return Ok(unchanged) };
    let binary = move_behind(&mut message, list)?;
    if binary.is_empty() {
        return Ok(unchanged);
    }
    let json = message.to_string().into_bytes();
    let length = json.len();
    Ok(([json, binary].concat().into(), Some(length)))
}

fn flatten(value: &Value, flat: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, flat)),
        other => flat.push(other.clone()),
    }
}

/// Asks for such outputs as binary data, where the model declares some and the request does not say how it wants them.
/// Returns whether the request was changed.
pub fn ask_for_outputs(request: &mut Value, metadata: &Value) -> bool {
    let declared = metadata["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_half_output = |name: &Value| {
        declared.iter().any(|output| output["name"] == *name && output["datatype"].as_str().is_some_and(is_half))
    };
    if !declared.iter().any(|output| is_half_output(&output["name"])) || !request.is_object() {
        return false;
    }
    if request["outputs"].as_array().is_none_or(Vec::is_empty) {
        request["outputs"] = declared.iter().map(|output| json!({ "name": output["name"] })).collect();
    }
    for output in request["outputs"].as_array_mut().into_iter().flatten() {
        let is_silent = output["parameters"].get("binary_data").is_none();
        if is_silent && is_half_output(&output["name"]) {
            output["parameters"]["binary_data"] = json!(true);
        }
    }
    true
}

/// An answer as JSON, with numbers in the place of its binary data. `json_length` is how much of the body is JSON already.
///
/// # Errors
/// When the body is no answer, or holds what JSON has no form for: numbers that are not finite, bytes that are no text.
pub fn answer(body: &Bytes, json_length: Option<usize>) -> Result<Value, CodecError> {
    let strange = |error: &dyn std::fmt::Display| CodecError::Malformed(format!("strange answer: {error}"));
    if json_length.is_none() {
        return serde_json::from_slice(body)
            .map_err(|error| CodecError::Malformed(format!("the answer is not JSON: {error}")));
    }
    let (envelope, mut response) = decode_response(body, json_length).map_err(|error| strange(&error))?;
    let datatypes: Vec<DataType> = response.outputs.iter().map(|(_, tensor)| tensor.datatype()).collect();
    for (_, tensor) in &mut response.outputs {
        if let Some(wide) = widened(tensor) {
            *tensor = wide;
        }
    }
    let encoded = encode_response(&envelope, &response, &AnswerFormat::default())?;
    let mut value: Value = serde_json::from_slice(&encoded.json).map_err(|error| strange(&error))?;
    for (output, datatype) in value["outputs"].as_array_mut().into_iter().flatten().zip(datatypes) {
        output["datatype"] = json!(datatype.name());
    }
    Ok(value)
}

/// The same numbers as FP32, which holds each of them.
fn widened(tensor: &Tensor) -> Option<Tensor> {
    let values: Vec<f32> = match tensor.datatype() {
        DataType::Fp16 => tensor.values::<f16>()?.iter().map(|value| value.to_f32()).collect(),
        DataType::Bf16 => tensor.values::<bf16>()?.iter().map(|value| value.to_f32()).collect(),
        _ => return None,
    };
    Tensor::from_vec(tensor.shape(), values).ok()
}

#[cfg(test)]
mod tests {
    use super::super::decode_request;
    use super::*;

    fn halves(datatype: &str, numbers: Value) -> Result<Vec<u8>, String> {
        bytes("x", datatype, numbers.as_array().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_are_rounded_and_never_become_infinite() {
        assert_eq!(halves("FP16", json!([1, -65504, 0.1])).unwrap(), [0x00, 0x3c, 0xff, 0xfb, 0x66, 0x2e]);
        assert_eq!(halves("BF16", json!([1, 3.140625])).unwrap(), [0x80, 0x3f, 0x49, 0x40]);
        assert!(halves("FP16", json!([1, 65520])).unwrap_err().contains("element 1, 65520, is out of range for FP16"));
        assert!(halves("BF16", json!([65520])).is_ok());
        assert!(halves("BF16", json!([1e39])).unwrap_err().contains("out of range for BF16"));
        assert!(halves("FP16", json!(["1"])).unwrap_err().contains("not a number"));
    }

    #[test]
    fn only_halves_move_behind_the_json() {
        let mut request = json!({ "inputs": [
            { "name": "a", "datatype": "FP32", "shape": [1], "data": [1] },
            { "name": "b", "datatype": "FP16", "shape": [2, 1], "data": [[1], [2]], "parameters": { "p": 1 } },
            { "name": "c", "datatype": "BF16", "shape": [1], "data": [1] },
        ]});
        assert_eq!(move_behind(&mut request, List::Inputs).unwrap(), [0x00, 0x3c, 0x00, 0x40, 0x80, 0x3f]);
        let expected = json!({ "inputs": [
            { "name": "a", "datatype": "FP32", "shape": [1], "data": [1] },
            { "name": "b", "datatype": "FP16", "shape": [2, 1], "parameters": { "p": 1, "binary_data_size": 4 } },
            { "name": "c", "datatype": "BF16", "shape": [1], "parameters": { "binary_data_size": 2 } },
        ]});
        assert_eq!(request, expected);
        assert!(move_behind(&mut request, List::Inputs).unwrap().is_empty() && request == expected);
    }

    #[test]
    fn what_somebody_wrote_is_decoded_as_it_travels() {
        let tensor = |name: &str| json!({ "name": name, "datatype": "FP16", "shape": [2], "data": [1, -2] });
        let request = Bytes::from(json!({ "inputs": [tensor("x")] }).to_string());
        let (body, json_length) = as_sent(&request, List::Inputs).unwrap();
        let decoded = decode_request(&body, json_length, &mut |_| true).unwrap().request;
        assert_eq!(decoded.inputs[0].1.data()[..], [0x00, 0x3c, 0x00, 0xc0]);
        let answer = Bytes::from(json!({ "outputs": [tensor("y")] }).to_string());
        let (body, json_length) = as_sent(&answer, List::Outputs).unwrap();
        let (_, decoded) = decode_response(&body, json_length).unwrap();
        assert_eq!(decoded.outputs[0].1.data()[..], [0x00, 0x3c, 0x00, 0xc0]);
        // What is as it travels already, and what its decoder refuses.
        let strange = json!({ "inputs": [tensor("x"), 7, { "datatype": "FP16", "data": [1], "parameters": 7 }] });
        assert!(as_sent(&strange.to_string().into(), List::Inputs).is_ok());
        for text in [r#"{"inputs": []}"#, "FP16", "[]", r#"{"inputs": [{"datatype": "FP16"}]}"#, ""] {
            assert_eq!(as_sent(&Bytes::from(text), List::Inputs).unwrap(), (Bytes::from(text), None), "{text}");
        }
        let large = json!({ "inputs": [{ "name": "x", "datatype": "FP16", "shape": [1], "data": [1e6] }] });
        let error = as_sent(&large.to_string().into(), List::Inputs).unwrap_err();
        assert!(error.to_string().starts_with("x: element 0") && matches!(error, CodecError::Invalid(_)), "{error}");
    }

    #[test]
    fn outputs_are_asked_for_as_the_model_declares_them() {
        let declared = json!({ "outputs": [{ "name": "y", "datatype": "FP16" }, { "name": "z", "datatype": "FP32" }] });
        let mut request = json!({ "inputs": [] });
        assert!(ask_for_outputs(&mut request, &declared));
        assert_eq!(
            request["outputs"],
            json!([{ "name": "y", "parameters": { "binary_data": true } }, { "name": "z" }])
        );
        let mut said = json!({ "outputs": [{ "name": "y", "parameters": { "binary_data": false } }] });
        let before = said.clone();
        ask_for_outputs(&mut said, &declared);
        assert_eq!(said, before);
        let mut other = json!({ "inputs": [] });
        assert!(!ask_for_outputs(&mut other, &json!({ "outputs": [{ "name": "z", "datatype": "FP32" }] })));
        assert_eq!(other, json!({ "inputs": [] }));
    }

    #[test]
    fn an_answer_with_binary_data_is_shown_as_numbers() {
        let json = br#"{"model_name":"m","outputs":[{"name":"y","datatype":"FP16","shape":[2],"parameters":{"binary_data_size":4}},{"name":"z","datatype":"INT32","shape":[1],"data":[7]}]}"#;
        let body: Bytes = [&json[..], &[0x00, 0x3c, 0x00, 0xc0]].concat().into();
        let value = answer(&body, Some(json.len())).unwrap();
        assert_eq!(value["outputs"][0], json!({ "name": "y", "datatype": "FP16", "shape": [2], "data": [1.0, -2.0] }));
        assert_eq!(value["outputs"][1]["data"], json!([7]));
        let infinite: Bytes = [&json[..], &[0x00, 0x7c, 0x00, 0xc0]].concat().into();
        assert!(answer(&infinite, Some(json.len())).is_err());
        assert!(answer(&body, Some(body.len() + 1)).is_err() && answer(&body, None).is_err());
    }
}
