//! Time, load, disconnects, the end of the process, and what is counted of it all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use windrose::http::HttpConfig;
use windrose::snapshot::Snapshot;

use crate::setup::{Answer, Gateway, Model, infer_request};

/// A request that keeps the engine busy for as many turns of a loop.
fn turns(turns: i64) -> String {
    json!({"inputs": [
        {"name": "times", "shape": [], "datatype": "INT64", "data": [turns]},
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [0]},
    ]})
    .to_string()
}

/// Turns that take about this long here when nothing else runs: the fastest of several measurements counts, since a busy
/// machine only makes them longer.
async fn turns_for(gateway: &Gateway, wanted: Duration) -> i64 {
    let mut count = 1000;
    loop {
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let started = Instant::now();
            let answer = gateway.infer("loop", turns(count)).await;
            assert_eq!(answer.status, 200, "{:?}", answer.body);
            fastest = fastest.min(started.elapsed());
        }
        if fastest > Duration::from_millis(10) {
            return (count as f64 * wanted.as_secs_f64() / fastest.as_secs_f64()) as i64 + 1;
        }
        count *= 4;
    }
}

fn slow(concurrency: u32) -> Model {
    Model { concurrency, ..Model::new("loop", "1", "loop") }
}

/// Asks for a run that is to take longer than the request may, until it does: how long a turn takes is measured beside other
/// tests, and may be a tenth of that a moment later. Neither the header nor the parameter lets it wait for `most`.
async fn meets_its_deadline(gateway: &Gateway, mut turns: i64, header_ms: u64, parameter_us: u64, most: Duration) {
    for _ in 0..6 {
        let body = self::turns(turns);
        let started = Instant::now();
        let answer = gateway.infer_with("loop", body.clone(), &[("windrose-timeout-ms", &header_ms.to_string())]).await;
        if answer.status != 200 {
            answer.error(504, "deadline");
            let parameter = format!("{{\"parameters\":{{\"timeout\":{parameter_us}}},");
            gateway.infer("loop", body.replacen('{', &parameter, 1)).await.error(504, "deadline");
            assert!(started.elapsed() < most, "{:?}", started.elapsed());
            return;
        }
        turns *= 4;
    }
    panic!("no run took long enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_by_header_or_parameter_holds() {
    let gateway = Gateway::start(&[slow(64)]).await;
    let long = turns_for(&gateway, Duration::from_secs(2)).await;
    meets_its_deadline(&gateway, long, 50, 50_000, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_the_models_maximum() {
    // The other gateway has the time that it takes to find out how long a turn is.
    let long = turns_for(&Gateway::start(&[slow(64)]).await, Duration::from_secs(4)).await;
    let gateway = Gateway::start(&[Model { max_timeout: Duration::from_millis(500), ..slow(64) }]).await;
    meets_its_deadline(&gateway, long, 60_000, 60_000_000, Duration::from_secs(4)).await;
}

/// Sends a head, and, once the model's default is over, the body.
async fn late_body(gateway: &Gateway, body: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let length = body.len();
    let headers = format!("host: a\r\nconnection: close\r\n{headers}content-length: {length}");
    let head = format!("POST /v2/models/loop/infer HTTP/1.1\r\n{headers}\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The gateway may have answered already, and ended the connection.
    let _ = stream.write_all(&body.as_bytes()[1..]).await;
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;
    assert!(read.is_ok(), "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_late_has_the_time_that_it_asks_for() {
    let gateway = Gateway::start(&[Model { timeout: Duration::from_millis(200), ..slow(64) }]).await;
    let asks = |micros: u64| turns(1).replacen('{', &format!("{{\"parameters\":{{\"timeout\":{micros}}},"), 1);
    for (body, headers, status) in [
        (asks(30_000_000), "", 200),
        // The shorter of the two holds, the default where nothing is asked for.
        (asks(30_000_000), "windrose-timeout-ms: 200\r\n", 504),
        (asks(200_000), "", 504),
        (turns(1), "", 504),
        (turns(1), "windrose-timeout-ms: 30000\r\n", 200),
    ] {
        let answer = late_body(&gateway, &body, headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{body} {headers}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_meets_the_deadline() {
    let longest = Duration::from_millis(100);
    let gateway = Gateway::start(&[Model { max_timeout: longest, ..slow(64) }]).await;
    let patient = Gateway::start(&[slow(64)]).await;
    for (gateway, header) in [(&gateway, ""), (&patient, "windrose-timeout-ms: 100\r\n")] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST /v2/models/loop/infer HTTP/1.1\r\nhost: a\r\n{header}content-length: 100\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await;
        assert!(read.is_ok() && answer.starts_with("HTTP/1.1 504 "), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_is_let_go() {
    let config = HttpConfig { header_timeout: Duration::from_millis(100), ..HttpConfig::default() };
    let gateway = Gateway::with(&[], config).await;
    for begin in [&b""[..], b"PRI * HT", b"GET /v2 HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{begin:?}");
    }
}

/// Whether a client's connection ends by itself, and in order.
async fn ends(connection: JoinHandle<hyper::Result<()>>) -> bool {
    matches!(tokio::time::timeout(Duration::from_secs(10), connection).await, Ok(Ok(Ok(()))))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_without_streams_is_let_go() {
    let idle = Duration::from_millis(300);
    let config = HttpConfig { header_timeout: idle, ..HttpConfig::default() };
    let gateway = Gateway::with(&[slow(64)], config).await;
    let connect = async || {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        (client, tokio::spawn(connection))
    };
    let uri = |path: &str| format!("http://{}{path}", gateway.address);
    // One that never asks for anything, and one that is done.
    let (silent, connection) = connect().await;
    assert!(ends(connection).await);
    drop(silent);
    let (mut client, connection) = connect().await;
    let request = Request::get(uri("/v2")).body(Full::default()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    let done = Instant::now();
    assert!(ends(connection).await);
    assert!(done.elapsed() > idle / 2, "{:?}", done.elapsed());
    // A stream that takes longer is not idle, and its connection ends only then.
    let long = turns(turns_for(&gateway, 4 * idle).await);
    let (mut client, connection) = connect().await;
    let request = Request::post(uri("/v2/models/loop/infer")).body(Full::from(long)).unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert!(ends(connection).await);
}

/// It says that it speaks HTTP/2, and nothing to what it is told.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_client_that_does_not_go_is_left() {
    let config = HttpConfig { header_timeout: Duration::from_millis(200), ..HttpConfig::default() };
    let gateway = Gateway::with(&[], config).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "{said:?}");
}

/// An inference whose answer is as long as its binary input: 16 MiB, more than the kernel takes for a connection.
fn large() -> Request<Bytes> {
    let values = 4 << 20;
    let size = values * 4;
    let input = json!({"name": "x", "shape": [values], "datatype": "FP32", "parameters": {"binary_data_size": size}});
    let text = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
    let body = [text.as_bytes(), &vec![0; size]].concat();
    infer_request("id", body, &[("inference-header-content-length", &text.len().to_string())])
}

/// A gateway with memory for one such body, and the part of it that is held.
async fn with_little_memory() -> Gateway {
    let config =
        HttpConfig { write_timeout: Duration::from_secs(2), max_body_total: 24 << 20, ..HttpConfig::default() };
    Gateway::with(&[Model::new("id", "1", "identity_fp32")], config).await
}

fn held(gateway: &Gateway) -> u64 {
    gateway.telemetry.connections.body_bytes.load(Ordering::Relaxed)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waits).await.unwrap_or_else(|_| panic!("{what}"));
}

/// While an answer waits to be read, others are refused what would be too much; then it is let go.
async fn others_pay_until_it_is_let_go(gateway: &Gateway) {
    assert!(held(gateway) >= 16 << 20, "{}", held(gateway));
    let answer = gateway.send(large()).await;
    answer.error(429, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    until("the answer is let go", || held(gateway) == 0).await;
    let answer = gateway.send(large()).await;
    assert_eq!((answer.status.as_u16(), answer.body.len() > 16 << 20), (200, true));
    until("it was read", || held(gateway) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_takes_memory_for_a_while_only() {
    let gateway = with_little_memory().await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = large().map(Full::new);
    request.headers_mut().insert("host", "test".parse().unwrap());
    // Its head has been read, and with it as much of its body as came along.
    let unread = client.send_request(request).await.unwrap();
    others_pay_until_it_is_let_go(&gateway).await;
    assert!(unread.collect().await.is_err());
    until("the connection has ended", || gateway.telemetry.connections.open.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_takes_memory_for_a_while_only() {
    let gateway = with_little_memory().await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(64 << 10).initial_connection_window_size(1 << 20);
    let (mut client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut at_gateway = |request: Request<Bytes>| {
        let mut request = request.map(Full::new);
        *request.uri_mut() = format!("http://{}{}", gateway.address, request.uri()).parse().unwrap();
        client.send_request(request)
    };
    let unread = at_gateway(large()).await.unwrap();
    assert_eq!(unread.status(), 200);
    others_pay_until_it_is_let_go(&gateway).await;
    let error = unread.collect().await.unwrap_err();
    let error = std::error::Error::source(&error).and_then(|error| error.downcast_ref::<h2::Error>()).unwrap();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    // The connection goes on.
    let answer = Answer::read(at_gateway(large()).await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.body.len() > 16 << 20), (200, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_of_short_json_are_refused_before_they_take_too_much() {
    let gateway = with_little_memory().await;
    let body = |values: usize| {
        let data = vec!["0"; values].join(",");
        format!(r#"{{"inputs":[{{"name":"x","shape":[{values}],"datatype":"FP32","data":[{data}]}}]}}"#)
    };
    // 2 bytes of text make 4 of the tensor: 3 times as much as came.
    gateway.infer("id", body(4 << 20)).await.error(429, "overloaded");
    until("what was refused is let go", || held(&gateway) == 0).await;
    assert_eq!(gateway.infer("id", body(2 << 20)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_calls_are_refused_once_it_is_known_that_none_ends_soon() {
    let gateway = Gateway::start(&[slow(2)]).await;
    let served = gateway.current.load().model("loop").unwrap().highest().unwrap().clone();
    let tenant = windrose_engine::default_tenant();
    let enter = || served.calls.enter(&tenant, |in_flight| in_flight, Instant::now());
    let both = (enter().await.unwrap(), enter().await.unwrap());
    for _ in 0..6 {
        let answer = gateway.infer("loop", turns(1)).await;
        let message = answer.error(429, "overloaded");
        assert!(message.contains("\"loop\""), "{message}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    drop(both);
    assert_eq!(gateway.infer("loop", turns(1)).await.status, 200);
    assert_eq!(served.calls.free(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_withdraws_its_job() {
    let gateway = Gateway::start(&[slow(64)]).await;
    let served = gateway.current.load().model("loop").unwrap().highest().unwrap().clone();
    let mut length = turns_for(&gateway, Duration::from_millis(300)).await;
    // One session: the first runs, the others wait in its queue, and all clients go. On a busy machine the first may be
    // done before the last has come; then a longer one is tried.
    for _ in 0..6 {
        let body = turns(length);
        let (before, last) = (served.graphs[0].1.counts(), body.len());
        let request = format!("POST /v2/models/loop/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {last}\r\n\r\n{body}");
        let mut streams = Vec::new();
        for queued in 0..4 {
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            streams.push(stream);
            let arrived = async {
                while served.graphs[0].1.queued() < queued {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(2), arrived).await;
        }
        drop(streams);
        let all_gone = async {
            while served.calls.free() < 64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), all_gone).await.is_ok(), "a permit was not given back");
        if served.graphs[0].1.counts().withdrawn >= before.withdrawn + 3 {
            assert!(gateway.telemetry.encode().contains(r#"kind="cancelled"} "#), "{}", gateway.telemetry.encode());
            return;
        }
        length *= 2;
    }
    panic!("no job was withdrawn: {:?}", served.graphs[0].1.counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_is_in_flight() {
    let gateway = Arc::new(Gateway::start(&[slow(64)]).await);
    let long = turns(turns_for(&gateway, Duration::from_millis(500)).await);
    let call = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.infer("loop", long).await }
    });
    // An idle connection must not hold the shutdown up.
    let _idle = TcpStream::connect(gateway.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    gateway.shutdown.cancel();
    assert_eq!(call.await.unwrap().status, 200);
    let mut gateway = Arc::into_inner(gateway).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), &mut gateway.server).await;
    assert!(ended.is_ok());
    assert!(TcpStream::connect(gateway.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_cuts_off_what_takes_too_long() {
    let config = HttpConfig { drain: Duration::from_millis(100), ..HttpConfig::default() };
    let mut gateway = Gateway::with(&[Model { timeout: Duration::from_secs(60), ..slow(64) }], config).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /v2/models/loop/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    gateway.shutdown.cancel();
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut gateway.server).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_finishes_on_its_own_snapshot() {
    let gateway = Arc::new(Gateway::start(&[slow(64)]).await);
    let long = turns(turns_for(&gateway, Duration::from_millis(300)).await);
    let call = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.infer("loop", long).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.current.store(Arc::new(Snapshot::new(8, [])));
    gateway.infer("loop", turns(1)).await.error(404, "not_found");
    assert_eq!(call.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_and_does_not_answer_is_not_ready() {
    let gateway = Gateway::start(&[Model::new("id", "1", "identity_fp32")]).await;
    let body = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).to_string();
    let unready = |model: &str, version: &str, why| {
        (
            model.to_owned(),
            windrose::snapshot::Unready { version: version.to_owned(), why, jurisdictions: Default::default() },
        )
    };
    use windrose::snapshot::NotReady::{Failed, Loading};
    let served: Vec<_> = gateway.current.load().models().flat_map(|(_, versions)| versions.iter().cloned()).collect();
    let waiting = [
        unready("id", "2", Loading),
        unready("id", "3", Failed),
        unready("slow", "1", Loading),
        unready("slow", "2", Failed),
        unready("broken", "1", Failed),
    ];
    gateway.current.store(Arc::new(Snapshot::new(8, served).with_unready(waiting)));
    // An unversioned call gets the highest version that is ready.
    assert_eq!(gateway.infer("id", body.clone()).await.json()["model_version"], "1");
    assert_eq!(gateway.get("/v2/models/id/ready").await.status, 200);
    let cases = [
        ("id/versions/2", "version \"2\" of model \"id\" is being loaded"),
        ("id/versions/3", "version \"3\" of model \"id\" could not be loaded"),
        ("slow", "model \"slow\" is being loaded"),
        ("slow/versions/2", "version \"2\" of model \"slow\" could not be loaded"),
        ("broken", "model \"broken\" could not be loaded"),
    ];
    for (target, expected) in cases {
        let answers = [
            gateway.get(&format!("/v2/models/{target}/ready")).await,
            gateway.get(&format!("/v2/models/{target}")).await,
            gateway.get(&format!("/models/{target}/")).await,
            gateway.infer(target, body.clone()).await,
        ];
        for answer in answers {
            let message = answer.error(503, "not_ready");
            assert!(message.starts_with(expected), "{message}");
            assert_eq!(answer.header("retry-after"), "1");
        }
    }
    gateway.get("/v2/models/id/versions/4/ready").await.error(404, "not_found");
    gateway.get("/v2/models/nobody/ready").await.error(404, "not_found");
}

/// Every metric with its type; `BLESS=1` writes the list anew.
#[tokio::test(flavor = "multi_thread")]
async fn metric_names_are_a_contract() {
    let gateway = Gateway::start(&[Model::new("id", "1", "identity_fp32")]).await;
    let body = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).to_string();
    assert_eq!(gateway.infer("id", body.clone()).await.status, 200);
    gateway.infer("id", "").await.error(400, "malformed");
    gateway.infer("made-up-by-a-caller", body).await.error(404, "not_found");
    gateway.send(Request::get("/v2").body(Bytes::new()).unwrap()).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    until("all answers are read", || held(&gateway) == 0).await;
    let text = gateway.telemetry.encode();
    for line in [
        r#"windrose_requests_total{model="id",version="1",kind="ok"} 1"#,
        r#"windrose_requests_total{model="id",version="1",kind="malformed"} 1"#,
        r#"windrose_requests_total{model="",version="",kind="not_found"} 1"#,
        r#"windrose_requests_total{model="",version="",kind="malformed"} 1"#,
        r#"windrose_request_duration_seconds_count{model="id",version="1"} 2"#,
        r#"windrose_call_duration_seconds_count{model="id",version="1"} 1"#,
        r#"windrose_requests_in_flight{model="id",version="1"} 0"#,
        r#"windrose_permits_available{model="id",version="1"} 64"#,
        r#"windrose_graph_inferences_total{model="id",version="1",graph="model"} 1"#,
        "windrose_revision 7",
        "windrose_models_served 1",
        "windrose_body_bytes_held 0",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line}\n{text}");
    }
    assert!(!text.contains("made-up"));
    let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let names = names.join("\n") + "\n";
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/metrics.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(golden, names).unwrap();
        return;
    }
    assert_eq!(names, std::fs::read_to_string(golden).unwrap());
}
