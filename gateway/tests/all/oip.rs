//! The Open Inference Protocol, as its description says it works.

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};

use crate::setup::{Answer, Gateway, Model, infer_request};

async fn gateway() -> Gateway {
    Gateway::start(&[
        Model::new("two", "1", "two_in_two_out"),
        Model::new("id", "1", "identity_fp32"),
        Model::new("id", "2", "identity_fp32"),
        Model::new("id", "10", "identity_fp32"),
    ])
    .await
}

fn two() -> Value {
    json!({"id": "42", "inputs": [
        {"name": "labels", "shape": [2], "datatype": "INT64", "data": [1, 2]},
        {"name": "pixels", "shape": [2, 3], "datatype": "FP32", "data": [[0.5, 1, 2], [3, 4, 5]]},
    ]})
}

fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metadata_tell_the_truth() {
    let gateway = gateway().await;
    assert_eq!(ok(&gateway.get("/v2/health/live").await), json!({"live": true}));
    assert_eq!(ok(&gateway.get("/v2/health/ready").await), json!({"ready": true}));
    let server = ok(&gateway.get("/v2").await);
    assert_eq!(server["name"], "windrose");
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));

    let model = ok(&gateway.get("/v2/models/two").await);
    assert_eq!(model["name"], "two");
    assert_eq!(
        model["inputs"],
        json!([{"name": "pixels", "datatype": "FP32", "shape": [-1, 3]}, {"name": "labels", "datatype": "INT64", "shape": [-1]}])
    );
    assert_eq!(model["outputs"][1], json!({"name": "next", "datatype": "INT64", "shape": [-1]}));
    let graph = &model["windrose"]["graphs"][0];
    let version = graph["version"].as_str().unwrap();
    assert!(version.split('.').count() == 3 && version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    for (field, value) in
        [("engine", json!("rten")), ("provider", json!("CPU")), ("sessions", json!(1)), ("threads", json!(1))]
    {
        assert_eq!(graph[field], value, "{field}");
    }
    assert_eq!(model["platform"], "rten_onnx");

    let versions = ok(&gateway.get("/v2/models/id").await);
    assert_eq!(versions["versions"], json!(["10", "2", "1"]));
    assert_eq!(versions["windrose"]["version"], "10");
    assert_eq!(versions["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1], "unranked": true}]));
    assert_eq!(ok(&gateway.get("/v2/models/id/versions/2").await)["windrose"]["version"], "2");
    assert_eq!(ok(&gateway.get("/v2/models/id/versions/2/ready").await)["ready"], true);

    gateway.plane.set_ready(false);
    assert_eq!(gateway.get("/v2/health/ready").await.status, 503);
    assert_eq!(gateway.get("/v2/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_goes_in_and_comes_out() {
    let gateway = gateway().await;
    let answer = gateway.infer("two", two().to_string()).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(
        ok(&answer),
        json!({"model_name": "two", "model_version": "1", "id": "42", "outputs": [
            {"name": "doubled", "datatype": "FP32", "shape": [2, 3], "data": [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]},
            {"name": "next", "datatype": "INT64", "shape": [2], "data": [2, 3]},
        ]})
    );
    let mut request = two();
    request["outputs"] = json!([{"name": "next"}]);
    let answer = ok(&gateway.infer("two", request.to_string()).await);
    assert_eq!(answer["outputs"], json!([{"name": "next", "datatype": "INT64", "shape": [2], "data": [2, 3]}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unversioned_call_gets_the_highest() {
    let gateway = gateway().await;
    let body = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).to_string();
    assert_eq!(ok(&gateway.infer("id", body.clone()).await)["model_version"], "10");
    assert_eq!(ok(&gateway.infer("id/versions/2", body.clone()).await)["model_version"], "2");
    let message = gateway.infer("id/versions/3", body).await.error(404, "not_found");
    assert_eq!(message, "version \"3\" of model \"id\" is not deployed");
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_data_goes_both_ways() {
    let gateway = gateway().await;
    let mut request = two();
    request["inputs"][0].as_object_mut().unwrap().remove("data");
    request["inputs"][0]["parameters"] = json!({"binary_data_size": 16});
    request["outputs"] = json!([{"name": "doubled", "parameters": {"binary_data": true}}, {"name": "next"}]);
    let text = request.to_string();
    let body = [text.as_bytes(), &1i64.to_le_bytes(), &2i64.to_le_bytes()].concat();
    let length = text.len().to_string();
    let answer = gateway.infer_with("two", body, &[("inference-header-content-length", &length)]).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    let split: usize = answer.header("inference-header-content-length").parse().unwrap();
    let head: Value = serde_json::from_slice(&answer.body[..split]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"], json!({"binary_data_size": 24}));
    assert_eq!(head["outputs"][1]["data"], json!([2, 3]));
    let floats: Vec<u8> = [1f32, 2.0, 4.0, 6.0, 8.0, 10.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(answer.body[split..], floats);

    let mut request = two();
    request["parameters"] = json!({"binary_data_output": true});
    let answer = gateway.infer("two", request.to_string()).await;
    let split: usize = answer.header("inference-header-content-length").parse().unwrap();
    assert_eq!(answer.body.len(), split + 24 + 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_answers_the_same() {
    let gateway = gateway().await;
    let answer = gateway.send_http2(infer_request("two", two().to_string(), &[])).await;
    assert_eq!(ok(&answer)["outputs"][1]["data"], json!([2, 3]));
    let missing = gateway.send_http2(Request::get("/v2/models/none").body(Bytes::new()).unwrap()).await;
    missing.error(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_go_both_ways() {
    use std::io::{Read, Write};
    let gateway = gateway().await;
    let data: Vec<f32> = (0..4000).map(|i| (i % 7) as f32).collect();
    let text = json!({"inputs": [{"name": "x", "shape": [4000], "datatype": "FP32", "data": data}]}).to_string();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(text.as_bytes()).unwrap();
    let bodies = [
        ("gzip", gzip.finish().unwrap()),
        ("deflate", zlib.finish().unwrap()),
        ("zstd", zstd::encode_all(text.as_bytes(), 3).unwrap()),
    ];
    for (coding, body) in bodies {
        let answer = gateway.infer_with("id", body, &[("content-encoding", coding), ("accept-encoding", coding)]).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (200, coding));
        let mut plain = Vec::new();
        match coding {
            "gzip" => flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).map(drop),
            "deflate" => flate2::read::ZlibDecoder::new(&answer.body[..]).read_to_end(&mut plain).map(drop),
            _ => zstd::decode_all(&answer.body[..]).map(|all| plain = all),
        }
        .unwrap();
        let read: Value = serde_json::from_slice(&plain).unwrap();
        assert_eq!(read["outputs"][0]["data"][6], 6.0);
    }
    let plain = gateway.infer("id", text).await;
    assert_eq!((plain.status.as_u16(), plain.header("content-encoding")), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_traces_are_on_every_answer() {
    let gateway = gateway().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for path in ["/v2", "/nowhere", "/v2/models/none"] {
        let request = Request::get(path).header("x-request-id", "mine").header("traceparent", parent);
        let answer = gateway.send(request.header("tracestate", "a=1").body(Bytes::new()).unwrap()).await;
        assert_eq!((answer.header("x-request-id"), answer.header("tracestate")), ("mine", "a=1"));
        assert!(answer.header("traceparent").starts_with(&parent[..36]));
    }
}
