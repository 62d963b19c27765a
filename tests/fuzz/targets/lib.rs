//! The gateway's readers of bytes from outside, compiled from its own sources without the rest of the gateway.

extern crate self as windrose_sandbox;

/// Stands for the sandbox's type of this name.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

#[path = "../../../gateway/sandbox/src/limits.rs"]
mod limits;
pub use limits::{Grants, Limits};

#[path = "../../../gateway/src/http/oip/mod.rs"]
pub mod oip;
#[path = "../../../gateway/src/request.rs"]
pub mod request;

pub mod body;
pub mod control;
pub mod head;

/// The configuration's part that the manifest names.
pub mod config {
    pub mod fleet {
        use windrose_route::Jurisdiction;

        /// As the function of this name there, which stands among what reads files.
        pub fn jurisdictions(names: &[String]) -> Result<Vec<Jurisdiction>, String> {
            names.iter().map(|name| Jurisdiction::new(name).map_err(|e| e.to_string())).collect()
        }
    }
}

/// The order of versions, which reading what is stored does not depend on.
mod snapshot {
    pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
        a.cmp(b)
    }
}

use bytes::Bytes;

/// Decodes a body in every way there is; what was accepted keeps its promises and survives being written again.
pub fn check(body: &Bytes, json_length: Option<usize>) {
    if let Ok((envelope, response)) = oip::decode_response(body, json_length) {
        let format = oip::AnswerFormat { binary: true, outputs: vec![] };
        let encoded = oip::encode_response(&envelope, &response, &format).expect("binary data holds everything");
        let length = encoded.json.len();
        let (again, outputs) = oip::decode_response(&encoded.into_bytes(), Some(length)).expect("it was just written");
        assert_eq!(again, envelope);
        same(&outputs.outputs, &response.outputs);
    }
    let Ok(mut decoded) = oip::decode_request(body, json_length, &mut |_| true) else { return };
    let request = &mut decoded.request;
    // What the parameters meant was taken out of them, except for what only an answer may hold.
    request.parameters.retain(|(name, _)| name != "timeout" && name != "binary_data_output");
    for binary in [false, true] {
        let Ok(encoded) = oip::encode_request(request, binary) else {
            assert!(!binary, "binary data holds everything");
            continue;
        };
        let length = encoded.json.len();
        let again = oip::decode_request(&encoded.into_bytes(), Some(length), &mut |_| true)
            .expect("it was just written")
            .request;
        same(&again.inputs, &request.inputs);
        assert_eq!((again.id, again.outputs), (request.id.clone(), request.outputs.clone()));
    }
}

/// By memory: 0 is not -0.
fn same(a: &[(String, windrose_engine::Tensor)], b: &[(String, windrose_engine::Tensor)]) {
    assert_eq!(a.len(), b.len());
    for ((name, tensor), (other_name, other)) in a.iter().zip(b) {
        assert_eq!((name, tensor.datatype(), tensor.shape()), (other_name, other.datatype(), other.shape()));
        assert_eq!(tensor.data(), other.data());
    }
}
