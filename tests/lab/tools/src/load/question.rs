//! The requests, each with numbers of its own, so that an answer to another request is a wrong answer.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use memchr::memmem;

/// A request's body.
pub type Body = Full<Bytes>;

/// A request.
pub type Request = hyper::Request<Body>;

/// Numbers repeat after so many requests; all are exact in 32 bits with a half.
const NUMBERS: u64 = 1 << 20;

/// What is asked: the sum of two numbers, of a model that adds tensors (`models/test/add_fp32.onnx`).
pub struct Question {
    host: String,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    filler: String,
}

impl Question {
    /// Requests to a path, with further headers, and bodies that are filled up to so many bytes.
    pub fn new(host: &str, path: &str, headers: Vec<(HeaderName, HeaderValue)>, body_bytes: usize) -> Question {
        let question = Question { host: host.into(), path: path.into(), headers, filler: String::new() };
        let filler = "x".repeat(body_bytes.saturating_sub(question.body(0).len()));
        Question { filler, ..question }
    }

    /// The request with a number.
    pub fn request(&self, number: u64) -> Request {
        let mut request = Request::new(Full::new(Bytes::from(self.body(number))));
        *request.method_mut() = hyper::Method::POST;
        // A path that is no path is refused by the server, which the record then says.
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(host) = HeaderValue::from_str(&self.host) {
            headers.insert(HOST, host);
        }
        headers.extend(self.headers.iter().cloned());
        request
    }

    fn body(&self, number: u64) -> String {
        let number = number % NUMBERS;
        format!(
            r#"{{"id":"{}","inputs":[{{"name":"a","datatype":"FP32","shape":[1,2],"data":[{number},1]}},{{"name":"b","datatype":"FP32","shape":[1,2],"data":[0.5,2]}}]}}"#,
            self.filler
        )
    }

    /// Whether a body is the answer to the request with a number.
    pub fn is_right(&self, number: u64, body: &[u8]) -> bool {
        let first = (number % NUMBERS) as f64 + 0.5;
        numbers(body).is_some_and(|numbers| numbers == [first, 3.0])
    }
}

/// The numbers of the last `"data"` in an answer.
fn numbers(body: &[u8]) -> Option<Vec<f64>> {
    let after = memmem::rfind(body, b"\"data\":[")? + 8;
    let length = memchr::memchr(b']', &body[after..])?;
    let text = std::str::from_utf8(&body[after..after + length]).ok()?;
    text.split(',').map(|number| number.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(body_bytes: usize) -> Question {
        Question::new("gateway:8000", "/v2/models/add/infer", Vec::new(), body_bytes)
    }

    #[test]
    fn bodies_are_filled_up() {
        assert_eq!(question(600).body(7).len(), 600);
        assert!(question(0).body(7).contains(r#""data":[7,1]"#));
    }

    #[test]
    fn only_the_sum_is_right() {
        let right = br#"{"outputs":[{"name":"c","shape":[1,2],"datatype":"FP32","data":[7.5,3.0]}]}"#;
        assert!(question(0).is_right(7, right));
        assert!(question(0).is_right(7 + NUMBERS, right));
        assert!(!question(0).is_right(8, right), "the answer to another request");
        for wrong in [&b"{}"[..], b"", br#""data":[7.5]"#, br#""data":[7.5,3.0,1]"#, br#""data":[7.5,3.0"#] {
            assert!(!question(0).is_right(7, wrong), "{}", String::from_utf8_lossy(wrong));
        }
    }
}
