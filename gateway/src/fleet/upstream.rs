//! Connections to other sites: a few HTTP/2 connections to each peer, kept open and watched, and a pool of HTTP/1.1
//! connections to each foreign server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{HOST, HeaderValue};
use http::{Request, response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::tls::{self, Identity};
use crate::http::Received;

/// Connections to one peer: a packet that is lost holds up what shares its connection.
const CONNECTIONS: usize = 3;

/// How long a connection may take to be made, its handshakes included.
const CONNECT: Duration = Duration::from_secs(1);

/// Between two attempts to connect: the first, doubled each time, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How often a peer is asked whether it is there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up, milliseconds.
const USER_TIMEOUT_MS: u32 = 3_000;

/// How long a connection that is replaced may finish what it carries.
const RETIRE: Duration = Duration::from_secs(30);

/// How much of one answer, and of all answers of a connection, may be on the way, bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Idle connections to a foreign server that are kept.
const IDLE: usize = 64;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection; nothing was sent.
    Connect,
    /// The peer says that it did not look at the request.
    Refused,
    /// It broke off.
    Reset,
}

/// The body of a request.
pub enum Outgoing {
    /// All of it.
    Whole(Bytes),
    /// As it comes from the client; it is taken once there is a connection.
    Once(Arc<Mutex<Option<Received>>>),
}

/// The body of an answer.
pub enum Answer {
    /// From a peer.
    Peer(RecvStream),
    /// From a foreign server; the connection is kept once it has ended.
    Foreign(hyper::body::Incoming),
}

/// How one site is reached.
pub enum Upstream {
    /// A gateway.
    Peer(Peer),
    /// A foreign server.
    Foreign(Foreign),
}

/// The connections to a peer. They end when it is dropped.
pub struct Peer {
    slots: Arc<[Slot; CONNECTIONS]>,
    next: AtomicUsize,
    stop: CancellationToken,
}

type Slot = ArcSwapOption<h2::client::SendRequest<Bytes>>;

/// What the connections of a peer are made with.
struct Dialer {
    site: Arc<str>,
    addresses: Vec<String>,
    identity: watch::Receiver<Arc<Identity>>,
    connects: AtomicU64,
}

/// The connections to a foreign server.
pub struct Foreign {
    addresses: Vec<String>,
    tls: Option<Arc<ClientConfig>>,
    idle: Arc<Mutex<Vec<http1::SendRequest<Received>>>>,
    next: AtomicUsize,
}

// === impl Peer ===

impl Peer {
    /// Begins to connect, and goes on until it is dropped.
    pub fn new(site: Arc<str>, addresses: Vec<String>, identity: watch::Receiver<Arc<Identity>>) -> Peer {
        let stop = CancellationToken::new();
        let slots: Arc<[Slot; CONNECTIONS]> = Arc::default();
        let dialer = Arc::new(Dialer { site, addresses, identity, connects: AtomicU64::new(0) });
        if !dialer.addresses.is_empty() {
            for index in 0..CONNECTIONS {
                let (slots, stop) = (slots.clone(), stop.clone());
                let kept = keep_connected(dialer.clone(), slots, index);
                tokio::spawn(async move {
                    tokio::select! { () = kept => {}, () = stop.cancelled() => {} }
                });
            }
        }
        Peer { slots, next: AtomicUsize::new(0), stop }
    }

    /// Sends a request and waits for the head of its answer. A dropped future resets the stream.
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send(&self, request: Request<()>, body: Outgoing) -> Result<(response::Parts, RecvStream), SendError> {
        let mut sender = self.connection().ok_or(SendError::Connect)?.ready().await.map_err(|_| SendError::Connect)?;
        let ended = match &body {
            Outgoing::Whole(bytes) => bytes.is_empty(),
            Outgoing::Once(_) => false,
        };
        let (answer, mut stream) = sender.send_request(request, ended).map_err(|_| SendError::Connect)?;
        let answer = match body {
            Outgoing::Whole(bytes) if bytes.is_empty() => answer.await,
            Outgoing::Whole(bytes) => {
                stream.send_data(bytes, true).map_err(|_| SendError::Reset)?;
                answer.await
            }
            Outgoing::Once(body) => {
                let body = body.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(SendError::Reset)?;
                // The answer may come before the last of the request, and then decides.
                let mut answer = std::pin::pin!(answer);
                tokio::select! {
                    biased;
                    early = answer.as_mut() => early,
                    sent = stream_body(&mut stream, body) => match sent {
                        Ok(()) => answer.await,
                        Err(error) => return Err(error),
                    },
                }
            }
        };
        let (head, body) = answer.map_err(|error| failure(&error))?.into_parts();
        Ok((head, body))
    }

    /// A connection that is open, each in its turn.
    fn connection(&self) -> Option<h2::client::SendRequest<Bytes>> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..CONNECTIONS).find_map(|step| {
            let slot = self.slots[(first.wrapping_add(step)) % CONNECTIONS].load();
            slot.as_ref().map(|sender| h2::client::SendRequest::clone(sender))
        })
    }

    /// Whether any connection is open.
    pub fn is_connected(&self) -> bool {
        self.slots.iter().any(|slot| slot.load().is_some())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
        for slot in self.slots.iter() {
            slot.store(None);
        }
    }
}

/// What a broken stream says about its request.
fn failure(error: &h2::Error) -> SendError {
    let unseen = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => SendError::Refused,
        _ if unseen => SendError::Refused,
        _ => SendError::Reset,
    }
}

/// Passes a body on as fast as the peer takes it.
async fn stream_body(stream: &mut SendStream<Bytes>, mut body: Received) -> Result<(), SendError> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(|_| SendError::Reset)?.into_data() else { continue };
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            let granted = granted.and_then(Result::ok).ok_or(SendError::Reset)?;
            if granted > 0 {
                let piece = data.split_to(granted.min(data.len()));
                stream.send_data(piece, false).map_err(|_| SendError::Reset)?;
            }
        }
    }
    stream.send_data(Bytes::new(), true).map_err(|_| SendError::Reset)
}

/// Keeps one connection of a peer open.
async fn keep_connected(dialer: Arc<Dialer>, slots: Arc<[Slot; CONNECTIONS]>, index: usize) {
    let mut identity = dialer.identity.clone();
    let mut pause = AGAIN.0;
    loop {
        let now = identity.borrow_and_update().clone();
        match timeout(CONNECT, dialer.connect(&now)).await.unwrap_or_else(|_| Err("timed out".into())) {
            Ok((sender, connection)) => {
                tracing::debug!(site = &*dialer.site, "connected to a peer");
                pause = AGAIN.0;
                slots[index].store(Some(Arc::new(sender)));
                let mut driven = Box::pin(drive(connection));
                tokio::select! {
                    () = &mut driven => {}
                    // Other certificates: the next request goes over a connection that shows them.
                    _ = identity.changed() => drop(tokio::spawn(timeout(RETIRE, driven))),
                }
                slots[index].store(None);
            }
            Err(error) => {
                tracing::debug!(site = &*dialer.site, error, "could not connect to a peer");
                sleep(pause).await;
                pause = (pause * 2).min(AGAIN.1);
            }
        }
    }
}

type Connection = h2::client::Connection<tokio_rustls::client::TlsStream<TcpStream>, Bytes>;

/// Drives a connection to its end; it ends when the peer no longer answers pings.
async fn drive(mut connection: Connection) {
    let pings = connection.ping_pong();
    tokio::select! {
        _ = connection => {}
        () = watch_peer(pings) => {}
    }
}

async fn watch_peer(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING.0).await;
        if !matches!(timeout(PING.1, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

impl Dialer {
    /// The names of addresses are looked up each time, and each connection takes the next address.
    async fn connect(&self, identity: &Identity) -> Result<(h2::client::SendRequest<Bytes>, Connection), String> {
        let turn = self.connects.fetch_add(1, Ordering::Relaxed);
        let tcp = dial(&self.addresses, turn).await?;
        let name = tls::server_name(&self.site).map_err(|error| error.to_string())?;
        let tls = TlsConnector::from(identity.client.clone()).connect(name, tcp).await;
        h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false)
            .handshake(tls.map_err(|error| error.to_string())?)
            .await
            .map_err(|error| error.to_string())
    }
}

/// Connects to the address whose turn it is.
async fn dial(addresses: &[String], turn: u64) -> Result<TcpStream, String> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        match tokio::net::lookup_host(address.as_str()).await {
            Ok(resolved) => found.extend(resolved),
            Err(error) => tracing::debug!(address, %error, "could not look up a site's address"),
        }
    }
    found.sort_unstable();
    found.dedup();
    let at = usize::try_from(turn % found.len().max(1) as u64).unwrap_or(0);
    let address = found.get(at).ok_or("no address")?;
    let stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS);
    Ok(stream)
}

// === impl Foreign ===

impl Foreign {
    /// A pool without connections. `tls` is `None` where plain text was asked for.
    pub fn new(addresses: Vec<String>, tls: Option<Arc<ClientConfig>>) -> Foreign {
        Foreign { addresses, tls, idle: Arc::default(), next: AtomicUsize::new(0) }
    }

    /// Sends a request and waits for the head of its answer. A dropped future closes the connection.
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send(
        &self,
        head: Request<()>,
        body: impl FnOnce() -> Option<Received>,
    ) -> Result<(response::Parts, hyper::body::Incoming), SendError> {
        let mut sender = match self.pooled() {
            Some(sender) => sender,
            None => self.connect().await.map_err(|error| {
                tracing::debug!(error, "could not connect to a foreign server");
                SendError::Connect
            })?,
        };
        sender.ready().await.map_err(|_| SendError::Connect)?;
        let (mut head, ()) = head.into_parts();
        let host = HeaderValue::from_str(self.addresses.first().map_or("", String::as_str));
        head.headers.insert(HOST, host.map_err(|_| SendError::Connect)?);
        let request = Request::from_parts(head, body().ok_or(SendError::Reset)?);
        let answer = sender.send_request(request).await;
        let (head, body) = answer
            .map_err(|error| if error.is_canceled() { SendError::Refused } else { SendError::Reset })?
            .into_parts();
        // It takes the next request once this answer has been read; until then it is not ready, and is passed by.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(sender);
        }
        Ok((head, body))
    }

    fn pooled(&self) -> Option<http1::SendRequest<Received>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Received>, String> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let made = async {
            let tcp = dial(&self.addresses, turn).await?;
            match &self.tls {
                None => start(tcp).await,
                Some(tls) => {
                    let address = &self.addresses[0];
                    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned();
                    let name = host.try_into().map_err(|_| "no name for a certificate".to_owned())?;
                    let tls = TlsConnector::from(tls.clone()).connect(name, tcp).await;
                    start(tls.map_err(|error| error.to_string())?).await
                }
            }
        };
        timeout(CONNECT, made).await.unwrap_or_else(|_| Err("timed out".into()))
    }
}

async fn start<S>(stream: S) -> Result<http1::SendRequest<Received>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

// === impl Answer ===

impl Answer {
    /// The next piece of the body; `None` at its end. An error is a body that broke off.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, SendError>>> {
        match self {
            Answer::Peer(stream) => Poll::Ready(match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = stream.flow_control().release_capacity(data.len());
                    Some(Ok(data))
                }
                Some(Err(_)) => Some(Err(SendError::Reset)),
                None => None,
            }),
            Answer::Foreign(body) => loop {
                match ready!(std::pin::Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(data))),
                        Err(_) => continue,
                    },
                    Some(Err(_)) => return Poll::Ready(Some(Err(SendError::Reset))),
                    None => return Poll::Ready(None),
                }
            },
        }
    }

    /// The next piece of the body.
    pub async fn data(&mut self) -> Option<Result<Bytes, SendError>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }
}
