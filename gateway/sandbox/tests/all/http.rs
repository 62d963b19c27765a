//! `wasi:http` components: answers, streams, and what they may not do.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windrose_sandbox::{CallError, HttpBody, Limit, ModuleKind, Program, ProgramConfig};

use crate::support::{config, context, graph, guest, module, program, sandbox};

/// What does what it must not, with WASI 0.2 and 0.3: the ways through the host are two.
const HOSTILE: [&str; 2] = ["hostile-http", "hostile-http-async"];

fn iris(name: &'static str) -> Program {
    program(config(module(name), graph("iris/model.onnx")))
}

fn hostile(change: impl FnOnce(&mut ProgramConfig)) -> Program {
    hostile_of("hostile-http", change)
}

fn hostile_of(name: &'static str, change: impl FnOnce(&mut ProgramConfig)) -> Program {
    let mut config = config(module(name), graph("test/identity_fp32.onnx"));
    change(&mut config);
    program(config)
}

fn request(method: &str, target: &str, body: &str) -> Request<HttpBody> {
    let body = Full::new(Bytes::from(body.to_owned())).map_err(|e| match e {}).boxed_unsync();
    Request::builder().method(method).uri(target).body(body).unwrap()
}

async fn get(program: &Program, target: &str) -> Result<Response<HttpBody>, CallError> {
    program.serve(request("GET", target, ""), &context()).await
}

async fn text(response: Response<HttpBody>) -> String {
    let body = response.into_body().collect().await.expect("the body is whole").to_bytes();
    String::from_utf8(body.into()).unwrap()
}

/// The error that a body ends with.
async fn broken(response: Response<HttpBody>) -> CallError {
    let error = response.into_body().collect().await.expect_err("the body is cut");
    *error.downcast::<CallError>().expect("the error is ours")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_of_wasi_0_2_answers() {
    let program = iris("http-iris");
    assert_eq!(program.module().kind(), ModuleKind::Http);
    let page = get(&program, "/").await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(text(page).await.contains("<form"));
    let target = "/classify?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2";
    assert!(text(get(&program, target).await.unwrap()).await.contains("setosa"));
    assert_eq!(get(&program, "/classify?sepal_length=x").await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_of_wasi_0_3_answers() {
    let program = iris("http-async-iris");
    assert_eq!(program.module().kind(), ModuleKind::Http);
    let lines = "5.1,3.5,1.4,0.2\nnone\n6.3,3.3,6.0,2.5\n";
    let answer = program.serve(request("POST", "/", lines), &context()).await.unwrap();
    let answer = text(answer).await;
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!((lines[0], lines[2]), ("setosa", "virginica"), "{answer}");
    assert!(lines[1].starts_with("error"), "{answer}");
    assert_eq!(program.serve(request("GET", "/", ""), &context()).await.unwrap().status(), 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_before_the_head() {
    for name in HOSTILE {
        let program = hostile_of(name, |c| c.limits.cpu_ms = 100);
        assert_eq!(get(&program, "/loop").await.unwrap_err(), CallError::Limit(Limit::CpuTime), "{name}");
        assert_eq!(text(get(&program, "/").await.unwrap()).await, "well", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_answers_nothing_breaks_its_contract() {
    // That of WASI 0.3 cannot return without an answer.
    let error = get(&hostile(|_| ()), "/silent").await.unwrap_err();
    assert!(matches!(error, CallError::Contract(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_until_the_body_ends() {
    for name in HOSTILE {
        let program = hostile_of(name, |c| c.limits.wall_ms = 300);
        let error = broken(get(&program, "/loop-after-head").await.unwrap()).await;
        assert_eq!(error, CallError::Limit(Limit::WallTime), "{name}");
        let error = broken(get(&program, "/trap-after-head").await.unwrap()).await;
        assert!(matches!(error, CallError::Trapped(_)), "{name}: {error:?}");
        let program = hostile_of(name, |c| c.limits.cpu_ms = 100);
        let error = broken(get(&program, "/loop-after-head").await.unwrap()).await;
        assert_eq!(error, CallError::Limit(Limit::CpuTime), "{name}");
        let program = hostile_of(name, |c| c.limits.output = 64 << 10);
        let error = broken(get(&program, "/flood").await.unwrap()).await;
        assert_eq!(error, CallError::Limit(Limit::Output), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_dropped_ends_the_guest() {
    for name in HOSTILE {
        let sandbox = sandbox(2);
        let module = sandbox.module(&guest(name)).unwrap();
        let program = Program::new(&sandbox, config(module, graph("test/identity_fp32.onnx"))).unwrap();
        let response = get(&program, "/flood").await.unwrap();
        assert_eq!(sandbox.pool().instances, 1, "{name}");
        drop(response);
        let gone = async {
            while sandbox.pool().instances > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), gone).await.unwrap_or_else(|_| panic!("{name} is still there"));
    }
}

/// A server of one page, on a port of its own.
async fn page() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_network_without_a_grant() {
    let address = page().await;
    let program = hostile(|_| ());
    let answer = text(get(&program, &format!("/fetch?{address}")).await.unwrap()).await;
    assert!(answer.contains("HttpRequestDenied"), "{answer}");
    let answer = text(get(&program, &format!("/connect?{address}")).await.unwrap()).await;
    assert!(answer.starts_with("refused"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_address_is_reached_and_no_other() {
    let (address, other) = (page().await, page().await);
    let program = hostile(|c| c.grants.network = vec![address.to_string(), "localhost".into()]);
    let fetch = async |target: String| text(get(&program, &format!("/fetch?{target}")).await.unwrap()).await;
    assert_eq!(fetch(address.to_string()).await, "secret");
    assert!(fetch(other.to_string()).await.contains("HttpRequestDenied"));
    // A granted name that leads to this machine.
    let home = fetch(format!("localhost:{}", other.port())).await;
    assert!(home.contains("DestinationIpProhibited"), "{home}");
    let tls = fetch(format!("https:{address}")).await;
    assert!(tls.contains("TLS is not supported"), "{tls}");
    let connect = async |target: String| text(get(&program, &format!("/connect?{target}")).await.unwrap()).await;
    assert_eq!(connect(address.to_string()).await, "connected");
    assert!(connect(other.to_string()).await.starts_with("refused"));
    assert!(connect(format!("localhost:{}", other.port())).await.starts_with("refused"));
    assert!(connect("example.invalid:80".into()).await.starts_with("refused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_listeners_stay_closed() {
    let address = page().await;
    let program = hostile(|c| {
        c.grants.network = vec!["127.0.0.1".into()];
        c.closed = vec![address];
    });
    let answer = text(get(&program, &format!("/fetch?{address}")).await.unwrap()).await;
    assert!(answer.contains("HttpRequestDenied"), "{answer}");
}

/// As much as one answer and all requests of a call may honestly be made of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_keeps_of_fields_and_requests_is_bounded() {
    for name in HOSTILE {
        let program = program(config(module(name), graph("test/identity_fp32.onnx")));
        for what in ["list", "set", "append", "clone", "method", "path", "authority"] {
            let error = get(&program, &format!("/words?{what}")).await.expect_err(what);
            assert_eq!(error, CallError::Limit(Limit::Memory), "{name}: {what}");
        }
        assert_eq!(text(get(&program, "/").await.unwrap()).await, "well");
    }
    let small = hostile(|c| c.limits.memory = 2 << 20);
    assert_eq!(get(&small, "/words?list").await.unwrap_err(), CallError::Limit(Limit::Memory));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_not_sent_hold_little() {
    let held = text(get(&hostile(|_| ()), "/bodies").await.unwrap()).await;
    let held: u64 = held.parse().unwrap_or_else(|_| panic!("{held}"));
    assert!((16..64).contains(&held), "{held} MiB");
}
