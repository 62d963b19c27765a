use bytes::Bytes;
use half::{bf16, f16};
use proptest::prelude::*;
use windrose_engine::{DataType, Tensor};

use super::*;
use crate::request::Parameter;

fn decode(json: &str) -> Result<Decoded, CodecError> {
    decode_request(&Bytes::copy_from_slice(json.as_bytes()), None, &mut |_| true)
}

/// The error of a request with this one input object.
fn input_error(input: &str) -> String {
    decode(&format!("{{\"inputs\":[{input}]}}")).expect_err(input).to_string()
}

fn input(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}"#)
}

fn tensor(datatype: &str, shape: &str, data: &str) -> Tensor {
    let decoded = decode(&format!("{{\"inputs\":[{}]}}", input(datatype, shape, data))).unwrap();
    decoded.request.inputs.into_iter().next().unwrap().1
}

#[test]
fn a_request_with_everything_decodes() {
    let decoded = decode(
        r#" {"id":"7","extra":{"deep":[1,{"x":null}]},
            "parameters":{"timeout":1500,"binary_data_output":true,"p":"t","q":2,"r":0.5,"s":false,"n":null},
            "inputs":[{"data":[[1,2],[3,4.5]],"name":"a","shape":[2,2],"datatype":"FP32","unknown":[]},
                      {"name":"b","shape":[1],"datatype":"BYTES","data":["\u00e9\n"]}],
            "outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z"}]} "#,
    )
    .unwrap();
    let request = &decoded.request;
    assert_eq!(request.id.as_deref(), Some("7"));
    assert_eq!(request.inputs[0].1.values::<f32>().unwrap().as_ref(), [1.0, 2.0, 3.0, 4.5]);
    assert_eq!(request.inputs[1].1.strings().collect::<Vec<_>>(), ["é\n".as_bytes()]);
    assert_eq!(request.outputs, ["y", "z"]);
    assert_eq!(
        request.parameters,
        [
            ("p".to_owned(), Parameter::Text("t".to_owned())),
            ("q".to_owned(), Parameter::Integer(2)),
            ("r".to_owned(), Parameter::Number(0.5)),
            ("s".to_owned(), Parameter::Boolean(false)),
        ]
    );
    assert_eq!(decoded.timeout, Some(Duration::from_micros(1500)));
    assert!(!decoded.format.is_binary("y") && decoded.format.is_binary("z"));
}

#[test]
fn data_may_be_flat_nested_or_scalar() {
    for data in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", " [ [ 1 , 2,3 ] ,\n[4,5,6]\t]"] {
        assert_eq!(tensor("INT64", "[2,3]", data).values::<i64>().unwrap().as_ref(), [1, 2, 3, 4, 5, 6]);
    }
    assert_eq!(tensor("INT8", "[]", "5").values::<i8>().unwrap().as_ref(), [5]);
    assert_eq!(tensor("INT8", "[]", "[5]").values::<i8>().unwrap().as_ref(), [5]);
    assert_eq!(tensor("INT8", "[0,3]", "[]").len(), 0);
    assert_eq!(tensor("INT8", "[2,0]", "[[],[]]").len(), 0);
    assert_eq!(tensor("BOOL", "[2]", "[true,false]").data().as_ref(), [1, 0]);
}

#[test]
fn bad_data_names_the_field() {
    let cases = [
        (input("FP32", "[2]", "[1,2,3]"), "inputs[0].data: \"x\" holds more elements than the 2"),
        (input("FP32", "[2]", "[1]"), "inputs[0].data: \"x\" holds 1 elements"),
        (input("FP32", "[2,2]", "[[1,2],[3]]"), "inputs[0].data: \"x\" has an array of 1"),
        (input("FP32", "[2,2]", "[[1,2],3,4]"), "ragged"),
        (input("FP32", "[2,2]", "[1,2,[3,4]]"), "ragged"),
        (input("FP32", "[2,1]", "[[],[1,2]]"), "\"x\" has an array of 2"),
        (input("FP32", "[1,2,1]", "[[1,2]]"), "neither flat nor"),
        (input("FP32", "[2]", "[[1,2]]"), "nests deeper"),
        (input("FP32", "[2]", "7"), "is not an array"),
        (input("FP32", "[1]", "[\"a\"]"), "element 0 is not a number"),
        (input("FP32", "[2]", "[1,null]"), "element 1 is not a number"),
        (input("FP32", "[1]", "[NaN]"), "element 0 is not a finite FP32"),
        (input("FP32", "[1]", "[-Infinity]"), "element 0 is not a finite FP32"),
        (input("FP32", "[1]", "[1e39]"), "element 0 is not a finite FP32"),
        (input("FP64", "[1]", "[1e400]"), "element 0 is not a finite FP64"),
        (input("UINT8", "[2]", "[1,256]"), "element 1 is out of range for UINT8"),
        (input("INT32", "[1]", "[1.5]"), "element 0 is not an integer"),
        (input("BOOL", "[1]", "[1]"), "element 0 is not true or false"),
        (input("BYTES", "[1]", "[1]"), "element 0 is not a string"),
        (input("FP16", "[1]", "[1]"), "FP16 has no JSON form"),
        (input("BF16", "[1]", "[1]"), "BF16 has no JSON form"),
        (input("FP8", "[1]", "[1]"), "inputs[0].datatype: \"FP8\" is not a data type"),
        (input("FP32", "[-1]", "[1]"), "inputs[0].shape: dimension 0 is not a size"),
        (input("FP32", "[1.5]", "[1]"), "inputs[0].shape: dimension 0 is not a size"),
        (input("FP32", "[\"1\"]", "[1]"), "inputs[0].shape: dimension 0 is not a size"),
        (input("FP32", "5", "[1]"), "inputs[0].shape: is not an array"),
        (
            input("FP32", "[4294967295,4294967295]", "[1]"),
            "inputs[0].shape: \"x\" has too many elements with [4294967295, 4294967295]",
        ),
        (input("BYTES", "[8589934592,0]", "[]"), "inputs[0].shape: dimension 0 is over 4294967295"),
        (input("FP32", "[0,4294967296]", "[]"), "inputs[0].shape: dimension 1 is over 4294967295"),
        (input("FP32", "[99999999999999999999]", "[1]"), "inputs[0].shape: dimension 0 is not a size"),
        (r#"{"datatype":"FP32","shape":[1],"data":[1]}"#.to_owned(), "inputs[0].name: is missing"),
        (r#"{"name":"x","shape":[1],"data":[1]}"#.to_owned(), "inputs[0].datatype: is missing"),
        (r#"{"name":"x","datatype":"FP32","data":[1]}"#.to_owned(), "inputs[0].shape: is missing"),
        (r#"{"name":"x","datatype":"FP32","shape":[1]}"#.to_owned(), "inputs[0].data: is missing"),
        (r#"{"name":"x","name":"y"}"#.to_owned(), "inputs[0].name: appears twice"),
        (r#"{"name":1}"#.to_owned(), "inputs[0].name: is not a string"),
        (r#"{"parameters":{"a":[1]}}"#.to_owned(), "inputs[0].parameters.a: is not a string, a number or a boolean"),
    ];
    for (text, expected) in cases {
        let message = input_error(&text);
        assert!(message.contains(expected), "{text}\n  gave {message:?}\n  not  {expected:?}");
    }
}

#[test]
fn bad_envelopes_name_the_field() {
    let x = input("FP32", "[1]", "[1]");
    let cases = [
        ("{}".to_owned(), "inputs: is missing"),
        ("".to_owned(), "request: malformed JSON"),
        ("[]".to_owned(), "request: is not an object"),
        ("{\"inputs\":[".to_owned(), "inputs[0]: malformed JSON: the text ends too early"),
        ("{\"inputs\":{}}".to_owned(), "inputs: is not an array"),
        (format!("{{\"inputs\":[{x},{x}]}}"), "inputs[1].name: \"x\" appears twice"),
        (format!("{{\"inputs\":[{x}],\"inputs\":[{x}]}}"), "inputs: appears twice"),
        (format!("{{\"inputs\":[{x}]}} x"), "request: malformed JSON: there is text after"),
        (format!("{{\"id\":5,\"inputs\":[{x}]}}"), "id: is not a string"),
        (format!("{{\"inputs\":[{x}],\"outputs\":[{{}}]}}"), "outputs[0].name: is missing"),
        (
            format!("{{\"inputs\":[{x}],\"outputs\":[{{\"name\":\"y\"}},{{\"name\":\"y\"}}]}}"),
            "outputs[1].name: \"y\" appears twice",
        ),
        (
            format!("{{\"inputs\":[{x}],\"outputs\":[{{\"name\":\"y\",\"parameters\":{{\"binary_data\":1}}}}]}}"),
            "outputs[0].parameters.binary_data: is not a boolean",
        ),
        (
            format!("{{\"inputs\":[{x}],\"outputs\":[{{\"name\":\"y\",\"parameters\":{{\"classification\":3}}}}]}}"),
            "outputs[0].parameters.classification: is not served",
        ),
        (format!("{{\"inputs\":[{x}],\"parameters\":{{\"timeout\":-1}}}}"), "parameters.timeout: is not a number"),
        (format!("{{\"inputs\":[{x}],\"parameters\":{{\"timeout\":\"1\"}}}}"), "parameters.timeout: is not a number"),
        (format!("{{\"inputs\":[{x}],\"parameters\":{{\"a\":1,\"a\":2}}}}"), "parameters.a: appears twice"),
        (
            format!("{{\"inputs\":[{x}],\"deep\":{}}}", "[".repeat(100_000)),
            "deep: malformed JSON: arrays and objects nest too deeply",
        ),
        (
            format!("{{\"inputs\":[{}]}}", input("FP32", "[1]", &"[".repeat(100_000))),
            "inputs[0].data: \"x\" nests deeper",
        ),
    ];
    for (text, expected) in cases {
        let message = decode(&text).expect_err(&text).to_string();
        assert!(message.contains(expected), "{text:.200}\n  gave {message:?}\n  not  {expected:?}");
    }
}

/// A request with one binary input of `size` bytes by its own word.
fn binary_request(size: &str, shape: &str, datatype: &str, data: &[u8]) -> (Bytes, usize) {
    let json = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"parameters":{{"binary_data_size":{size}}}}}]}}"#
    );
    let mut body = json.clone().into_bytes();
    body.extend_from_slice(data);
    (body.into(), json.len())
}

#[test]
fn binary_tensors_are_slices_of_the_body() {
    let (body, length) = binary_request("8", "[2]", "FP32", &[0, 0, 128, 63, 0, 0, 0, 64]);
    let decoded = decode_request(&body, Some(length), &mut |_| true).unwrap();
    let tensor = &decoded.request.inputs[0].1;
    assert_eq!(tensor.values::<f32>().unwrap().as_ref(), [1.0, 2.0]);
    assert!(body.as_ptr_range().contains(&tensor.data().as_ptr()));
}

#[test]
fn bad_binary_data_names_the_field() {
    let cases: [(&str, &str, &str, &[u8], &str); 11] = [
        ("8", "[2]", "FP32", &[0; 7], "inputs[0].parameters.binary_data_size: 8 for \"x\", and only 7 bytes"),
        ("8", "[2]", "FP32", &[0; 9], "body: 1 bytes of binary data are left over"),
        ("4", "[2]", "FP32", &[0; 4], "inputs[0].data: \"x\" FP32 of shape [2] takes 8 bytes, not 4"),
        ("9223372036854775807", "[2]", "FP32", &[0; 8], "inputs[0].parameters.binary_data_size"),
        ("18446744073709551615", "[2]", "FP32", &[0; 8], "inputs[0].parameters.binary_data_size: is not a size"),
        ("-1", "[2]", "FP32", &[0; 8], "inputs[0].parameters.binary_data_size: is not a size"),
        ("\"8\"", "[2]", "FP32", &[0; 8], "inputs[0].parameters.binary_data_size: is not a size"),
        ("8", "[4611686018427387904,4]", "FP32", &[0; 8], "inputs[0].shape"),
        ("2", "[2]", "BOOL", &[1, 2], "inputs[0].data: \"x\" a BOOL element is 2"),
        ("6", "[1]", "BYTES", &[3, 0, 0, 0, b'a', b'b'], "inputs[0].data: \"x\" byte string 0 of 1 is truncated"),
        ("8", "[1]", "BYTES", &[1, 0, 0, 0, b'a', b'b', 0, 0], "inputs[0].data: \"x\" byte string"),
    ];
    for (size, shape, datatype, data, expected) in cases {
        let (body, length) = binary_request(size, shape, datatype, data);
        let message = decode_request(&body, Some(length), &mut |_| true).expect_err(expected).to_string();
        assert!(message.contains(expected), "gave {message:?}\n not {expected:?}");
    }
    let (body, length) = binary_request("8", "[2]", "FP32", &[0; 8]);
    let cases = [
        (body.len() + 1, "Inference-Header-Content-Length"),
        (usize::MAX, "Inference-Header-Content-Length"),
        (0, "request: malformed JSON"),
        (length - 1, "malformed JSON"),
        (length + 1, "only 7 bytes of binary data are left"),
        (body.len(), "binary_data_size"),
    ];
    for (header, expected) in cases {
        let message = decode_request(&body, Some(header), &mut |_| true).expect_err(expected).to_string();
        assert!(message.contains(expected), "gave {message:?}\n not {expected:?}");
    }
    let both =
        r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4}}]}"#;
    assert!(decode(both).unwrap_err().to_string().contains("inputs[0].data: \"x\" has it beside binary_data_size"));
}

#[test]
fn what_json_lacks_is_refused_when_it_is_written() {
    let format = AnswerFormat::default();
    let cases = [
        (Tensor::from_vec([1], vec![f32::NAN]).unwrap(), "output \"y\" holds NaN"),
        (Tensor::from_vec([1], vec![f64::INFINITY]).unwrap(), "output \"y\" holds NaN"),
        (Tensor::from_vec([1], vec![f16::ONE]).unwrap(), "output \"y\" is FP16"),
        (Tensor::from_vec([1], vec![bf16::ONE]).unwrap(), "output \"y\" is BF16"),
        (Tensor::from_strings([1], &[b"\xff"]).unwrap(), "output \"y\" holds byte strings"),
    ];
    for (tensor, expected) in cases {
        let response = Response { outputs: vec![("y".to_owned(), tensor)], parameters: vec![] };
        let message = encode_response(&Envelope::default(), &response, &format).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let response = Response { outputs: vec![], parameters: vec![("p".to_owned(), Parameter::Number(number))] };
        let message = encode_response(&Envelope::default(), &response, &format).unwrap_err().to_string();
        assert_eq!(message, "parameter \"p\" is NaN or an infinity, which JSON lacks");
    }
    assert!(format.check("y", DataType::Fp16).is_err());
    assert!(AnswerFormat { binary: true, outputs: vec![] }.check("y", DataType::Fp16).is_ok());
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let shape = proptest::collection::vec(0usize..5, 0..4);
    (shape, 0..DataType::ALL.len(), any::<u64>()).prop_map(|(shape, which, seed)| {
        let count: usize = shape.iter().product();
        let mut state = seed | 1;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 3
        };
        let datatype = DataType::ALL[which];
        let data: Vec<u8> = match datatype {
            DataType::Bool => (0..count).map(|_| (next() & 1) as u8).collect(),
            DataType::Bytes => (0..count)
                .flat_map(|_| {
                    let text: String =
                        (0..next() % 5).filter_map(|_| char::from_u32((next() % 0x11_0000) as u32)).collect();
                    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
                })
                .collect(),
            DataType::Fp32 => (0..count).flat_map(|_| finite32(next()).to_le_bytes()).collect(),
            DataType::Fp64 => (0..count).flat_map(|_| finite64(next()).to_le_bytes()).collect(),
            other => (0..count * other.width().unwrap_or(1)).map(|_| next() as u8).collect(),
        };
        Tensor::new(datatype, shape, data.into()).unwrap()
    })
}

fn finite32(bits: u64) -> f32 {
    let value = f32::from_bits(bits as u32);
    if value.is_finite() { value } else { 0.5 }
}

fn finite64(bits: u64) -> f64 {
    let value = f64::from_bits(bits.rotate_left(7));
    if value.is_finite() { value } else { 0.5 }
}

/// Compares by memory: -0 is not 0.
fn same(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((n, t), (m, u))| {
            n == m && t.datatype() == u.datatype() && t.shape() == u.shape() && t.data() == u.data()
        })
}

#[test]
fn names_have_a_bound_and_errors_show_only_their_beginning() {
    let named = |name: &str| format!(r#"{{"name":"{name}","datatype":"INT8","shape":[1],"data":[1]}}"#);
    let (fits, long, longer) = ("n".repeat(1024), "n".repeat(1025), "n".repeat(1 << 20));
    let inputs = |name: &str| format!("{{\"inputs\":[{}]}}", named(name));
    assert_eq!(decode(&inputs(&fits)).unwrap().request.inputs[0].0, fits);
    let x = named("x");
    let cases = [
        (inputs(&long), "inputs[0].name: "),
        (inputs(&longer), "inputs[0].name: "),
        (format!(r#"{{"inputs":[{x}],"outputs":[{{"name":"{long}"}}]}}"#), "outputs[0].name: "),
        (format!(r#"{{"inputs":[{x}],"parameters":{{"{long}":1}}}}"#), "parameters: "),
        (inputs(r#"x","parameters":{"LONG":null},"k":""#).replace("LONG", &long), "inputs[0].parameters: "),
    ];
    for (body, field) in cases {
        let message = decode(&body).unwrap_err().to_string();
        assert!(
            message.starts_with(field) && message.ends_with("is longer than the 1024 bytes of a name"),
            "{message}"
        );
    }
    let name = fits.as_str();
    let cases = [
        format!("{{\"inputs\":[{},{}]}}", named(name), named(name)),
        format!(r#"{{"inputs":[{x}],"outputs":[{{"name":"{name}"}},{{"name":"{name}"}}]}}"#),
        format!(r#"{{"inputs":[{x}],"parameters":{{"{name}":1,"{name}":2}}}}"#),
        inputs(name).replace("[1]", "[2]"),
        inputs(name).replace("\"data\":[1]", "\"parameters\":{\"binary_data_size\":9}"),
        inputs(name).replace("\"data\":[1]", "\"data\":[1],\"parameters\":{\"binary_data_size\":9}"),
        inputs(name).replace(",\"data\":[1]", ""),
        inputs(name).replace("\"data\":[1]", "\"data\":[x]"),
        inputs(name).replace("\"shape\":[1]", "\"shape\":[4611686018427387904,4611686018427387904]"),
        format!(r#"{{"{longer}":[x]}}"#),
        format!(r#"{{"inputs":[{{"{longer}":[x]}}]}}"#),
    ];
    for body in cases {
        let message = decode(&body).unwrap_err().to_string();
        assert!(message.len() < 300 && message.matches('n').count() < 128, "{message}");
    }
}

#[test]
fn where_there_is_no_memory_nothing_is_parsed() {
    let numbers = format!("{{\"inputs\":[{}]}}", input("INT64", "[3]", "[1,2,3]"));
    let strings = format!("{{\"inputs\":[{}]}}", input("BYTES", "[2]", r#"["ab","\u00e9"]"#));
    for (body, most) in [(numbers, 24), (strings, 24)] {
        let body = Bytes::from(body);
        let mut asked = Vec::new();
        let refused = decode_request(&body, None, &mut |bytes| {
            asked.push(bytes);
            false
        });
        assert_eq!(refused.unwrap_err(), CodecError::NoMemory);
        assert!(asked.len() == 1 && asked[0] <= most, "{asked:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn tensors_take_no_more_memory_than_was_asked_for(tensors in proptest::collection::vec(any_tensor(), 1..4)) {
        let inputs: Vec<_> = tensors.into_iter().enumerate().map(|(i, t)| (format!("t{i}"), t)).collect();
        let request = Request { id: None, inputs, outputs: vec![], parameters: vec![] };
        let Ok(encoded) = encode_request(&request, false) else { return Ok(()) };
        let mut asked = Vec::new();
        let decoded = decode_request(&encoded.into_bytes(), None, &mut |bytes| {
            asked.push(bytes);
            true
        });
        for ((name, tensor), asked) in decoded.unwrap().request.inputs.iter().zip(asked) {
            prop_assert!(tensor.data().len() <= asked, "{name}: {} of {asked}", tensor.data().len());
            if tensor.datatype() != DataType::Bytes {
                prop_assert_eq!(tensor.data().len(), asked);
            }
        }
    }

    #[test]
    fn requests_and_answers_round_trip(
        tensors in proptest::collection::vec(any_tensor(), 1..4), binary: bool, id in proptest::option::of(".{0,8}"),
    ) {
        let named: Vec<(String, Tensor)> =
            tensors.into_iter().enumerate().map(|(i, t)| (format!("t\"{i}"), t)).collect();
        let half = named.iter().any(|(_, t)| matches!(t.datatype(), DataType::Fp16 | DataType::Bf16));
        prop_assume!(binary || !half);
        let request = Request { id: id.clone(), inputs: named.clone(), outputs: vec!["y".to_owned()], parameters: vec![] };
        let encoded = encode_request(&request, binary).unwrap();
        let length = (!encoded.binary.is_empty()).then_some(encoded.json.len());
        let decoded = decode_request(&encoded.into_bytes(), length, &mut |_| true).unwrap();
        prop_assert!(same(&decoded.request.inputs, &named));
        prop_assert_eq!(&decoded.request.id, &id);
        prop_assert_eq!(decoded.format.binary, binary);

        let envelope = Envelope { model_name: "m".to_owned(), model_version: Some("1".to_owned()), id };
        let response = Response { outputs: named.clone(), parameters: vec![("p".to_owned(), Parameter::Number(0.1))] };
        let encoded = encode_response(&envelope, &response, &decoded.format).unwrap();
        let length = (!encoded.binary.is_empty()).then_some(encoded.json.len());
        serde_json::from_slice::<serde_json::Value>(&encoded.json).unwrap();
        let (read, answer) = decode_response(&encoded.into_bytes(), length).unwrap();
        prop_assert_eq!(read, envelope);
        prop_assert!(same(&answer.outputs, &named));
        prop_assert_eq!(answer.parameters, response.parameters);
    }

    #[test]
    fn mutated_bodies_never_panic(
        tensors in proptest::collection::vec(any_tensor(), 1..3), binary: bool,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6), header: Option<u16>,
    ) {
        let named: Vec<(String, Tensor)> = tensors.into_iter().enumerate().map(|(i, t)| (format!("t{i}"), t)).collect();
        let request = Request { id: None, inputs: named, outputs: vec![], parameters: vec![] };
        let Ok(encoded) = encode_request(&request, binary) else { return Ok(()) };
        let length = header.map(usize::from).or((!encoded.binary.is_empty()).then_some(encoded.json.len()));
        let mut body = encoded.into_bytes().to_vec();
        for (index, byte, kind) in edits {
            let at = index.index(body.len().max(1));
            match kind {
                0 if at < body.len() => body[at] = byte,
                1 => body.insert(at.min(body.len()), byte),
                2 if at < body.len() => { body.remove(at); }
                _ => body.truncate(at.max(1)),
            }
        }
        let body = Bytes::from(body);
        if let Ok(decoded) = decode_request(&body, length, &mut |_| true) {
            // What was accepted holds together.
            for (_, tensor) in &decoded.request.inputs {
                let again = Tensor::new(tensor.datatype(), tensor.shape(), tensor.data().clone());
                prop_assert_eq!(again.map(|t| t.len()), Ok(tensor.len()));
            }
        }
        let _ = decode_response(&body, length);
    }
}
