//! Batches through the whole gateway: what is measured, kept and shown, and jobs that leave the queue before they run.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use windrose::snapshot::Snapshot;
use windrose_engine::{BatchPolicy, Graph, GraphOptions};

use crate::server::{Server, checkout};
use crate::setup::{Gateway, Model, infer_request};

/// One row for the graph `rows`.
fn row(x: f32) -> String {
    json!({"inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [x, x, x, x]},
        {"name": "ids", "shape": [1], "datatype": "INT64", "data": [1]},
    ]})
    .to_string()
}

/// A gateway with the graph `rows`, whose jobs wait for as many rows as that: without end, as far as a test goes.
async fn waits_for(max_rows: usize) -> (Gateway, Graph) {
    let gateway = Gateway::start(&[Model::new("rows", "1", "rows")]).await;
    let graph = gateway.current.load().model("rows").unwrap().highest().unwrap().graphs[0].1.clone();
    graph.set_batching(BatchPolicy { max_rows, delay: Duration::from_secs(3600) });
    (gateway, graph)
}

async fn queued(graph: &Graph, jobs: usize) {
    let there = async {
        while graph.queued() != jobs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), there).await;
    assert!(waited.is_ok(), "{} jobs wait, not {jobs}", graph.queued());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_arrive_together_run_together() {
    let (gateway, graph) = waits_for(3).await;
    let (a, b, c) =
        tokio::join!(gateway.infer("rows", row(1.0)), gateway.infer("rows", row(2.0)), gateway.infer("rows", row(3.0)));
    for (answer, x) in [(a, 1.0), (b, 2.0), (c, 3.0)] {
        assert_eq!(answer.json()["outputs"][0]["data"], json!([x + 40.0, x + 50.0, x + 60.0, x + 70.0]));
    }
    let counts = graph.counts();
    assert_eq!((counts.executions, counts.inferences), (1, 3));
    let text = gateway.telemetry.encode();
    for line in [
        r#"windrose_graph_batches_total{model="rows",version="1",graph="model",released="full"} 1"#,
        r#"windrose_graph_rows_total{model="rows",version="1",graph="model"} 3"#,
    ] {
        assert!(text.lines().any(|own| own == line), "no {line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_for_two_models_is_one_run_of_the_engine() {
    let (gateway, graph) = waits_for(2).await;
    let shared = graph.for_another(&GraphOptions::default()).unwrap();
    shared.set_batching(graph.batching());
    let twin = Model::new("twin", "1", "rows").with(&shared);
    let first = gateway.current.load().model("rows").unwrap().highest().unwrap().clone();
    gateway.current.store(Arc::new(Snapshot::new(8, [first, twin])));
    let (a, b) = tokio::join!(gateway.infer("rows", row(1.0)), gateway.infer("twin", row(2.0)));
    assert_eq!((a.status.as_u16(), b.status.as_u16()), (200, 200));
    let runs = format!(r#"windrose_engine_runs_total{{digest="{}",engine="rten"}} 1"#, "0".repeat(64));
    let text = gateway.telemetry.encode();
    for line in [
        r#"windrose_graph_executions_total{model="rows",version="1",graph="model"} 1"#,
        r#"windrose_graph_executions_total{model="twin",version="1",graph="model"} 1"#,
        &runs,
    ] {
        assert!(text.lines().any(|own| own == line), "no {line}\n{text}");
    }
}

/// Requests of the model `rows` that were answered and that failed, and rows and runs of its engine, as the statistics
/// tell them.
async fn statistics(gateway: &Gateway) -> [u64; 4] {
    let answer = gateway.get("/v2/models/rows/stats").await.json();
    let own = &answer["model_stats"][0];
    let requests = ["success", "fail"].map(|how| &own["inference_stats"][how]["count"]);
    let [success, fail] = requests.map(|count| count.as_u64().unwrap());
    let [rows, runs] = ["inference_count", "execution_count"].map(|what| own[what].as_u64().unwrap());
    [success, fail, rows, runs]
}

/// Until the statistics say this: a request is counted once its answer has gone.
async fn counted(gateway: &Gateway, expected: [u64; 4]) {
    let there = async {
        while statistics(gateway).await != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), there).await;
    assert!(waited.is_ok(), "{:?}, not {expected:?}", statistics(gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_begin_anew_with_what_replaces_a_version() {
    let gateway = Gateway::start(&[Model::new("rows", "1", "rows")]).await;
    for x in [1.0, 2.0] {
        assert_eq!(gateway.infer("rows", row(x)).await.status, 200);
    }
    gateway.infer("rows", "").await.error(400, "malformed");
    counted(&gateway, [2, 1, 2, 2]).await;
    let graph = gateway.current.load().model("rows").unwrap().highest().unwrap().graphs[0].1.clone();
    let replaced = Model::new("rows", "1", "rows").with(&graph.for_another(&GraphOptions::default()).unwrap());
    gateway.current.store(Arc::new(Snapshot::new(8, [replaced])));
    counted(&gateway, [0; 4]).await;
    assert_eq!(gateway.infer("rows", row(3.0)).await.status, 200);
    counted(&gateway, [1, 0, 1, 1]).await;
    let ok = r#"windrose_requests_total{model="rows",version="1",kind="ok"} 3"#;
    assert!(gateway.telemetry.encode().lines().any(|line| line == ok), "what a name counted goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_gave_up_is_never_computed() {
    let (gateway, graph) = waits_for(4).await;
    // HTTP/1.1: the connection is closed.
    let body = row(1.0);
    let head = format!("POST /v2/models/rows/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    queued(&graph, 1).await;
    drop(stream);
    queued(&graph, 0).await;
    // HTTP/2: one stream is reset, its connection and the other stream stay.
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut send = |x: f32| {
        let mut request = infer_request("rows", row(x), &[]).map(Full::new);
        *request.uri_mut() = format!("http://{}/v2/models/rows/infer", gateway.address).parse().unwrap();
        tokio::spawn(client.send_request(request))
    };
    let (given_up, kept) = (send(1.0), send(2.0));
    queued(&graph, 2).await;
    given_up.abort();
    queued(&graph, 1).await;
    // A deadline that passes in the queue.
    let late = gateway.infer_with("rows", row(3.0), &[("windrose-timeout-ms", "50")]).await;
    late.error(504, "deadline");
    queued(&graph, 1).await;
    let counts = graph.counts();
    assert_eq!((counts.executions, counts.withdrawn), (0, 3));
    // What is still wanted is computed once there are enough rows.
    let (a, b, c) =
        tokio::join!(gateway.infer("rows", row(4.0)), gateway.infer("rows", row(5.0)), gateway.infer("rows", row(6.0)));
    assert!([a, b, c].iter().all(|answer| answer.status == 200));
    assert_eq!(kept.await.unwrap().unwrap().status(), 200);
    assert_eq!(graph.counts().executions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_row_fails_no_neighbour() {
    let (gateway, graph) = waits_for(3).await;
    let bad = row(1.0).replace("\"data\":[1]", "\"data\":[99]");
    let (first, bad, last): (_, crate::setup::Answer, _) =
        tokio::join!(gateway.infer("rows", row(1.0)), gateway.infer("rows", bad), gateway.infer("rows", row(2.0)));
    assert_eq!((first.status.as_u16(), last.status.as_u16()), (200, 200));
    bad.error(502, "graph_failed");
    assert_eq!((graph.counts().executions, graph.counts().separated), (4, 1));
}

/// What `inspect` says about the batches of a model's graph.
fn inspected(server: &Server, model: &str) -> Value {
    let view: Value = serde_json::from_str(&server.ok(&["inspect", model, "--json"])).unwrap();
    view["loaded"]["graphs"]["model"]["batching"].clone()
}

#[test]
fn the_curve_is_measured_kept_and_shown() {
    let mut server = Server::start(&[]);
    server.deploy_graph("tiny", "net", "1");
    let measured = inspected(&server, "net");
    let rows: Vec<u64> = measured["curve"].as_array().unwrap().iter().map(|p| p["rows"].as_u64().unwrap()).collect();
    assert!(rows.starts_with(&[1, 2]), "{measured}");
    let (best, why) = (measured["max_rows"].as_u64().unwrap(), &measured["alone_because"]);
    assert!(best == 1 || (rows.contains(&best) && why.is_null()), "{measured}");
    assert_eq!(measured["max_delay_us"], 0);
    let shown = server.ok(&["inspect", "net"]);
    assert!(shown.contains("us a row by rows of a run  1: "), "{shown}");
    server.kill();
    server.run();
    assert_eq!(inspected(&server, "net"), measured, "a restart measures nothing");
    // The same graph under another name is not measured again either.
    server.deploy_graph("tiny", "twin", "1");
    assert_eq!(inspected(&server, "twin")["curve"], measured["curve"]);
    let folder = tempfile::tempdir().unwrap();
    let graph = checkout("models/test/tiny.onnx").canonicalize().unwrap();
    let more = "queue = 5\nbatching = { max_size = 3 }\n";
    let manifest = format!("name = \"other\"\n[graphs.model]\nfile = {:?}\n{more}", graph.display().to_string());
    std::fs::write(folder.path().join("windrose.toml"), manifest).unwrap();
    server.ok(&["deploy", folder.path().to_str().unwrap()]);
    let other = inspected(&server, "other");
    assert_eq!((&other["curve"], &other["max_rows"]), (&measured["curve"], &json!(3)), "its queue is its own");
}

#[test]
fn what_time_was_too_short_for_is_tried_again() {
    let mut server = Server::start(&[("WINDROSE_PREPARE_TRIAL", "1ns")]);
    let folder = tempfile::tempdir().unwrap();
    let graph = checkout("models/test/tiny.onnx").canonicalize().unwrap().display().to_string();
    let manifest = format!("name = \"m\"\n[graphs.model]\nfile = {graph:?}\nbatching = {{ max_size = 3 }}\n");
    std::fs::write(folder.path().join("windrose.toml"), manifest).unwrap();
    let deploy = |server: &Server| server.ok(&["deploy", folder.path().to_str().unwrap(), "--json"]);
    let is_changed = |answer: String| serde_json::from_str::<Value>(&answer).unwrap()["changed"].clone();
    assert_eq!(is_changed(deploy(&server)), true);
    let refused = inspected(&server, "m");
    assert_eq!(refused["max_rows"], 1, "what is fixed wins over the curve, and not over the proof");
    assert!(refused["alone_because"].as_str().unwrap().contains("deploying it again tries again"), "{refused}");
    assert_eq!(is_changed(deploy(&server)), false, "as little is found out in as short a time");
    server.kill();
    server.settings.clear();
    server.run();
    assert_eq!(inspected(&server, "m"), refused, "a restart tries nothing");
    assert_eq!(is_changed(deploy(&server)), true);
    let tried = inspected(&server, "m");
    assert_eq!((&tried["max_rows"], &tried["alone_because"]), (&json!(3), &Value::Null));
    assert_eq!(is_changed(deploy(&server)), false);
}

#[test]
fn why_jobs_run_alone_is_said() {
    let server = Server::start(&[]);
    for (graph, why) in [
        ("dynamic_quantization", "rows change each other: output 'y' differs"),
        ("nonzero", "the first dimension of output 'where' is always 2"),
    ] {
        server.deploy_graph(graph, graph, "1");
        let view = inspected(&server, graph);
        assert!(view["alone_because"].as_str().unwrap().contains(why), "{view}");
        assert_eq!(view["max_rows"], 1);
        assert!(server.ok(&["inspect", graph]).contains(&format!("each job alone: {why}")));
    }
}

#[test]
fn what_the_manifest_fixes_is_in_force() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let graph = checkout("models/test/tiny.onnx").canonicalize().unwrap();
    for (batching, expected) in [
        ("{ max_size = 5, max_delay_us = 300 }", json!([5, 300, null])),
        ("\"off\"", json!([1, 0, "the manifest switches it off"])),
    ] {
        let manifest = format!(
            "name = \"m\"\nweight = 2\n[graphs.model]\nfile = {:?}\nqueue_wait = \"50ms\"\nbatching = {batching}\n",
            graph.display().to_string()
        );
        std::fs::write(folder.path().join("windrose.toml"), manifest).unwrap();
        server.ok(&["deploy", folder.path().to_str().unwrap()]);
        let view = inspected(&server, "m");
        assert_eq!(json!([view["max_rows"], view["max_delay_us"], view["alone_because"]]), expected, "{view}");
    }
}
