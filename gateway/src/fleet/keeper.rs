//! Keeps connections to a peer open: each has a keeper that connects, again and again where it must, and lets go of what is
//! no longer to be used.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use h2::{Ping, PingPong};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::addresses::Addresses;
use super::tls::{self, Identity};

/// Connections to one peer, the fewest and the most: a packet that is lost holds up what shares its connection, and each
/// address gets one.
pub(super) const CONNECTIONS: (usize, usize) = (3, 16);

/// How long a connection may take to be made, its handshakes included, and again how long the first word over it.
pub(super) const CONNECT: Duration = Duration::from_secs(1);

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
/// All streams together have as much as each has: a client that does not read its answer holds up nobody else's.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Attempts that were given up and whose answers may still come.
const GIVEN_UP: usize = 4_096;

/// Connections that are open.
#[derive(Default)]
pub(super) struct Pool {
    pub slots: [Slot; CONNECTIONS.1],
    /// How many of the slots are in use.
    pub used: AtomicUsize,
}

type Slot = ArcSwapOption<h2::client::SendRequest<Bytes>>;

/// Keeps one connection of a peer open.
pub(super) struct Keeper {
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
    /// When a certificate that it was opened with has expired.
    until: SystemTime,
    /// Ends with the connection.
    driven: JoinHandle<()>,
}

// === impl Keeper ===

impl Keeper {
    pub fn new(
        site: &Arc<str>,
        addresses: Addresses,
        identity: watch::Receiver<Arc<Identity>>,
        pool: Arc<Pool>,
        index: usize,
    ) -> Keeper {
        Keeper { site: site.clone(), addresses, identity, pool, index, open: None, tried: 0, pause: AGAIN.0 }
    }

    /// Connects, to the address that is this connection's own if that can be, and again whenever it must.
    pub async fn keep(mut self) {
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
            () = tls::until(open.until) => {
                tracing::warn!(site = &*self.site, "the certificate of a peer, or the one for it, has expired");
                self.retire();
                self.rest().await;
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
        match open(&self.site, address, &identity).await {
            Ok(Opened { sender, connection, pings, until }) => {
                tracing::debug!(site = &*self.site, %address, "connected to a peer");
                self.pool.slots[self.index].store(Some(Arc::new(sender)));
                let driven = tokio::spawn(drive(connection, pings));
                self.open = Some(Open { address, since: Instant::now(), until, driven });
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

/// A connection that was made.
struct Opened {
    sender: h2::client::SendRequest<Bytes>,
    connection: Connection,
    pings: PingPong,
    until: SystemTime,
}

/// Drives a connection to its end; it ends when the peer no longer answers pings.
async fn drive(connection: Connection, pings: PingPong) {
    tokio::select! {
        _ = connection => {}
        () = watch_peer(pings) => {}
    }
}

async fn watch_peer(mut pings: PingPong) {
    loop {
        sleep(PING.0).await;
        if !matches!(timeout(PING.1, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

async fn open(site: &str, address: SocketAddr, identity: &Identity) -> Result<Opened, String> {
    let mut opened = soon(shake_hands(site, address, identity)).await?;
    // The peer looks at our certificate when ours takes the handshake to be over: what it then says shows whether it wants
    // us. A request that it ends with the connection would be one of which nobody knows whether it ran.
    let Opened { connection, pings, .. } = &mut opened;
    let greeted = async {
        tokio::select! {
            ended = connection => Err(ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string())),
            pong = pings.ping(Ping::opaque()) => pong.map_err(|error| error.to_string()),
        }
    };
    soon(greeted).await?;
    Ok(opened)
}

async fn soon<T>(step: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(CONNECT, step).await.unwrap_or_else(|_| Err("timed out".into()))
}

async fn shake_hands(site: &str, address: SocketAddr, identity: &Identity) -> Result<Opened, String> {
    let tcp = dial(address).await?;
    let name = tls::server_name(site).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(identity.client.clone()).connect(name.clone(), tcp).await;
    let mut tls = tls.map_err(|error| error.to_string())?;
    tls.get_mut().1.set_buffer_limit(Some(tls::SEND_BUFFER));
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let until = identity.believes_in(&name, chain).ok_or("no certificate")?;
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(tls::MAX_FRAME)
        // A peer is known: that answers come for attempts that were given up is no attack.
        .max_concurrent_reset_streams(GIVEN_UP)
        .max_local_error_reset_streams(None)
        .enable_push(false)
        .handshake(tls)
        .await
        .map_err(|error| error.to_string())?;
    let pings = connection.ping_pong().ok_or("no pings")?;
    Ok(Opened { sender, connection, pings, until: until.min(identity.until) })
}

/// A connection that is not encrypted yet.
pub(super) async fn dial(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio_rustls::TlsAcceptor;

    use super::super::certificate;
    use super::super::tls::tests::config;
    use super::super::upstream::{Outgoing, Peer};
    use super::*;

    /// Serves one connection after the other; a request is answered when `go` says so.
    async fn site(listener: TcpListener, identity: Identity, go: Arc<Notify>) {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, go) = (TlsAcceptor::from(identity.server.clone()), go.clone());
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.ok()?;
                let mut connection = h2::server::handshake(tls).await.ok()?;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let go = go.clone();
                    tokio::spawn(async move {
                        go.notified().await;
                        respond.send_response(Response::new(()), true).map(drop)
                    });
                }
                Some(())
            });
        }
    }

    async fn reaches(state: bool, peer: &Peer) {
        let reached = async {
            while peer.is_connected() != state {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), reached).await.unwrap_or_else(|_| panic!("connected: {}", !state));
    }

    /// Real time: a certificate knows no other.
    #[tokio::test]
    async fn nothing_new_goes_over_a_connection_whose_certificate_has_expired() {
        let folder = tempfile::tempdir().unwrap();
        certificate::init(folder.path()).unwrap();
        let theirs = Identity::load(&config(folder.path(), "there", 2)).unwrap();
        let (ours, until, go) =
            (Identity::load(&config(folder.path(), "here", 100)).unwrap(), theirs.until, Arc::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(site(listener, theirs, Arc::clone(&go)));
        let (_identity, watched) = watch::channel(Arc::new(ours));
        let peer = Peer::new("there".into(), Addresses::of("there", &[address]), watched);
        reaches(true, &peer).await;
        let ask = || peer.send(Request::get("https://windrose/").body(()).unwrap(), Outgoing::Whole(Arc::default()));
        let late = async {
            reaches(false, &peer).await;
            assert!(SystemTime::now() >= until);
            assert!(ask().await.is_err());
            go.notify_waiters();
        };
        let (running, ()) = tokio::join!(ask(), late);
        assert!(running.is_ok(), "what was under way is answered");
        serving.abort();
    }
}
