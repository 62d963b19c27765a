//! Connections to other sites: a few HTTP/2 connections to each peer, kept open and watched, and a pool of HTTP/1.1
//! connections to each foreign server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::tls::{self, Identity};
use crate::http::Received;

/// Connections to one peer, the fewest and the most: a packet that is lost holds up what shares its connection, and each
/// address gets one.
const CONNECTIONS: (usize, usize) = (3, 16);

/// How long a connection may take to be made, its handshakes included.
const CONNECT: Duration = Duration::from_secs(1);

/// Between two attempts to connect: the first, doubled each time, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How often a peer is asked whether it is there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up, milliseconds.
const USER_TIMEOUT_MS: u32 = 3_000;

/// After this long a connection that had to take another address tries its own again.
const RETURN: Duration = Duration::from_secs(10);

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
    /// All of it, in pieces.
    Whole(Arc<[Bytes]>),
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

/// The connections to a peer. When it is dropped they end, each with its last request.
pub struct Peer {
    pool: Arc<Pool>,
    next: AtomicUsize,
    stop: CancellationToken,
}

/// Connections that are open.
#[derive(Default)]
struct Pool {
    slots: [Slot; CONNECTIONS.1],
    /// How many of the slots are in use.
    used: AtomicUsize,
}

type Slot = ArcSwapOption<h2::client::SendRequest<Bytes>>;

/// Keeps one connection of a peer open.
struct Keeper {
    site: Arc<str>,
    addresses: Addresses,
    identity: watch::Receiver<Arc<Identity>>,
    pool: Arc<Pool>,
    index: usize,
    /// The connection that is open.
    open: Option<Open>,
    /// Addresses that were tried in vain since the last change.
    tried: usize,
    /// Before the next try.
    pause: Duration,
}

/// An open connection.
struct Open {
    address: SocketAddr,
    since: Instant,
    /// Ends with the connection.
    driven: JoinHandle<()>,
}

/// The connections to a foreign server.
pub struct Foreign {
    /// What it is called: the first address as it was written.
    name: String,
    addresses: Addresses,
    tls: Option<Arc<ClientConfig>>,
    idle: Arc<Mutex<Vec<Idle>>>,
    next: AtomicUsize,
}

/// A connection that waits for a request, and where it leads.
type Idle = (SocketAddr, http1::SendRequest<Received>);

// === impl Peer ===

impl Peer {
    /// Begins to connect, and goes on until it is dropped.
    pub fn new(site: Arc<str>, addresses: Addresses, identity: watch::Receiver<Arc<Identity>>) -> Peer {
        let (stop, pool): (CancellationToken, Arc<Pool>) = Default::default();
        for index in 0..CONNECTIONS.1 {
            let keeper = Keeper {
                site: site.clone(),
                addresses: addresses.clone(),
                identity: identity.clone(),
                pool: pool.clone(),
                index,
                open: None,
                tried: 0,
                pause: AGAIN.0,
            };
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! { () = keeper.keep() => {}, () = stop.cancelled() => {} }
            });
        }
        Peer { pool, next: AtomicUsize::new(0), stop }
    }

    /// Sends a request and waits for the head of its answer. A dropped future resets the stream.
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send(&self, request: Request<()>, body: Outgoing) -> Result<(response::Parts, RecvStream), SendError> {
        let mut sender = self.connection().ok_or(SendError::Connect)?.ready().await.map_err(|_| SendError::Connect)?;
        let ended = match &body {
            Outgoing::Whole(pieces) => pieces.is_empty(),
            Outgoing::Once(_) => false,
        };
        let (answer, mut stream) = sender.send_request(request, ended).map_err(|_| SendError::Connect)?;
        let answer = match body {
            Outgoing::Whole(pieces) => {
                for (at, piece) in pieces.iter().enumerate() {
                    let last = at + 1 == pieces.len();
                    stream.send_data(piece.clone(), last).map_err(|_| SendError::Reset)?;
                }
                answer.await
            }
            Outgoing::Once(body) => {
                let body = body.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(SendError::Reset)?;
                // The answer may come before the last of the request, and then decides.
                let mut answer = std::pin::pin!(answer);
                tokio::select! {
                    biased;
                    early = answer.as_mut() => early,
                    sent = Box::pin(stream_body(&mut stream, body)) => match sent {
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
        let used = self.pool.used.load(Ordering::Relaxed).clamp(1, CONNECTIONS.1);
        (0..used).find_map(|step| {
            let slot = self.pool.slots[(first.wrapping_add(step)) % used].load();
            slot.as_ref().map(|sender| h2::client::SendRequest::clone(sender))
        })
    }

    /// Whether any connection is open.
    pub fn is_connected(&self) -> bool {
        self.pool.slots.iter().any(|slot| slot.load().is_some())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
        for slot in &self.pool.slots {
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

// === impl Keeper ===

impl Keeper {
    /// Connects, to the address that is this connection's own if that can be, and again whenever it must.
    async fn keep(mut self) {
        loop {
            let addresses = self.addresses.now();
            let used = addresses.len().clamp(CONNECTIONS.0, CONNECTIONS.1);
            self.pool.used.store(used, Ordering::Relaxed);
            if addresses.is_empty() || self.index >= used {
                self.retire();
                self.addresses.changed().await;
            } else if self.is_well_placed(&addresses) {
                self.stay().await;
            } else {
                self.connect(addresses[(self.index + self.tried) % addresses.len()]).await;
            }
        }
    }

    /// Whether the open connection leads to its own address, or to another of the site's while that cannot be reached.
    fn is_well_placed(&self, addresses: &[SocketAddr]) -> bool {
        let own = addresses[self.index % addresses.len()];
        self.open
            .as_ref()
            .is_some_and(|open| open.address == own || self.tried > 0 && addresses.contains(&open.address))
    }

    /// Waits for a reason to connect again.
    async fn stay(&mut self) {
        let Some(open) = &mut self.open else { return };
        let back = async {
            match self.tried {
                0 => std::future::pending().await,
                _ => sleep(RETURN).await,
            }
        };
        tokio::select! {
            _ = &mut open.driven => {
                let short = open.since.elapsed() < CONNECT;
                self.retire();
                // One that is made and ends at once, since the peer wants none of it, must not be made in a circle.
                if short {
                    self.rest().await;
                } else {
                    self.pause = AGAIN.0;
                }
            }
            // Other certificates: the next request goes over a connection that shows them.
            _ = self.identity.changed() => self.retire(),
            () = self.addresses.changed() => self.tried = 0,
            () = back => self.tried = 0,
        }
    }

    /// Makes a connection; the one that was open goes on until then, and has to finish what it carries after.
    async fn connect(&mut self, address: SocketAddr) {
        let identity = self.identity.borrow_and_update().clone();
        match timeout(CONNECT, dial_peer(&self.site, address, &identity))
            .await
            .unwrap_or_else(|_| Err("timed out".into()))
        {
            Ok((sender, connection)) => {
                tracing::debug!(site = &*self.site, %address, "connected to a peer");
                self.pool.slots[self.index].store(Some(Arc::new(sender)));
                let driven = tokio::spawn(drive(connection));
                self.open = Some(Open { address, since: Instant::now(), driven });
            }
            Err(error) => {
                tracing::debug!(site = &*self.site, %address, error, "could not connect to a peer");
                self.tried = self.tried.wrapping_add(1);
                self.addresses.doubt();
                if self.open.as_ref().is_some_and(|open| open.driven.is_finished()) {
                    self.retire();
                }
                let elsewhere = self.open.as_ref().is_some_and(|open| self.addresses.have(&open.address));
                if !elsewhere {
                    self.rest().await;
                }
            }
        }
    }

    /// No new request goes over the open connection; it ends once it has nothing left to carry.
    fn retire(&mut self) {
        self.pool.slots[self.index].store(None);
        self.open = None;
    }

    /// Waits before the next try, each time a little longer.
    async fn rest(&mut self) {
        tokio::select! {
            () = sleep(self.pause) => {}
            () = self.addresses.changed() => self.tried = 0,
        }
        self.pause = (self.pause * 2).min(AGAIN.1);
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

async fn dial_peer(
    site: &str,
    address: SocketAddr,
    identity: &Identity,
) -> Result<(h2::client::SendRequest<Bytes>, Connection), String> {
    let tcp = dial(address).await?;
    let name = tls::server_name(site).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(identity.client.clone()).connect(name, tcp).await;
    let mut tls = tls.map_err(|error| error.to_string())?;
    tls.get_mut().1.set_buffer_limit(Some(tls::SEND_BUFFER));
    h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(tls::MAX_FRAME)
        .enable_push(false)
        .handshake(tls)
        .await
        .map_err(|error| error.to_string())
}

async fn dial(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS);
    Ok(stream)
}

// === impl Foreign ===

impl Foreign {
    /// A pool without connections. `name` is the host and port that requests name; `tls` is `None` where plain text was
    /// asked for.
    pub fn new(name: String, addresses: Addresses, tls: Option<Arc<ClientConfig>>) -> Foreign {
        let idle: Arc<Mutex<Vec<Idle>>> = Arc::default();
        if addresses.can_change() {
            tokio::spawn(purge(addresses.clone(), Arc::downgrade(&idle)));
        }
        Foreign { name, addresses, tls, idle, next: AtomicUsize::new(0) }
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
        let (address, mut sender) = match self.pooled() {
            Some(idle) => idle,
            None => {
                // In a box of its own: it is large and rare, and would be part of every attempt.
                timeout(CONNECT, Box::pin(self.connect())).await.unwrap_or_else(|_| Err("timed out".into())).map_err(
                    |error| {
                        tracing::debug!(error, "could not connect to a foreign server");
                        self.addresses.doubt();
                        SendError::Connect
                    },
                )?
            }
        };
        sender.ready().await.map_err(|_| SendError::Connect)?;
        let (mut head, ()) = head.into_parts();
        head.headers.insert(HOST, HeaderValue::from_str(&self.name).map_err(|_| SendError::Connect)?);
        let request = Request::from_parts(head, body().ok_or(SendError::Reset)?);
        let answer = sender.send_request(request).await;
        let (head, body) = answer
            .map_err(|error| if error.is_canceled() { SendError::Refused } else { SendError::Reset })?
            .into_parts();
        // It takes the next request once this answer has been read; until then it is not ready, and is passed by.
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE && self.addresses.have(&address) {
            idle.push((address, sender));
        }
        Ok((head, body))
    }

    fn pooled(&self) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        idle.retain(|(_, sender)| !sender.is_closed());
        let ready = idle.iter().position(|(_, sender)| sender.is_ready())?;
        Some(idle.swap_remove(ready))
    }

    /// Connects to the address whose turn it is, or to the next that can be reached.
    async fn connect(&self) -> Result<Idle, String> {
        let addresses = self.addresses.clone().now();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = "no address".to_owned();
        for step in 0..addresses.len() {
            let address = addresses[turn.wrapping_add(step) % addresses.len()];
            match self.open(address).await {
                Ok(sender) => return Ok((address, sender)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn open(&self, address: SocketAddr) -> Result<http1::SendRequest<Received>, String> {
        let tcp = dial(address).await?;
        let Some(tls) = &self.tls else { return start(tcp).await };
        let host = self.name.rsplit_once(':').map_or(self.name.as_str(), |(host, _)| host).to_owned();
        let name = host.try_into().map_err(|_| "no name for a certificate".to_owned())?;
        let tls = TlsConnector::from(tls.clone()).connect(name, tcp).await;
        start(tls.map_err(|error| error.to_string())?).await
    }
}

/// Drops what waits for requests at addresses that the server no longer has.
async fn purge(mut addresses: Addresses, idle: Weak<Mutex<Vec<Idle>>>) {
    loop {
        addresses.changed().await;
        let Some(idle) = idle.upgrade() else { return };
        let now = addresses.now();
        lock(&idle).retain(|(address, _)| now.contains(address));
    }
}

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
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
