//! What guests open on the host: files, sockets, requests and look-ups of names, in WASI 0.2 and 0.3.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windrose_sandbox::{CallError, Program};

use crate::support::{act, config, context, graph, module, program};

/// What one call may open, and the names that it may look up. Fewer where this process may open few files, or where
/// another test has many: all that is held together is bounded, too.
const FILES: usize = 500;
const NAMES: usize = 256;

/// A program of a hostile guest that has an asset and was granted this network.
fn hostile(name: &'static str, assets: &std::path::Path, network: &[&str]) -> Program {
    std::fs::write(assets.join("names.txt"), "a").unwrap();
    let mut config = config(module(name), graph("test/identity_fp32.onnx"));
    config.assets = Some(assets.to_owned());
    config.grants.network = network.iter().map(|host| (*host).to_owned()).collect();
    program(config)
}

async fn get(program: &Program, target: &str) -> String {
    let body = Empty::<Bytes>::new().map_err(|e| match e {}).boxed_unsync();
    let request = Request::builder().uri(target).body(body).unwrap();
    let answer = program.serve(request, &context()).await.unwrap();
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

/// Checks a guest's words: how many it had of something before which error.
fn assert_refused(words: &str, most: usize, error: &str) {
    let (count, rest) = words.split_once(' ').unwrap_or_default();
    let count: usize = count.parse().unwrap_or_else(|_| panic!("{words}"));
    assert!((1..=most).contains(&count) && rest.contains(error), "{words}");
}

/// Descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A server that answers every request and then closes.
async fn page() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_counted_and_closed() {
    let folder = tempfile::tempdir().unwrap();
    let program = hostile("hostile-http", folder.path(), &[]);
    let mut after_first = 0;
    for round in 0..8 {
        assert_refused(&get(&program, "/files").await, FILES, "quota");
        if round == 0 {
            after_first = descriptors();
        }
    }
    // Other tests run beside this one; eight times five hundred that stayed would show.
    assert!(descriptors() < after_first + 2 * FILES, "{} were {after_first}", descriptors());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_wasi_0_3_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let program = hostile("hostile-http-async", folder.path(), &[]);
    for _ in 0..3 {
        assert_refused(&get(&program, "/files").await, FILES, "files, then ErrorCode::Quota");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let program = hostile("hostile", folder.path(), &[]);
    let signature = program.describe(&context()).await.unwrap();
    let error = program.infer(&signature, act("probe"), &context()).await.unwrap_err();
    assert_eq!(error, CallError::InvalidInput("missing 2000 times, and then read".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_counted() {
    let (folder, address) = (tempfile::tempdir().unwrap(), page().await);
    let program = hostile("hostile-http", folder.path(), &[&address]);
    for _ in 0..3 {
        assert_refused(&get(&program, "/sockets").await, FILES, "new-socket-limit");
    }
    // What one call had taken, the next one has again.
    assert_eq!(get(&program, &format!("/connect?{address}")).await, "connected");
    let program = hostile("hostile-http-async", folder.path(), &[&address]);
    assert_refused(&get(&program, "/sockets").await, FILES, "as many sockets as it may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted() {
    let (folder, address) = (tempfile::tempdir().unwrap(), page().await);
    let program = hostile("hostile-http", folder.path(), &[&address]);
    let words = get(&program, &format!("/requests?{address}")).await;
    assert_refused(&words, FILES, "requests, then ErrorCode::ConnectionLimitReached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let program = hostile("hostile-http", folder.path(), &["localhost"]);
    assert_refused(&get(&program, "/names?localhost").await, NAMES, "new-socket-limit");
    let program = hostile("hostile-http-async", folder.path(), &["localhost"]);
    assert_refused(&get(&program, "/names?localhost").await, NAMES, "looked up as many names as it may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_grant_the_reason_is_that() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hostile-http", "hostile-http-async"] {
        let program = hostile(name, folder.path(), &[]);
        for what in ["/names?localhost", "/sockets"] {
            let words = get(&program, what).await.to_lowercase().replace('-', "");
            assert!(words.starts_with("0 ") && words.contains("accessdenied"), "{words}");
        }
    }
}
