//! Everything that a caller can get wrong: the status, the kind, and that the message names the field.

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use windrose::http::HttpConfig;

use crate::server::Server;
use crate::setup::{Gateway, Model};

async fn gateway() -> Gateway {
    let config = HttpConfig { max_body: 1 << 20, ..HttpConfig::default() };
    Gateway::with(&[Model::new("two", "1", "two_in_two_out"), Model::new("add", "1", "add_int32")], config).await
}

fn input(name: &str, shape: Value, datatype: &str, data: Value) -> Value {
    json!({"name": name, "shape": shape, "datatype": datatype, "data": data})
}

fn pixels() -> Value {
    input("pixels", json!([1, 3]), "FP32", json!([1, 2, 3]))
}

fn labels() -> Value {
    input("labels", json!([1]), "INT64", json!([1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_inputs_are_named() {
    let gateway = gateway().await;
    let cases = [
        (json!([pixels()]), "input \"labels\" is missing"),
        (json!([]), "input \"pixels\" is missing"),
        (json!([pixels(), labels(), input("x", json!([1]), "FP32", json!([1]))]), "input \"x\" is not one"),
        (json!([pixels(), labels(), labels()]), "inputs[2].name: \"labels\" appears twice"),
        (json!([pixels(), input("labels", json!([1]), "INT32", json!([1]))]), "input \"labels\": datatype is INT32"),
        (json!([pixels(), input("labels", json!([1, 1]), "INT64", json!([1]))]), "input \"labels\": shape [1, 1]"),
        (json!([pixels(), input("labels", json!([2]), "INT64", json!([1, 2]))]), "input \"labels\": shape [2] has 2"),
        (json!([input("pixels", json!([1, 4]), "FP32", json!([1, 2, 3, 4])), labels()]), "input \"pixels\": shape"),
        (
            json!([input("pixels", json!([1, 3]), "FP32", json!([1, 2])), labels()]),
            "inputs[0].data: \"pixels\" holds 2",
        ),
        (json!([pixels(), input("labels", json!([1]), "INT64", json!(["1"]))]), "inputs[1].data: \"labels\" element 0"),
        (json!([pixels(), input("labels", json!([-1]), "INT64", json!([1]))]), "inputs[1].shape: dimension 0"),
        (json!([pixels(), input("labels", json!([1]), "INT65", json!([1]))]), "inputs[1].datatype: \"INT65\""),
        (json!([input("pixels", json!([1u64 << 40, 1u64 << 40]), "FP32", json!([])), labels()]), "inputs[0].shape"),
        (json!([{"name": "pixels", "shape": [1, 3], "datatype": "FP32"}, labels()]), "inputs[0].data: is missing"),
    ];
    for (inputs, expected) in cases {
        let answer = gateway.infer("two", json!({"inputs": inputs}).to_string()).await;
        let message = answer.error(400, "invalid_input");
        assert!(message.contains(expected), "{message:?} is not {expected:?}");
    }
    for (body, expected) in [(json!([]), "request"), (json!({"inputs": [7]}), "inputs[0]")] {
        let message = gateway.infer("two", body.to_string()).await.error(400, "invalid_input");
        assert_eq!(message, format!("{expected}: is not an object"));
    }
    let wide = json!({"inputs": [input("a", json!([1, 1]), "INT32", json!([2147483648u32])),
                                 input("b", json!([1, 1]), "INT32", json!([1]))]});
    let message = gateway.infer("add", wide.to_string()).await.error(400, "invalid_input");
    assert!(message.contains("inputs[0].data: \"a\" element 0 is out of range for INT32"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_outputs_and_parameters_are_named() {
    let gateway = gateway().await;
    let cases = [
        (json!([{"name": "none"}]), json!({}), "output \"none\" is not one of the model's: \"doubled\", \"next\""),
        (json!([{"name": "next"}, {"name": "next"}]), json!({}), "outputs[1].name: \"next\" appears twice"),
        (json!([{}]), json!({}), "outputs[0].name: is missing"),
        (
            json!([{"name": "next", "parameters": {"classification": 2}}]),
            json!({}),
            "outputs[0].parameters.classification",
        ),
        (json!([]), json!({"timeout": -5}), "parameters.timeout"),
        (json!([]), json!({"binary_data_output": 1}), "parameters.binary_data_output"),
        (json!([]), json!({"x": [1]}), "parameters.x"),
        (json!([]), json!([1]), "parameters: is not an object"),
        (json!([1]), json!({}), "outputs[0]: is not an object"),
        (json!([{"name": "next", "parameters": 1}]), json!({}), "outputs[0].parameters: is not an object"),
    ];
    for (outputs, parameters, expected) in cases {
        let body = json!({"inputs": [pixels(), labels()], "outputs": outputs, "parameters": parameters});
        let message = gateway.infer("two", body.to_string()).await.error(400, "invalid_input");
        assert!(message.contains(expected), "{message:?} is not {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_named() {
    let gateway = gateway().await;
    let nan = |value: &str| {
        format!(r#"{{"inputs":[{{"name":"pixels","shape":[1,3],"datatype":"FP32","data":[1,2,{value}]}}]}}"#)
    };
    let deep = format!("{{\"inputs\":[{}]}}", "[".repeat(100_000));
    let malformed: [(Bytes, &str); 7] = [
        ("".into(), "request: malformed JSON"),
        ("{\"inputs\":[".into(), "inputs[0]"),
        ("{\"inputs\":[{\"name\":\"\\ud800\"}]}".into(), "inputs[0].name"),
        (Bytes::from_static(b"{\"inputs\":[{\"name\":\"\xff\"}]}"), "inputs[0].name"),
        (deep.into(), "inputs[0]"),
        (nan("1.e5").into(), "inputs[0].data"),
        (
            format!("{} 1", json!({"inputs": [pixels(), labels()]})).into(),
            "request: malformed JSON: there is text after",
        ),
    ];
    for (body, expected) in malformed {
        let message = gateway.infer("two", body).await.error(400, "malformed");
        assert!(message.contains(expected), "{message:?} is not {expected:?}");
    }
    for number in ["NaN", "-Infinity", "1e39"] {
        let message = gateway.infer("two", nan(number)).await.error(400, "invalid_input");
        assert!(message.contains("inputs[0].data: \"pixels\" element 2 is not a finite FP32"), "{message}");
        // Before its type is known a number can only be looked at as JSON.
        if number != "1e39" {
            let early = format!(r#"{{"inputs":[{{"data":[1,2,{number}],"name":"pixels"}}]}}"#);
            let message = gateway.infer("two", early).await.error(400, "malformed");
            assert!(message.contains("inputs[0].data") && message.contains("not finite"), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_binary_data_is_named() {
    let gateway = gateway().await;
    let body = |size: u64, bytes: usize| {
        let labels =
            json!({"name": "labels", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": size}});
        let text = json!({"inputs": [pixels(), labels]}).to_string();
        let length = text.len();
        ([text.as_bytes(), &vec![0; bytes]].concat(), length)
    };
    let cases = [
        (8, 7, 0, "malformed", "inputs[1].parameters.binary_data_size: 8 for \"labels\""),
        (8, 9, 0, "malformed", "1 bytes of binary data are left over"),
        (4, 4, 0, "invalid_input", "inputs[1].data: \"labels\" INT64 of shape [1] takes 8 bytes, not 4"),
        (i64::MAX as u64, 8, 0, "malformed", "inputs[1].parameters.binary_data_size"),
        (u64::MAX, 8, 0, "invalid_input", "inputs[1].parameters.binary_data_size"),
        (8, 8, 1 << 20, "malformed", "Inference-Header-Content-Length"),
    ];
    for (size, bytes, beyond, kind, expected) in cases {
        let (body, length) = body(size, bytes);
        let length = (length + beyond).to_string();
        let answer = gateway.infer_with("two", body, &[("inference-header-content-length", &length)]).await;
        let message = answer.error(400, kind);
        assert!(message.contains(expected), "{message:?} is not {expected:?}");
    }
    for bad in ["x", "-1", "", "99999999999999999999999"] {
        let (body, _) = body(8, 8);
        let answer = gateway.infer_with("two", body, &[("inference-header-content-length", bad)]).await;
        assert!(answer.error(400, "malformed").contains("inference-header-content-length"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_are_refused() {
    let gateway = gateway().await;
    let large = vec![b' '; (1 << 20) + 1];
    let message = gateway.infer("two", large.clone()).await.error(413, "too_large");
    assert_eq!(message, "body: is over 1048576 bytes");
    // A client that sends everything before it reads gets the answer all the same, and not a reset.
    let larger = vec![b' '; 32 << 20];
    assert_eq!(gateway.infer("two", larger.clone()).await.error(413, "too_large"), message);
    gateway.infer("none", larger).await.error(404, "not_found");
    let bomb = zstd::encode_all(&vec![b' '; 1 << 28][..], 3).unwrap();
    assert!(bomb.len() < 100_000);
    let answer = gateway.infer_with("two", bomb, &[("content-encoding", "zstd")]).await;
    assert_eq!(answer.error(413, "too_large"), message);
    let answer = gateway.infer_with("two", "{}", &[("content-encoding", "gzip")]).await;
    assert_eq!(answer.error(400, "malformed"), "body: is not gzip");
    let answer = gateway.infer_with("two", "{}", &[("content-encoding", "br")]).await;
    assert!(answer.error(415, "unsupported_media").contains("Content-Encoding: \"br\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_models_and_methods_are_refused() {
    let gateway = gateway().await;
    let message = gateway.infer("none", "{}").await.error(404, "not_found");
    assert_eq!(message, "model \"none\" is not deployed");
    let message = gateway.infer("two/versions/9", "{}").await.error(404, "not_found");
    assert_eq!(message, "version \"9\" of model \"two\" is not deployed");
    for path in ["/", "/v2/nothing", "/v2/models/two/other", "/v3"] {
        gateway.get(path).await.error(404, "not_found");
    }
    for path in ["/v2/models/none", "/v2/models/two/versions/9/ready", "/models/none/x"] {
        gateway.get(path).await.error(404, "not_found");
    }
    let answer = gateway.get("/v2/models/two/infer").await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    let answer = gateway.send(Request::delete("/v2").body(Bytes::new()).unwrap()).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "GET, HEAD");
    let message = gateway.get("/models/two/").await.error(400, "invalid_input");
    assert!(message.contains("POST /v2/models/two/infer"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_timeouts_are_refused() {
    let gateway = gateway().await;
    let body = json!({"inputs": [pixels(), labels()]}).to_string();
    for (bad, kind) in [("soon", "malformed"), ("-1", "malformed"), ("0", "invalid_input")] {
        let answer = gateway.infer_with("two", body.clone(), &[("windrose-timeout-ms", bad)]).await;
        assert!(answer.error(400, kind).contains("windrose-timeout-ms"));
    }
}

/// Heads that are no request, each with the status and the kind of its answer.
fn heads() -> [(String, u16, &'static str); 5] {
    [
        ("nonsense\r\n\r\n".into(), 400, "malformed"),
        ("GET /v2 HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n".into(), 400, "malformed"),
        ("POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n".into(), 400, "malformed"),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70_000)), 414, "uri_too_long"),
        (format!("GET /v2 HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2 << 20)), 431, "headers_too_large"),
    ]
}

/// What comes back on a connection of its own, until it ends.
fn said(address: std::net::SocketAddr, sent: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn assert_refused(answer: &str, status: u16, kind: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or("");
    assert_eq!(header("windrose-error"), kind);
    assert_eq!((header("content-type"), header("connection")), ("application/json", "close"));
    assert_eq!(header("content-length"), body.len().to_string());
    assert!(header("x-request-id").len() == 32 && header("traceparent").len() == 55 && header("date").len() == 29);
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(!body["error"].as_str().unwrap().is_empty());
}

#[test]
fn a_head_that_is_no_request_has_an_answer_like_any_other() {
    let server = Server::start(&[]);
    for (head, status, kind) in heads() {
        for listener in [server.data, server.control] {
            assert_refused(&said(listener, &head), status, kind);
        }
    }
    // After answers on the same connection, and before the last one was read.
    for count in [1, 20] {
        let get = "GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(count);
        for (listener, fine) in [(server.data, "HTTP/1.1 200"), (server.control, "HTTP/1.1 401")] {
            let answer = said(listener, &format!("{get}nonsense\r\n\r\n"));
            assert_eq!(answer.matches(fine).count(), count, "{answer}");
            assert_refused(&answer[answer.rfind("HTTP/1.1 4").unwrap()..], 400, "malformed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_long_for_http2_have_an_answer_like_any_other() {
    let gateway = gateway().await;
    for (length, fits) in [(15 << 10, true), (17 << 10, false), (200 << 10, false)] {
        let request = Request::get("/v2").header("x", "x".repeat(length)).body(Bytes::new()).unwrap();
        let answer = gateway.send_http2(request).await;
        match fits {
            true => assert_eq!(answer.status, 200),
            false => assert!(answer.error(431, "headers_too_large").contains("headers")),
        }
    }
}
