//! Connections: accepted within a bound, told apart by their first bytes, drained at the end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::Again;
use super::unread::{Paced, Streams, Taken};
use super::unreadable::{Refuse, Watched};
use super::{DataPlane, oip};

/// How a client begins that speaks HTTP/2 without having asked.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Between two looks at a beginning that may become the preface.
const PREFACE_PAUSE: Duration = Duration::from_millis(2);

/// After an error of `accept`, for example because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Streams of one HTTP/2 connection at the same time.
const MAX_STREAMS: u32 = 256;

/// How much of one stream, and of all streams of a connection, may be on the way, bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The longest list of headers that is read over HTTP/2, bytes. What is longer still gets a status with nothing behind it:
/// there is no request then that could be answered.
const READ_HEADERS: u32 = 256 << 10;

/// How much is read of an HTTP/1.1 connection before what was read is looked at, bytes: what each keeps for reading once a
/// long body has come, and about the longest head. hyper's own limit for a target, of 64 KiB, is to be seen within it.
const READ_BUFFER: usize = 128 << 10;

/// How often a silent HTTP/2 peer is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// Serves connections until `shutdown`; then readiness turns 503 at once, no connection is accepted any more, and
/// requests in flight have [`super::HttpConfig::drain`] to finish. Returns when the last one did, or was cut off.
pub async fn serve(listener: TcpListener, plane: Arc<DataPlane>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(plane.config.max_connections));
    while let Some((stream, slot)) = next(&listener, &slots, &shutdown).await {
        let (plane, shutdown, cut) = (plane.clone(), shutdown.clone(), cut.clone());
        connections.spawn(async move {
            let counts = &plane.telemetry.connections;
            counts.accepted.fetch_add(1, Ordering::Relaxed);
            counts.open.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                () = connection(stream, plane.clone(), shutdown) => {}
                () = cut.cancelled() => {}
            }
            counts.open.fetch_sub(1, Ordering::Relaxed);
            drop(slot);
        });
    }
    plane.drain();
    drop(listener);
    connections.close();
    if tokio::time::timeout(plane.config.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off connections that did not finish in time");
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection, once there is room for it; `None` after the shutdown.
pub(super) async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let accept = async {
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, slot)),
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = accept => accepted,
    }
}

async fn connection(stream: TcpStream, plane: Arc<DataPlane>, shutdown: CancellationToken) {
    // Answers are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let begins = tokio::time::timeout(plane.config.header_timeout, speaks_http2(&stream));
    let http2 = tokio::select! {
        begins = begins => match begins {
            Ok(Ok(http2)) => http2,
            Ok(Err(_)) | Err(_) => return,
        },
        () = shutdown.cancelled() => return,
    };
    let (header_timeout, write_timeout) = (plane.config.header_timeout, plane.config.write_timeout);
    let stream = Taken::new(stream, write_timeout);
    let ended = if http2 {
        let service = service_fn(move |request| {
            let answer = super::handle(plane.clone(), request);
            async move { answer.await.map(|answer| answer.map(Paced::new)) }
        });
        let connection = http2::Builder::new(Streams(write_timeout))
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(READ_HEADERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING)
            .serve_connection(TokioIo::new(stream), service);
        drive(connection, shutdown.cancelled()).await
    } else {
        let stream = Watched::new(stream, refuse(plane.clone()));
        let turns = stream.turns().clone();
        let service = service_fn(move |request| {
            let (turn, answer) = (turns.begin(), super::handle(plane.clone(), request));
            async move { answer.await.map(|answer| turn.tie(answer)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        drive(connection, shutdown.cancelled()).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What is said to a head that is no request; it counts as a request that failed.
fn refuse(plane: Arc<DataPlane>) -> Refuse {
    Box::new(move |error, identity| {
        super::note(plane.telemetry.track(None, Instant::now()), error, identity);
        oip::encode_error(&error.message)
    })
}

/// Whether the client begins with the preface of HTTP/2. Looks, and takes nothing.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 || !PREFACE.starts_with(&seen[..length]) {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

/// Drives a connection to its end; after `stop` it finishes what is in flight and takes nothing more.
pub(super) async fn drive<C: GracefulConnection>(
    connection: C,
    stop: impl Future<Output = ()>,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = Again::new(connection.as_mut()) => return ended,
        () = stop => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
