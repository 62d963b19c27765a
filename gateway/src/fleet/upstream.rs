//! Connections to other sites: a few HTTP/2 connections to each peer, kept open and watched, and a pool of HTTP/1.1
//! connections to each foreign server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::{HOST, HeaderValue};
use http::{Request, response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::keeper::{CONNECT, CONNECTIONS, Keeper, Pool, dial};
use super::tls::Identity;
use super::wire;
use crate::http::Received;

/// Idle connections to a foreign server that are kept.
const IDLE: usize = 64;

/// How long a connection to a foreign server may wait for its next request. Servers close what is idle, uvicorn and Node
/// after 5 s; a request that is on its way in that moment is lost, and cannot be sent again where its model may act outside.
const WAITS: Duration = Duration::from_secs(4);

/// How long a connection to a foreign server gets new requests after it has shown its certificate.
const SHOWN: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection; nothing was sent.
    Connect,
    /// The peer says that it did not look at the request.
    Refused,
    /// It broke off.
    Reset,
    /// The client's body broke off before all of it was sent.
    Body,
    /// The module failed after the head of its answer, as the peer says.
    Module,
}

/// An open connection to a peer.
pub type Connection = h2::client::SendRequest<Bytes>;

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
    /// The generation of the peer's catalogue that is known here, and the one that it spoke of last.
    known: AtomicU64,
    spoken: AtomicU64,
    /// They are two.
    stale: Notify,
}

/// The connections to a foreign server.
pub struct Foreign {
    /// What it is called: the first address as it was written.
    name: String,
    addresses: Addresses,
    tls: Option<Arc<ClientConfig>>,
    /// The one that was used last at the end.
    idle: Arc<Mutex<Vec<Idle>>>,
    next: AtomicUsize,
}

/// A connection that waits for a request.
struct Idle {
    /// Where it leads.
    address: SocketAddr,
    sender: http1::SendRequest<Received>,
    /// When the server's certificate was looked at.
    since: Instant,
    /// When it was last known to be in use.
    used: Instant,
}

// === impl Peer ===

impl Peer {
    /// Begins to connect, and goes on until it is dropped.
    pub fn new(site: Arc<str>, addresses: Addresses, identity: watch::Receiver<Arc<Identity>>) -> Peer {
        let (stop, pool): (CancellationToken, Arc<Pool>) = Default::default();
        for index in 0..CONNECTIONS.1 {
            let keeper = Keeper::new(&site, addresses.clone(), identity.clone(), pool.clone(), index);
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! { () = keeper.keep() => {}, () = stop.cancelled() => {} }
            });
        }
        let (known, spoken, stale) = Default::default();
        Peer { pool, next: AtomicUsize::new(0), stop, known, spoken, stale }
    }

    /// The peer spoke of this generation of its catalogue.
    pub fn speaks_of(&self, generation: u64) {
        self.spoken.store(generation, Ordering::Relaxed);
        if self.known.load(Ordering::Relaxed) != generation {
            self.stale.notify_one();
        }
    }

    /// This generation of its catalogue is known.
    pub fn knows(&self, generation: u64) {
        self.known.store(generation, Ordering::Relaxed);
        self.spoken.store(generation, Ordering::Relaxed);
    }

    /// Waits until the peer speaks of another generation than the one that is known.
    pub async fn is_stale(&self) {
        while self.known.load(Ordering::Relaxed) == self.spoken.load(Ordering::Relaxed) {
            self.stale.notified().await;
        }
    }

    /// Sends a request and waits for the head of its answer. A dropped future resets the stream.
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send(&self, request: Request<()>, body: Outgoing) -> Result<(response::Parts, RecvStream), SendError> {
        let sender = self.connection().ok_or(SendError::Connect)?;
        Peer::send_over(sender, request, body).await
    }

    /// Sends a request over one of [`Peer::connections`].
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send_over(
        connection: Connection,
        request: Request<()>,
        body: Outgoing,
    ) -> Result<(response::Parts, RecvStream), SendError> {
        let mut sender = connection.ready().await.map_err(|_| SendError::Connect)?;
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
    fn connection(&self) -> Option<Connection> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let used = self.pool.used.load(Ordering::Relaxed).clamp(1, CONNECTIONS.1);
        (0..used).find_map(|step| {
            let slot = self.pool.slots[(first.wrapping_add(step)) % used].load();
            slot.as_ref().map(|sender| Connection::clone(sender))
        })
    }

    /// All that are open: several gateways of the site may be behind them.
    pub fn connections(&self) -> Vec<Connection> {
        self.pool.slots.iter().filter_map(|slot| slot.load().as_ref().map(|sender| Connection::clone(sender))).collect()
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
        Some(reason) if error.is_remote() && reason == wire::module_failed() => SendError::Module,
        _ if unseen => SendError::Refused,
        _ => SendError::Reset,
    }
}

/// Passes a body on as fast as the peer takes it.
async fn stream_body(stream: &mut SendStream<Bytes>, mut body: Received) -> Result<(), SendError> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(|_| SendError::Body)?.into_data() else { continue };
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
        let mut open = match self.pooled() {
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
        open.sender.ready().await.map_err(|_| SendError::Connect)?;
        let (mut head, ()) = head.into_parts();
        head.headers.insert(HOST, HeaderValue::from_str(&self.name).map_err(|_| SendError::Connect)?);
        let request = Request::from_parts(head, body().ok_or(SendError::Reset)?);
        let answer = open.sender.send_request(request).await;
        let (head, body) = answer
            .map_err(|error| match error {
                _ if error.is_canceled() => SendError::Refused,
                _ if error.is_user() => SendError::Body,
                _ => SendError::Reset,
            })?
            .into_parts();
        // It takes the next request once this answer has been read; until then it is not ready, and is passed by.
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE && self.addresses.have(&open.address) {
            open.used = Instant::now();
            idle.push(open);
        }
        Ok((head, body))
    }

    /// The one that was used last of those that are ready: the server is the least likely to close it just now.
    fn pooled(&self) -> Option<Idle> {
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        idle.retain_mut(|idle| {
            if !idle.sender.is_ready() {
                idle.used = now;
            }
            // Its certificate may expire: it shows it again now and then.
            let is_new = self.tls.is_none() || now - idle.since < SHOWN;
            !idle.sender.is_closed() && is_new && now - idle.used < WAITS
        });
        let ready = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.remove(ready))
    }

    /// Connects to the address whose turn it is, or to the next that can be reached.
    async fn connect(&self) -> Result<Idle, String> {
        let addresses = self.addresses.clone().now();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = "no address".to_owned();
        for step in 0..addresses.len() {
            let address = addresses[turn.wrapping_add(step) % addresses.len()];
            match self.open(address).await {
                Ok(sender) => {
                    let now = Instant::now();
                    return Ok(Idle { address, sender, since: now, used: now });
                }
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
        lock(&idle).retain(|idle| now.contains(&idle.address));
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
                Some(Err(error)) => Some(Err(failure(&error))),
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;
    use tokio::sync::Barrier;

    use super::*;

    /// A server that tells a request the number of its connection; the first `together` of them get their answers together.
    async fn numbering(together: usize) -> Foreign {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let barrier = Arc::new(Barrier::new(together));
        tokio::spawn(async move {
            for number in 0.. {
                let (tcp, _) = listener.accept().await.unwrap();
                let (barrier, asked) = (barrier.clone(), AtomicUsize::new(0));
                let service = service_fn(move |_| {
                    let (barrier, first) = (barrier.clone(), asked.fetch_add(1, Ordering::Relaxed) == 0);
                    async move {
                        if first && number < together {
                            barrier.wait().await;
                        }
                        Ok::<_, Infallible>(http::Response::new(number.to_string()))
                    }
                });
                tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(tcp), service));
            }
        });
        Foreign::new(address.clone(), Addresses::of("site", &[address]), None)
    }

    /// Sends a request, and says which connection carried it once that may carry the next.
    async fn ask(server: &Foreign) -> usize {
        let request = Request::get("/").body(()).unwrap();
        let (_, body) = server.send(request, || Some(Received::whole(&[]))).await.unwrap();
        let number = body.collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_millis(10)).await;
        std::str::from_utf8(&number).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn the_connection_that_was_used_last_is_used_next() {
        let server = numbering(3).await;
        let (a, b, c) = tokio::join!(ask(&server), ask(&server), ask(&server));
        assert_eq!([a, b, c].into_iter().sum::<usize>(), 3);
        let last = ask(&server).await;
        for _ in 0..4 {
            assert_eq!(ask(&server).await, last);
        }
        assert_eq!(lock(&server.idle).len(), 3);
    }

    #[tokio::test]
    async fn a_connection_that_waited_too_long_gets_no_request() {
        let server = numbering(2).await;
        tokio::join!(ask(&server), ask(&server));
        let pass = async |span: Duration| {
            tokio::time::pause();
            tokio::time::advance(span).await;
            tokio::time::resume();
        };
        let used = ask(&server).await;
        pass(WAITS * 3 / 4).await;
        assert_eq!(ask(&server).await, used);
        // Time enough for the other one, and not for this.
        pass(WAITS / 2).await;
        assert_eq!(ask(&server).await, used);
        assert_eq!(lock(&server.idle).len(), 1);
        pass(WAITS).await;
        assert_eq!(ask(&server).await, 2);
    }
}
