//! Connections to other sites: a few HTTP/2 connections to each peer, kept open and watched, and a pool of HTTP/1.1
//! connections to each foreign server (`foreign.rs`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
pub use super::foreign::{Foreign, ForeignBody};
use super::keeper::{CONNECTIONS, Keeper, Pool};
use super::tls::Identity;
use super::wire;
use crate::http::Received;

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
    /// From a foreign server.
    Foreign(ForeignBody),
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
