//! Connections: accepted within a bound, told apart by their first bytes, drained at the end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::Again;
use super::begun::Begun;
use super::turns::Turns;
use super::unread::{Paced, Streams, Taken};
use super::unreadable::{Refuse, Watched};
use super::{DataPlane, oip};

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
pub(crate) const READ_BUFFER: usize = 128 << 10;

/// How often a silent HTTP/2 peer is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// Serves connections until `shutdown`; then readiness turns 503 at once, no connection is accepted any more, and
/// requests in flight have [`super::HttpConfig::drain`] to finish. Returns when the last one did, or was cut off.
pub async fn serve(listener: TcpListener, plane: Arc<DataPlane>, shutdown: CancellationToken) {
    let bounds = Bounds { connections: plane.config.max_connections, drain: plane.config.drain };
    let drains = async {
        shutdown.cancelled().await;
        plane.drain();
    };
    let serves = each(listener, &bounds, &shutdown, |stream, _| connection(stream, plane.clone(), shutdown.clone()));
    tokio::join!(drains, serves);
}

/// What bounds the connections of a listener.
pub(crate) struct Bounds {
    /// At the same time; more wait in the kernel's queue.
    pub connections: usize,
    /// How long they may take to finish once the shutdown has begun.
    pub drain: Duration,
}

/// Runs `connection` for each until `shutdown`, after which none is accepted any more and each is to finish by itself.
/// Returns when the last one did, or was cut off.
pub(crate) async fn each<F>(
    listener: TcpListener,
    bounds: &Bounds,
    shutdown: &CancellationToken,
    connection: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(bounds.connections));
    while let Some((stream, address, slot)) = next(&listener, &slots, shutdown).await {
        let (connection, cut) = (connection(stream, address), cut.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(bounds.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off connections that did not finish in time");
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection, once there is room for it; `None` after the shutdown.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let accept = async {
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => return Some((stream, address, slot)),
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

/// A connection that is counted as open.
struct Open(Arc<DataPlane>);

impl Open {
    fn new(plane: Arc<DataPlane>) -> Open {
        let counts = &plane.telemetry.connections;
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        counts.open.fetch_add(1, Ordering::Relaxed);
        Open(plane)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.telemetry.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(stream: TcpStream, plane: Arc<DataPlane>, shutdown: CancellationToken) {
    let _open = Open::new(plane.clone());
    // Answers are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let begins =
        tokio::time::timeout(plane.config.header_timeout, Begun::read(Taken::new(stream, plane.config.write_timeout)));
    let stream = tokio::select! {
        begins = begins => match begins {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) | Err(_) => return,
        },
        () = shutdown.cancelled() => return,
    };
    let ended = match stream.speaks_http2() {
        true => speak_http2(stream, plane, shutdown).await,
        false => speak_http1(stream, plane, shutdown).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Ends by itself once no stream was open for as long as a connection may be idle.
async fn speak_http2(
    stream: Begun<Taken>,
    plane: Arc<DataPlane>,
    shutdown: CancellationToken,
) -> Result<(), hyper::Error> {
    let (idle, patience) = (plane.config.header_timeout, plane.config.write_timeout);
    let streams = Arc::<Turns>::default();
    let turns = streams.clone();
    let service = service_fn(move |request| {
        let (turn, answer) = (turns.begin(), super::handle(plane.clone(), request));
        async move { answer.await.map(|answer| turn.tie(answer.map(Paced::new))) }
    });
    let connection = http2::Builder::new(Streams(patience))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(READ_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .serve_connection(TokioIo::new(stream), service);
    let stops = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = streams.idle(idle) => {}
        }
    };
    // A client that is asked to go has as long again; one that does not is left.
    let stays = async {
        streams.idle(idle).await;
        tokio::time::sleep(idle).await;
        streams.idle(idle).await;
    };
    tokio::select! {
        ended = drive(connection, stops) => ended,
        () = stays => Ok(()),
    }
}

async fn speak_http1(
    stream: Begun<Taken>,
    plane: Arc<DataPlane>,
    shutdown: CancellationToken,
) -> Result<(), hyper::Error> {
    let header_timeout = plane.config.header_timeout;
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
}

/// What is said to a head that is no request; it counts as a request that failed.
fn refuse(plane: Arc<DataPlane>) -> Refuse {
    Box::new(move |error, identity| {
        super::note(plane.telemetry.track(None, Instant::now()), error, identity);
        oip::encode_error(&error.message)
    })
}

/// Drives a connection to its end; after `stop` it finishes what is in flight and takes nothing more.
pub(crate) async fn drive<C: GracefulConnection>(
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
