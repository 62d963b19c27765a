//! HTTP/1.1 connections to a foreign server: a pool of those that wait for a request, spread over its addresses.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::addresses::Addresses;
use super::keeper::{CONNECT, dial};
use super::tls::Authority;
use super::upstream::SendError;
use crate::http::Received;

/// Idle connections that are kept.
const IDLE: usize = 64;

/// How long a connection may wait for its next request. Servers close what is idle, uvicorn and Node after 5 s; a request that
/// is on its way in that moment is lost, and cannot be sent again where its model may act outside.
const WAITS: Duration = Duration::from_secs(4);

/// How long a connection gets new requests after it has shown its certificate.
const SHOWN: Duration = Duration::from_secs(60);

/// How often the file of the authority is looked at.
const FILES: Duration = Duration::from_secs(1);

/// How soon after the last time a connection to an address is begun beside a request that another one takes.
const AGAIN: Duration = Duration::from_secs(1);

/// The connections to a foreign server.
pub struct Foreign {
    pool: Arc<Pool>,
    /// Requests so far.
    turns: AtomicUsize,
}

/// The body of an answer. Its connection takes the next request once it has ended.
pub struct ForeignBody {
    body: Incoming,
    /// `None` once it has ended, or broken off.
    open: Option<(Open, Arc<Pool>)>,
}

struct Pool {
    /// What the server is called: the first address as it was written.
    name: String,
    addresses: Addresses,
    authority: Option<Authority>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections that wait for a request, the one that was used last at the end.
    idle: Vec<Open>,
    /// When a connection to an address was last begun.
    begun: HashMap<SocketAddr, Instant>,
}

/// A connection.
struct Open {
    /// Where it leads.
    address: SocketAddr,
    sender: http1::SendRequest<Received>,
    /// When the server's certificate was looked at.
    since: Instant,
    /// When it was last known to be in use.
    used: Instant,
}

// === impl Foreign ===

impl Foreign {
    /// A pool without connections. `name` is the host and port that requests name; `authority` is `None` where plain
    /// text was asked for.
    pub fn new(name: String, addresses: Addresses, authority: Option<Authority>) -> Foreign {
        let pool = Arc::new(Pool { name, addresses, authority, state: Mutex::default() });
        if pool.authority.is_some() {
            tokio::spawn(renew(Arc::downgrade(&pool)));
        }
        if pool.addresses.can_change() {
            tokio::spawn(purge(pool.addresses.clone(), Arc::downgrade(&pool)));
        }
        Foreign { pool, turns: AtomicUsize::new(0) }
    }

    /// Sends a request and waits for the head of its answer. A dropped future closes the connection.
    ///
    /// # Errors
    /// As [`SendError`] says.
    pub async fn send(
        &self,
        head: Request<()>,
        body: impl FnOnce() -> Option<Received>,
    ) -> Result<(response::Parts, ForeignBody), SendError> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut open = match self.pool.take(turn) {
            Some(open) => open,
            // In a box of its own: it is large and rare, and would be part of every attempt.
            None => Box::pin(self.pool.connect(turn)).await.ok_or(SendError::Connect)?,
        };
        open.sender.ready().await.map_err(|_| SendError::Connect)?;
        let (mut head, ()) = head.into_parts();
        head.headers.insert(HOST, HeaderValue::from_str(&self.pool.name).map_err(|_| SendError::Connect)?);
        let request = Request::from_parts(head, body().ok_or(SendError::Reset)?);
        let answer = open.sender.send_request(request).await;
        let (head, body) = answer
            .map_err(|error| match error {
                _ if error.is_canceled() => SendError::Refused,
                _ if error.is_user() => SendError::Body,
                _ => SendError::Reset,
            })?
            .into_parts();
        let mut body = ForeignBody { body, open: Some((open, self.pool.clone())) };
        body.end_if(body.body.is_end_stream());
        Ok((head, body))
    }
}

// === impl Pool ===

impl Pool {
    /// The connection to the address whose turn it is that was used last: the server is the least likely to close it just now.
    /// Where none waits there, the one that was used last of all, and the next turn of that address finds one.
    fn take(self: &Arc<Pool>, turn: usize) -> Option<Open> {
        let now = Instant::now();
        let mut state = self.state();
        state.idle.retain_mut(|open| {
            if !open.sender.is_ready() {
                open.used = now;
            }
            // Its certificate may expire: it shows it again now and then.
            let is_new = self.authority.is_none() || now - open.since < SHOWN;
            !open.sender.is_closed() && is_new && now - open.used < WAITS
        });
        let address = self.addresses.at(turn)?;
        let at_address = state.idle.iter().rposition(|open| open.address == address && open.sender.is_ready());
        if let Some(found) = at_address {
            return Some(state.idle.remove(found));
        }
        let other = state.idle.iter().rposition(|open| open.sender.is_ready())?;
        if state.begun.get(&address).is_none_or(|&last| now - last >= AGAIN) {
            state.begun.insert(address, now);
            tokio::spawn(self.clone().prepare(address));
        }
        Some(state.idle.remove(other))
    }

    /// Connects for requests to come.
    async fn prepare(self: Arc<Pool>, address: SocketAddr) {
        match timeout(CONNECT, self.open(address)).await.unwrap_or_else(|_| Err("timed out".into())) {
            Ok(open) => self.keep(open),
            Err(error) => self.doubt(&error),
        }
    }

    /// Connects to the address whose turn it is, or to the next that can be reached: each has its part of the time, so that one
    /// that is silent leaves some to the others.
    async fn connect(&self, turn: usize) -> Option<Open> {
        let addresses = self.addresses.clone().now();
        let each = CONNECT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = "no address".to_owned();
        for step in 0..addresses.len() {
            let address = addresses[turn.wrapping_add(step) % addresses.len()];
            self.state().begun.insert(address, Instant::now());
            match timeout(each, self.open(address)).await.unwrap_or_else(|_| Err("timed out".into())) {
                Ok(open) => return Some(open),
                Err(error) => last = error,
            }
        }
        self.doubt(&last);
        None
    }

    fn doubt(&self, error: &str) {
        tracing::debug!(error, "could not connect to a foreign server");
        self.addresses.doubt();
    }

    async fn open(&self, address: SocketAddr) -> Result<Open, String> {
        let tcp = dial(address).await?;
        let sender = match &self.authority {
            None => start(tcp).await?,
            Some(authority) => {
                let tls = authority.client().ok_or_else(|| "no authority of its certificate".to_owned())?;
                let host = self.name.rsplit_once(':').map_or(self.name.as_str(), |(host, _)| host).to_owned();
                let name = host.try_into().map_err(|_| "no name for a certificate".to_owned())?;
                let tls = TlsConnector::from(tls).connect(name, tcp).await;
                start(tls.map_err(|error| error.to_string())?).await?
            }
        };
        let now = Instant::now();
        Ok(Open { address, sender, since: now, used: now })
    }

    /// Takes over another authority where its file has changed. What the one before proved takes no further request.
    fn renew(&self) {
        if self.authority.as_ref().is_some_and(Authority::renew) {
            tracing::info!(server = &*self.name, "the authority of a foreign server has changed");
            self.state().idle.clear();
        }
    }

    /// Lets a connection wait for its next request.
    fn keep(&self, mut open: Open) {
        let mut state = self.state();
        if state.idle.len() < IDLE && self.addresses.have(&open.address) {
            open.used = Instant::now();
            state.idle.push(open);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the file of the authority, as long as anybody uses the server.
async fn renew(pool: Weak<Pool>) {
    loop {
        sleep(FILES).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.renew();
    }
}

/// Forgets what is known of addresses that the server no longer has.
async fn purge(mut addresses: Addresses, pool: Weak<Pool>) {
    loop {
        addresses.changed().await;
        let Some(pool) = pool.upgrade() else { return };
        let now = addresses.now();
        let mut state = pool.state();
        state.idle.retain(|open| now.contains(&open.address));
        state.begun.retain(|address, _| now.contains(address));
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

// === impl ForeignBody ===

impl ForeignBody {
    /// Gives the connection back where the body has ended.
    fn end_if(&mut self, has_ended: bool) {
        if has_ended && let Some((open, pool)) = self.open.take() {
            pool.keep(open);
        }
    }
}

impl Body for ForeignBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.open = None,
            None => self.end_if(true),
            // Where its length is known, nobody may ask whether more comes.
            Some(Ok(_)) => {
                let has_ended = self.body.is_end_stream();
                self.end_if(has_ended);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;
    use tokio::sync::{Barrier, watch};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{ServerConfig, version};

    use super::*;

    /// A listener that tells a request the number of its connection, the first of which is `first`. The first request of each
    /// gets its answer together with those of others.
    async fn numbering(first: usize, together: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let barrier = Arc::new(Barrier::new(together));
        tokio::spawn(async move {
            for number in first.. {
                let (tcp, _) = listener.accept().await.unwrap();
                let (barrier, asked) = (barrier.clone(), AtomicUsize::new(0));
                let service = service_fn(move |_| {
                    let (barrier, is_first) = (barrier.clone(), asked.fetch_add(1, Ordering::Relaxed) == 0);
                    async move {
                        if is_first && number < first + together {
                            barrier.wait().await;
                        }
                        Ok::<_, Infallible>(http::Response::new(number.to_string()))
                    }
                });
                tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(tcp), service));
            }
        });
        address
    }

    fn server(addresses: &[SocketAddr]) -> Foreign {
        let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        Foreign::new(addresses[0].clone(), Addresses::of("site", &addresses), None)
    }

    async fn begin(server: &Foreign) -> ForeignBody {
        let request = Request::get("/").body(()).unwrap();
        server.send(request, || Some(Received::whole(&[]))).await.unwrap().1
    }

    /// Reads an answer, and says which connection carried it once that may carry the next.
    async fn end(body: ForeignBody) -> usize {
        let number = body.collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_millis(10)).await;
        std::str::from_utf8(&number).unwrap().parse().unwrap()
    }

    async fn ask(server: &Foreign) -> usize {
        end(begin(server).await).await
    }

    fn idle(server: &Foreign) -> usize {
        server.pool.state().idle.len()
    }

    async fn pass(span: Duration) {
        tokio::time::pause();
        tokio::time::advance(span).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn the_connection_that_was_used_last_is_used_next() {
        let server = server(&[numbering(0, 3).await]);
        let (a, b, c) = tokio::join!(ask(&server), ask(&server), ask(&server));
        assert_eq!([a, b, c].into_iter().sum::<usize>(), 3);
        let last = ask(&server).await;
        for _ in 0..4 {
            assert_eq!(ask(&server).await, last);
        }
        assert_eq!(idle(&server), 3);
    }

    #[tokio::test]
    async fn a_connection_that_waited_too_long_gets_no_request() {
        let server = server(&[numbering(0, 2).await]);
        tokio::join!(ask(&server), ask(&server));
        let used = ask(&server).await;
        pass(WAITS * 3 / 4).await;
        assert_eq!(ask(&server).await, used);
        // Time enough for the other one, and not for this.
        pass(WAITS / 2).await;
        assert_eq!(ask(&server).await, used);
        assert_eq!(idle(&server), 1);
        pass(WAITS).await;
        assert_eq!(ask(&server).await, 2);
    }

    #[tokio::test]
    async fn a_connection_is_in_use_until_its_answer_has_ended() {
        let server = server(&[numbering(0, 1).await]);
        let body = begin(&server).await;
        assert_eq!(idle(&server), 0);
        pass(WAITS * 10).await;
        assert_eq!((end(body).await, idle(&server)), (0, 1));
        assert_eq!(ask(&server).await, 0);
        drop(begin(&server).await);
        assert_eq!(idle(&server), 0);
    }

    #[tokio::test]
    async fn one_request_after_another_reaches_every_address() {
        let addresses = [numbering(0, 1).await, numbering(100, 1).await, numbering(200, 1).await];
        let server = server(&addresses);
        while idle(&server) < addresses.len() {
            ask(&server).await;
        }
        let mut asked = HashMap::<usize, usize>::new();
        for _ in 0..12 {
            *asked.entry(ask(&server).await).or_default() += 1;
        }
        assert_eq!(asked, HashMap::from([(0, 4), (100, 4), (200, 4)]));
    }

    #[tokio::test]
    async fn an_address_that_nobody_answers_at_holds_up_no_request_that_another_takes() {
        // Its queue is full: connecting takes as long as it may.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let silent = listener.local_addr().unwrap();
        let _waits = dial(silent).await.unwrap();
        let server = server(&[numbering(0, 1).await, silent]);
        ask(&server).await;
        for _ in 0..10 {
            let before = Instant::now();
            assert_eq!(ask(&server).await, 0);
            assert!(before.elapsed() < CONNECT, "{:?}", before.elapsed());
        }
        assert!(server.pool.state().begun.contains_key(&silent));
    }

    /// A certificate that signs itself: what a server shows, and the file of whoever believes it.
    fn signed_by_itself() -> (Arc<ServerConfig>, String) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(config), made.cert.pem())
    }

    /// A listener that shows to each connection what it is to show then.
    async fn showing(shows: watch::Receiver<Arc<ServerConfig>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(shows.borrow().clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|_| async { Ok::<_, Infallible>(http::Response::new("0".to_owned())) });
                    let _ = server::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn another_authority_is_believed_once_its_file_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authority.pem");
        let ((first, believed), (second, later)) = (signed_by_itself(), signed_by_itself());
        std::fs::write(&file, &believed).unwrap();
        let (shows, shown) = watch::channel(first);
        let address = showing(shown).await;
        let addresses = Addresses::of("site", &[address.to_string()]);
        let server = Foreign::new(address.to_string(), addresses, Some(Authority::of(&file)));
        assert_eq!((ask(&server).await, idle(&server)), (0, 1));
        shows.send_replace(second);
        // Of both, as while certificates are changed: another length than before, however quickly it is written.
        std::fs::write(&file, believed.clone() + &later).unwrap();
        server.pool.renew();
        assert_eq!(idle(&server), 0, "it was proved to the authority of before");
        assert_eq!(ask(&server).await, 0);
        // What is no authority changes nothing, for new connections either.
        std::fs::write(&file, "nothing").unwrap();
        server.pool.renew();
        server.pool.state().idle.clear();
        assert_eq!((ask(&server).await, idle(&server)), (0, 1));
        // And one is not believed for ever.
        std::fs::write(&file, believed).unwrap();
        server.pool.renew();
        let request = Request::get("/").body(()).unwrap();
        let refused = server.send(request, || Some(Received::whole(&[]))).await;
        assert_eq!(refused.map(|_| ()).unwrap_err(), SendError::Connect);
    }

    #[tokio::test]
    async fn an_authority_that_comes_late_is_taken_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authority.pem");
        let (config, later) = signed_by_itself();
        let (_shows, shown) = watch::channel(config);
        let address = showing(shown).await;
        let addresses = Addresses::of("site", &[address.to_string()]);
        let server = Foreign::new(address.to_string(), addresses, Some(Authority::of(&file)));
        let request = || Request::get("/").body(()).unwrap();
        assert!(server.send(request(), || Some(Received::whole(&[]))).await.is_err());
        std::fs::write(&file, later).unwrap();
        server.pool.renew();
        assert_eq!(ask(&server).await, 0);
    }
}
