//! The peer listener: HTTP/2 over TLS with certificates on both sides. What peers say is believed here and nowhere else.
//! A forwarded request is answered or refused, and never forwarded again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::Reason;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use windrose_route::Rules;

use super::answer::{self, Body};
use super::identity::Identity;
use super::listener::{Bounds, drive, each};
use super::received::Received;
use super::route::{Route, Target};
use super::{Asked, DataPlane, answered, described_version, failed, remote};
use crate::admit;
use crate::control::store::hex;
use crate::error::{Error, Kind};
use crate::fleet::follow::{CATALOG, LAWS, LOAD, POLL};
use crate::fleet::probe::GOLDEN;
use crate::fleet::wire::{self, Forwarded, Report, Standing};
use crate::fleet::{Fleet, Replicated, Table, To, catalog, tls};
use crate::snapshot::Served;
use crate::telemetry::{Probed, SiteMetrics};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at the same time.
const MAX_CONNECTIONS: usize = 4096;
/// Streams of one connection at the same time.
const MAX_STREAMS: u32 = 1024;
/// How much of one stream, and of all streams of a connection, may be on the way, bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// All streams together have as much as each has: a body that nobody reads yet holds up no other.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// The longest list of headers, bytes: what a client may send, and what a gateway adds.
const READ_HEADERS: u32 = 288 << 10;
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(5);

/// Serves peers until `shutdown`; requests in flight then have the data plane's time to finish.
pub async fn serve(listener: TcpListener, plane: Arc<DataPlane>, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let bounds = Bounds { connections: MAX_CONNECTIONS, drain: plane.config.drain };
    let serve = |stream, _| connection(stream, plane.clone(), fleet.clone(), shutdown.clone());
    each(listener, &bounds, &shutdown, serve).await;
}

/// What answers the requests of a connection.
struct Peer {
    plane: Arc<DataPlane>,
    fleet: Arc<Fleet>,
    stop: CancellationToken,
    /// Whose connection it is, as its certificate proves.
    site: Arc<str>,
    /// What is counted of that site.
    metrics: Arc<SiteMetrics>,
    /// Its certificate no longer proves that.
    over: CancellationToken,
}

async fn connection(stream: TcpStream, plane: Arc<DataPlane>, fleet: Arc<Fleet>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(fleet.identity().server.clone());
    let mut stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::warn!(%error, "refused a connection to the peer listener"),
        Err(_) => return,
    };
    stream.get_mut().1.set_buffer_limit(Some(tls::SEND_BUFFER));
    // The authority signed it; it must also be the certificate of a site of this fleet.
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let Some(site) = chain.first().and_then(|own| fleet.peer_of(own)) else {
        return tracing::warn!("refused a connection to the peer listener: the certificate is no site's of this fleet");
    };
    tracing::debug!(site = &*site, "a peer has connected");
    let metrics = plane.telemetry.site(&site);
    let (drain, over) = (plane.config.drain, CancellationToken::new());
    let peer = Arc::new(Peer { plane, fleet, stop: stop.clone(), site, metrics, over: over.clone() });
    let judged = peer.clone();
    let service = service_fn(move |request| handle(peer.clone(), request));
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(tls::MAX_FRAME)
        .max_header_list_size(READ_HEADERS)
        // A peer is known: what it begins and gives up in one breath is no attack.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    let ends = async {
        tokio::select! {
            () = stop.cancelled() => {}
            why = judged.fleet.doubts(&judged.site, &chain) => {
                tracing::warn!(site = &*judged.site, why, "a peer's connection is ended");
                over.cancel();
            }
        }
    };
    let late = async {
        over.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        ended = drive(served, ends) => if let Err(error) = ended {
            tracing::debug!(%error, "a peer's connection ended early");
        },
        () = late => {}
    }
}

/// What a peer's request gets: an answer, or the stream is refused.
type Answer = Result<Response<Body>, h2::Error>;

async fn handle(peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
    if peer.over.is_cancelled() {
        // On its way when the connection ended: whoever sent it may send it again, over another.
        return Err(Reason::REFUSED_STREAM.into());
    }
    let started = Instant::now();
    let uri = request.uri().clone();
    let mut response = match uri.path() {
        CATALOG => peer.catalog(uri.query()).await,
        LAWS => described(peer.fleet.laws_of(uri.query())),
        LOAD => peer.load(),
        path if path.starts_with(GOLDEN) => peer.golden(&path[GOLDEN.len()..]).await,
        _ => {
            // The answer goes without them: the peer puts its own on what it gives the client.
            let identity = Identity::of(request.headers());
            peer.forwarded(request, &identity, started).await
        }
    };
    response.body_mut().count(&peer.plane);
    Ok(response)
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
            () = self.over.cancelled() => None,
        };
        let now = now.unwrap_or_else(|| self.fleet.catalog().borrow().clone());
        described(serde_json::to_vec(&*now))
    }

    /// What is ready here, and how much there is to do.
    fn load(&self) -> Response<Body> {
        self.metrics.probed(Probed::Load);
        let (table, here) = (self.fleet.table(), self.fleet.config.site.as_str());
        let all = table.all().filter(|_| self.fleet.is_serving());
        let ready = all.filter_map(|found| {
            let place = found.places.get(here)?;
            let To::Here(served) = &place.to else { return None };
            let numbers = wire::load_numbers(&catalog::load(served));
            Some((found.model.clone(), found.version.clone(), hex(&place.digest?), numbers))
        });
        let standing = Standing { generation: self.fleet.generation(), ready: ready.collect() };
        described(serde_json::to_vec(&standing))
    }

    /// A file of a golden test.
    async fn golden(&self, digest: &str) -> Response<Body> {
        let lawful = self.fleet.may_have_golden(digest, &self.site);
        match if lawful { self.fleet.golden(digest).await } else { None } {
            Some(bytes) => answer::bytes(HeaderValue::from_static("application/octet-stream"), vec![bytes]),
            None => answer::failure(&Error::new(Kind::NotFound, "no golden test has that file")),
        }
    }

    /// Answers a forwarded request here, or refuses it.
    async fn forwarded(&self, request: Request<Incoming>, identity: &Identity, started: Instant) -> Response<Body> {
        let mut request = Received::of(request);
        let told = match Forwarded::take(request.headers_mut()) {
            Ok(told) => told,
            Err(error) => return failed(self.plane.telemetry.track(None, started), &error, identity),
        };
        if told.probe {
            self.metrics.probed(Probed::Golden);
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let route = Route::parse(uri.path());
        let mut response = match self.answer(&told, route, (request, identity, started)).await {
            Ok(response) => response,
            Err(error) => {
                let track = match told.probe {
                    true => self.plane.telemetry.untracked(started),
                    false => self.plane.telemetry.track(None, started),
                };
                failed(track, &error, identity)
            }
        };
        self.report(&mut response, &told, route);
        tracing::debug!(
            target: "windrose::access",
            request_id = &*identity.request_id,
            site = &*self.site,
            tenant = &*told.tenant,
            attempt = told.attempt,
            probe = told.probe,
            %method,
            path = uri.path(),
            status = response.status().as_u16(),
            micros = started.elapsed().as_micros() as u64,
        );
        response
    }

    /// Says on an answer how much there is to do for what was asked for, whether its digest is ready, and of which catalogue
    /// that is. Where it is not served, the load is that of what is served under its name.
    fn report(&self, response: &mut Response<Body>, told: &Forwarded, route: Option<Route<'_>>) {
        let target = route.and_then(|route| route.target());
        let table = self.fleet.table();
        let asked = target.and_then(|target| self.serving(&table, target, told)).map(|(_, served)| served);
        let ready = asked.is_some() && self.fleet.is_serving();
        let named = || admit::find(&self.plane.current.load(), target?.model, target?.version).ok();
        let load = asked.cloned().or_else(named).map(|served| catalog::load(&served)).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(wire::LOAD, Report { load, generation: self.fleet.generation(), ready }.header());
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            wire::say_rest(response.headers_mut(), &load);
        }
    }

    /// Answers what a peer forwards.
    ///
    /// # Errors
    /// Why it may not be answered here.
    async fn answer(
        &self,
        told: &Forwarded,
        route: Option<Route<'_>>,
        (request, identity, started): (Request<Received>, &Identity, Instant),
    ) -> Result<Response<Body>, Error> {
        Ok(match route {
            Some(route @ (Route::Infer(target) | Route::Guest(target, _))) => {
                let served = self.serves(target, told)?;
                let limit = Some(remote::remaining(told, request.headers())?);
                let asked = Asked { tenant: told.tenant.clone(), limit, probe: told.probe };
                let call = (request, identity, started);
                let mut response = answered(&self.plane, served, route.rest(), call, asked).await;
                response.body_mut().goes_to_peer();
                if answer::is_modules(&response) {
                    wire::of_module(response.headers_mut());
                }
                response
            }
            Some(route @ (Route::Metadata(target) | Route::ModelReady(target))) => {
                let served = self.serves(target, told)?;
                described_version(&self.plane, &served, matches!(route, Route::Metadata(_)))
            }
            _ => return Err(Error::new(Kind::NotFound, "there is nothing at this path")),
        })
    }

    /// The version that a forwarded request asks for, if it is served here and the law allows that.
    fn serves(&self, target: Target<'_>, told: &Forwarded) -> Result<Arc<Served>, Error> {
        let table = self.fleet.table();
        let (found, served) = self
            .serving(&table, target, told)
            .ok_or_else(|| Error::new(Kind::NotHere, "this site does not serve that digest of the model"))?;
        let every = |rules: &Rules| remote::check_law(rules, Some(&self.fleet), Some(found));
        every(&told.rules)?;
        every(found.law(target.version))?;
        Ok(served.clone())
    }

    /// The version of a model that has the digest that a forwarded request asks for, if it is served here.
    fn serving<'a>(
        &self,
        table: &'a Table,
        target: Target<'_>,
        told: &Forwarded,
    ) -> Option<(&'a Arc<Replicated>, &'a Arc<Served>)> {
        let here = self.fleet.config.site.as_str();
        // Of two versions with the same files each has its own law.
        let named = |found: &&Arc<Replicated>| target.version.is_none_or(|version| version == found.version);
        table.versions(target.model).filter(named).find_map(|found| {
            let place = found.places.get(here).filter(|place| place.digest == Some(told.digest))?;
            match &place.to {
                To::Here(served) => Some((found, served)),
                To::There(_) => None,
            }
        })
    }
}

fn described(written: Result<Vec<u8>, serde_json::Error>) -> Response<Body> {
    answer::json(StatusCode::OK, written.unwrap_or_default())
}
