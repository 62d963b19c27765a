//! The connections of the control API. One that is held without a call ends by itself: anybody may open one, with a token
//! or without.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Caller, body};
use crate::error::Error;
use crate::http::Received;
use crate::http::identity::Identity;
use crate::http::listener::{self, Bounds, drive, each};
use crate::http::unreadable::Watched;

/// What bounds the connections. A deployment that is cut off at the end was either written to the log or never happened.
pub(super) const LIMITS: Limits = Limits {
    all: Bounds { connections: 1024, drain: Duration::from_secs(5) },
    header_timeout: Duration::from_secs(30),
};

/// What bounds the connections.
pub(super) struct Limits {
    /// All of them.
    all: Bounds,
    /// How long a caller may take to send the head of a request, and how long a connection may be idle.
    header_timeout: Duration,
}

/// Serves `app` until `shutdown`, then lets running calls end.
pub(super) async fn serve(listener: TcpListener, app: Router, limits: Limits, shutdown: &CancellationToken) {
    let serve = |stream, address| connection((stream, address), app.clone(), limits.header_timeout, shutdown.clone());
    each(listener, &limits.all, shutdown, serve).await;
}

async fn connection(
    (stream, address): (TcpStream, SocketAddr),
    app: Router,
    header_timeout: Duration,
    shutdown: CancellationToken,
) {
    // A stream of progress is many small writes: none waits for the last one's acknowledgement.
    let _ = stream.set_nodelay(true);
    let said = |error: &Error, _: &Identity| serde_json::to_vec(&body(error)).unwrap_or_default().into();
    let stream = Watched::new(stream, Box::new(said));
    let turns = stream.turns().clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let turn = turns.begin();
        let mut request = Received::of(request).map(Body::new);
        request.extensions_mut().insert(ConnectInfo(Caller { address }));
        let answer = app.clone().oneshot(request);
        async move { answer.await.map(|answer| turn.tie(answer)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(listener::READ_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = drive(connection, shutdown.cancelled()).await {
        tracing::debug!(%error, "a connection of the control listener ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::{get, put};
    use http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    /// A listener with little room, whose connections have `header_timeout`. A call of `/slow` says when it has begun.
    async fn started(header_timeout: Duration) -> (SocketAddr, Arc<Notify>, CancellationToken, JoinHandle<()>) {
        let begun = Arc::<Notify>::default();
        let begins = begun.clone();
        let slow = async move || {
            begins.notify_one();
            tokio::time::sleep(Duration::from_millis(400)).await;
        };
        let app = Router::new()
            .route("/fast", get(async || "done"))
            .route("/slow", get(slow))
            .route("/refused", put(async || StatusCode::PAYLOAD_TOO_LARGE));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let limits = Limits { all: Bounds { connections: 4, drain: Duration::from_secs(5) }, header_timeout };
        let serving = tokio::spawn(async move { serve(listener, app, limits, &stop).await });
        (address, begun, shutdown, serving)
    }

    /// All that comes until the connection ends.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut rest = String::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut rest)).await;
        ended.expect("the connection ends by itself").unwrap();
        rest
    }

    #[tokio::test]
    async fn who_holds_a_connection_without_a_call_loses_it() {
        let (address, ..) = started(Duration::from_millis(100)).await;
        for begin in ["", "GET /fast HTTP/1.1\r\nhost: w", "GET /fast HTTP/1.1\r\nhost: w\r\n\r\n"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begin.as_bytes()).await.unwrap();
            let said = rest(&mut stream).await;
            assert_eq!(said.ends_with("\r\n\r\ndone"), begin.ends_with("\r\n\r\n"), "{begin:?}: {said}");
        }
    }

    #[tokio::test]
    async fn a_call_may_take_longer_than_its_head() {
        let (address, begun, shutdown, serving) = started(Duration::from_millis(100)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: w\r\n\r\n").await.unwrap();
        begun.notified().await;
        shutdown.cancel();
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn there_are_only_so_many_connections() {
        let (address, ..) = started(Duration::from_millis(500)).await;
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut last = TcpStream::connect(address).await.unwrap();
        last.write_all(b"GET /fast HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\r\n").await.unwrap();
        let at_once = tokio::time::timeout(Duration::from_millis(100), last.readable()).await;
        assert!(at_once.is_err(), "it waits for a place");
        assert!(rest(&mut last).await.ends_with("\r\n\r\ndone"), "which those who say nothing give up");
        drop(held);
    }

    /// More than the kernel takes of what nobody reads: a reset would lose the answer.
    #[tokio::test]
    async fn who_sends_a_refused_body_still_gets_the_answer() {
        let (address, ..) = started(Duration::from_secs(10)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = vec![0; 32 << 20];
        let head =
            format!("PUT /refused HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.expect("it is taken");
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413 "));
    }
}
