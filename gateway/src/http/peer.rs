//! The peer listener: HTTP/2 over TLS with certificates on both sides. What peers say is believed here and nowhere else.
//! A forwarded request is answered or refused, and never forwarded again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use windrose_route::Rules;

use super::answer::{self, Answer, Body};
use super::identity::Identity;
use super::listener::{drive, next};
use super::received::Received;
use super::route::{Route, Target};
use super::{DataPlane, answered, failed, remote};
use crate::error::{Error, Kind};
use crate::fleet::follow::{CATALOG, LOAD, POLL};
use crate::fleet::probe::GOLDEN;
use crate::fleet::wire::{self, Forwarded};
use crate::fleet::{Fleet, To, catalog, tls};
use crate::snapshot::Served;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at the same time.
const MAX_CONNECTIONS: usize = 4096;
/// Streams of one connection at the same time.
const MAX_STREAMS: u32 = 1024;
/// How much of one stream, and of all streams of a connection, may be on the way, bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(5);

/// Serves peers until `shutdown`; requests in flight then have the data plane's time to finish.
pub async fn serve(listener: TcpListener, plane: Arc<DataPlane>, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, slot)) = next(&listener, &slots, &shutdown).await {
        let peer = Peer { plane: plane.clone(), fleet: fleet.clone(), stop: shutdown.clone() };
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, Arc::new(peer)) => {}
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(plane.config.drain, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

/// What answers the requests of a connection.
struct Peer {
    plane: Arc<DataPlane>,
    fleet: Arc<Fleet>,
    stop: CancellationToken,
}

async fn connection(stream: TcpStream, peer: Arc<Peer>) {
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(peer.fleet.identity().server.clone());
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::warn!(%error, "refused a connection to the peer listener"),
        Err(_) => return,
    };
    // The authority signed it; it must also be the certificate of a site of this fleet.
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let site = certificate.and_then(|c| peer.fleet.peers().into_iter().find(|site| tls::is_site(c, site)));
    let Some(site) = site else {
        return tracing::warn!("refused a connection to the peer listener: the certificate is no site's of this fleet");
    };
    tracing::debug!(site = &*site, "a peer has connected");
    let (handler, stop) = (peer.clone(), peer.stop.clone());
    let service = service_fn(move |request| handle(handler.clone(), request));
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = drive(served, stop).await {
        tracing::debug!(%error, "a peer's connection ended early");
    }
}

async fn handle(peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
    let started = Instant::now();
    let uri = request.uri().clone();
    Ok(match uri.path() {
        CATALOG => peer.catalog(uri.query()).await,
        LOAD => peer.load(),
        path if path.starts_with(GOLDEN) => peer.golden(&path[GOLDEN.len()..]).await,
        _ => {
            let identity = Identity::of(request.headers());
            let mut response = match peer.forwarded(request, &identity, started).await {
                Ok(response) => response,
                Err(error) => failed(peer.plane.telemetry.track(None, started), &error, &identity),
            };
            identity.stamp(response.headers_mut());
            response
        }
    })
}

impl Peer {
    /// What is served here; waits for another content than the one that the peer knows.
    async fn catalog(&self, query: Option<&str>) -> Response<Body> {
        let known: Option<u64> = query.and_then(|query| query.strip_prefix("after=")?.parse().ok());
        let mut catalog = self.fleet.catalog();
        let other = async { catalog.wait_for(|now| Some(now.generation) != known).await.map(|now| now.clone()) };
        let now = tokio::select! {
            now = tokio::time::timeout(POLL, other) => now.ok().and_then(Result::ok),
            // A peer that waits must not hold up the end.
            () = self.stop.cancelled() => None,
        };
        let now = now.unwrap_or_else(|| self.fleet.catalog().borrow().clone());
        described(serde_json::to_vec(&*now))
    }

    /// The load of everything that is served here.
    fn load(&self) -> Response<Body> {
        let snapshot = self.plane.current.load();
        let served = snapshot.models().flat_map(|(_, versions)| versions.iter());
        let of = |served: &Arc<Served>| {
            let numbers = wire::load_numbers(&catalog::load(served));
            (served.manifest.name.clone(), served.manifest.version.clone(), numbers)
        };
        described(serde_json::to_vec(&served.map(of).collect::<Vec<_>>()))
    }

    /// A file of a golden test.
    async fn golden(&self, digest: &str) -> Response<Body> {
        match self.fleet.golden(digest).await {
            Some(bytes) => answer::bytes(HeaderValue::from_static("application/octet-stream"), vec![bytes]),
            None => answer::failure(&Error::new(Kind::NotFound, "no golden test has that file")),
        }
    }

    /// Answers a forwarded request here, or refuses it.
    async fn forwarded(
        &self,
        request: Request<Incoming>,
        identity: &Identity,
        started: Instant,
    ) -> Result<Response<Body>, Error> {
        let (mut head, body) = Received::of(request).into_parts();
        let told = Forwarded::take(&mut head.headers)?;
        let uri = head.uri.clone();
        let (target, rest) = match Route::parse(uri.path()) {
            Some(Route::Infer(target)) => (target, None),
            Some(Route::Guest(target, rest)) => (target, Some(rest)),
            _ => return Err(Error::new(Kind::NotFound, "there is nothing at this path")),
        };
        let served = self.serves(target, &told)?;
        let limit = remote::remaining(&told, &head.headers)?;
        let call = (Request::from_parts(head, body), identity, started);
        let mut response = answered(&self.plane, served.clone(), rest, call, Some(limit)).await;
        response.headers_mut().insert(wire::LOAD, wire::load_header(&catalog::load(&served)));
        Ok(response)
    }

    /// The version that a forwarded request asks for, if it is served here and the law allows that.
    fn serves(&self, target: Target<'_>, told: &Forwarded) -> Result<Arc<Served>, Error> {
        let table = self.fleet.table();
        let here = self.fleet.config.site.as_str();
        let found = table.all().filter(|found| found.model == target.model).find_map(|found| {
            let place = found.places.get(here).filter(|place| place.digest == Some(told.digest))?;
            match &place.to {
                To::Here(served) => Some((found, served)),
                To::There(_) => None,
            }
        });
        let (found, served) =
            found.ok_or_else(|| Error::new(Kind::NotHere, "this site does not serve that digest of the model"))?;
        let every = |rules: &Rules| remote::check_law(rules, Some(&self.fleet), Some(found));
        every(&told.rules)?;
        every(&found.rules)?;
        Ok(served.clone())
    }
}

fn described(written: Result<Vec<u8>, serde_json::Error>) -> Response<Body> {
    answer::json(StatusCode::OK, written.unwrap_or_default())
}
