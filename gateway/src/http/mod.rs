//! The data plane: its listener, and one folder per dialect that only decodes and encodes.

mod again;
mod answer;
mod begun;
mod body;
mod coding;
mod guest;
mod held;
pub(crate) mod identity;
mod infer;
mod lease;
pub(crate) mod listener;
mod metadata;
pub mod oip;
pub mod peer;
mod received;
mod remote;
mod route;
mod stats;
pub(crate) mod turns;
mod unread;
pub(crate) mod unreadable;
mod verdict;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;

pub use self::listener::serve;
pub use self::received::Received;

use self::answer::{Answer, Body};
use self::identity::Identity;
use self::infer::Call;
use self::route::{Route, Target};
use crate::admit::tenants::{Door, everybody};
use crate::admit::{self, Timing};
use crate::config::tenants::{PROBER, Tenant};
use crate::error::{Error, Kind, Origin};
use crate::fleet::{Fleet, Table, wire};
use crate::snapshot::{Current, Served};
use crate::telemetry::{Telemetry, Track};

/// How the data plane speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Bytes of one request body, compressed and decompressed.
    pub max_body: usize,
    /// Bytes of bodies that are held at the same time: of requests, and of answers that clients have not taken yet.
    pub max_body_total: usize,
    /// How long a client may take to send the head of a request, and how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// How long requests in flight may take to finish once the shutdown has begun.
    pub drain: Duration,
    /// Connections at the same time; more wait in the kernel's queue.
    pub max_connections: usize,
}

/// Everything that a request needs, shared by all connections.
pub struct DataPlane {
    current: Current,
    telemetry: Arc<Telemetry>,
    config: HttpConfig,
    /// What the control plane says.
    ready: AtomicBool,
    /// Set once, when the shutdown begins.
    draining: AtomicBool,
    /// The other sites, where there are any.
    fleet: OnceLock<Arc<Fleet>>,
    /// Who may call, where not everybody may.
    door: OnceLock<Arc<Door>>,
}

impl Default for HttpConfig {
    fn default() -> HttpConfig {
        HttpConfig {
            max_body: 64 << 20,
            max_body_total: 1 << 30,
            header_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            max_connections: 8192,
        }
    }
}

impl DataPlane {
    /// A data plane that answers from whatever `current` points at.
    pub fn new(current: Current, telemetry: Arc<Telemetry>, config: HttpConfig) -> Arc<DataPlane> {
        telemetry.attach(current.clone());
        let (ready, draining) = (AtomicBool::new(true), AtomicBool::new(false));
        let (fleet, door) = (OnceLock::new(), OnceLock::new());
        Arc::new(DataPlane { current, telemetry, config, ready, draining, fleet, door })
    }

    /// Whether `/v2/health/ready` says yes. It does from the start; the control plane may hold it back until what was
    /// deployed is restored.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Answers for the models of a fleet from now on. Only the first call counts.
    pub fn join(self: &Arc<Self>, fleet: Arc<Fleet>) {
        let plane = Arc::downgrade(self);
        fleet.probe_own(Box::new(move |served, input, limit| {
            let plane = plane.clone();
            Box::pin(async move { probed(&*(plane.upgrade()?), served, input, limit).await })
        }));
        let _ = self.fleet.set(fleet);
    }

    /// Lets in nobody but tenants from now on. Only the first call counts.
    pub fn guard(&self, door: Arc<Door>) {
        let _ = self.door.set(door);
    }

    /// Who calls.
    fn caller(&self, request: &mut Request<Received>) -> Result<Arc<Tenant>, Error> {
        self.door.get().map_or_else(|| Ok(everybody()), |door| door.caller(request.headers_mut()))
    }

    /// Readiness says no from now on.
    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.draining.load(Ordering::Relaxed)
    }
}

/// The longest list of headers of a request over HTTP/2, bytes. Over HTTP/1 hyper has its own bound, and refuses by it.
const MAX_HEADERS: usize = 16 << 10;

/// What a header counts beside its name and its value, as HTTP/2 says.
const HEADER_OVERHEAD: usize = 32;

/// Whether a request's headers are more than is taken.
fn has_too_long_headers<B>(request: &Request<B>) -> bool {
    let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + HEADER_OVERHEAD;
    request.version() == Version::HTTP_2 && request.headers().iter().map(length).sum::<usize>() > MAX_HEADERS
}

/// Answers one request, whatever comes of it.
async fn handle(plane: Arc<DataPlane>, request: Request<Incoming>) -> Answer {
    let started = Instant::now();
    let request = Received::of(request);
    let identity = Identity::of(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = match Route::parse(uri.path()) {
        _ if has_too_long_headers(&request) => {
            let error = Error::unreadable(Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
            failed(plane.telemetry.track(None, started), &error, &identity)
        }
        None => {
            let error = Error::new(Kind::NotFound, "there is nothing at this path");
            failed(plane.telemetry.track(None, started), &error, &identity)
        }
        Some(route) => match route.methods() {
            Some(methods) if !methods.split(", ").any(|m| m == method.as_str()) => answer::wrong_method(methods),
            _ => routed(&plane, route, request, &identity, started).await,
        },
    };
    identity.stamp(response.headers_mut());
    response.body_mut().count(&plane);
    tracing::debug!(
        target: "windrose::access",
        request_id = &*identity.request_id,
        %method,
        path = uri.path(),
        status = response.status().as_u16(),
        micros = started.elapsed().as_micros() as u64,
    );
    Ok(response)
}

/// Answers a request whose path and method fit.
async fn routed(
    plane: &DataPlane,
    route: Route<'_>,
    mut request: Request<Received>,
    identity: &Identity,
    started: Instant,
) -> Response<Body> {
    let is_public = matches!(route, Route::Server | Route::Live | Route::Ready);
    let tenant = match if is_public { Ok(everybody()) } else { plane.caller(&mut request) } {
        Ok(tenant) => tenant,
        Err(error) => return failed(plane.telemetry.track(None, started), &error, identity),
    };
    match route {
        Route::Server => described(metadata::server()),
        Route::Live => answer::json(StatusCode::OK, &br#"{"live":true}"#[..]),
        Route::Ready if plane.is_ready() => answer::json(StatusCode::OK, &br#"{"ready":true}"#[..]),
        Route::Ready => answer::json(StatusCode::SERVICE_UNAVAILABLE, &br#"{"ready":false}"#[..]),
        Route::Metadata(_) | Route::ModelReady(_) => {
            match read(plane, &tenant, route, (request, identity, started)).await {
                Ok(response) => response,
                Err(error) => failed(plane.telemetry.track(None, started), &error, identity),
            }
        }
        Route::Statistics(target) => match statistics(plane, target) {
            Ok(response) => response,
            Err(error) => failed(plane.telemetry.track(None, started), &error, identity),
        },
        Route::Infer(target) | Route::Guest(target, _) => {
            called(plane, &tenant, target, route, (request, identity, started)).await
        }
    }
}

/// Answers a call of a model: an inference, or a guest's own exchange.
async fn called(
    plane: &DataPlane,
    tenant: &Tenant,
    target: Target<'_>,
    route: Route<'_>,
    (mut request, identity, started): (Request<Received>, &Identity, Instant),
) -> Response<Body> {
    let refused = |error: &Error| failed(plane.telemetry.track(None, started), error, identity);
    wire::drop_internal(request.headers_mut());
    let find = || admit::find(&plane.current.load(), target.model, target.version);
    let Some(fleet) = plane.fleet.get() else {
        let lawful = find().and_then(|served| admit::check_law(&served, tenant, request.headers()).map(|()| served));
        return match lawful {
            Ok(served) => {
                answered(plane, served, route.rest(), (request, identity, started), Asked::by_client(tenant)).await
            }
            Err(error) => refused(&error),
        };
    };
    let table = table(plane, fleet);
    let Some(replicated) = table.find(target.model, target.version) else {
        return refused(&match find() {
            Ok(_) => Error::new(Kind::NotReady, "the model is being published"),
            Err(error) => nowhere(fleet, target, error),
        });
    };
    // In a box, as everything that a call here does not need: hyper moves the future of every request.
    let found = (&*table, replicated);
    match Box::pin(remote::answer(plane, fleet, tenant, found, route, (request, identity, started))).await {
        Ok(response) => response,
        Err(error) => refused(&error),
    }
}

/// The fleet's table. What was deployed a moment ago is in the snapshot before it is there.
fn table(plane: &DataPlane, fleet: &Fleet) -> Arc<Table> {
    let table = fleet.table();
    if table.is_of(&plane.current.load()) { table } else { fleet.refreshed() }
}

/// Why nobody answers for what no site serves that is heard of, and this one does not for that reason. What a site has,
/// or had when it was last heard of, exists: a client is not told that it does not.
fn nowhere(fleet: &Fleet, target: Target<'_>, here: Error) -> Error {
    if here.kind != Kind::NotFound || !fleet.has_heard_of(target.model, target.version) {
        return here;
    }
    Error::new(Kind::Unavailable, format!("no site that has model {:?} can answer for it now", target.model))
}

/// What is known of a call beside its request.
struct Asked {
    /// Whose it is.
    tenant: Arc<str>,
    /// The longest that it may take, where that is known already.
    limit: Option<Duration>,
    /// Whether it is a peer's golden probe, which counts as no request.
    probe: bool,
}

impl Asked {
    fn by_client(tenant: &Tenant) -> Asked {
        Asked { tenant: tenant.name.clone(), limit: None, probe: false }
    }
}

/// Answers a call here, on this very version.
async fn answered(
    plane: &DataPlane,
    served: Arc<Served>,
    rest: Option<&str>,
    (request, identity, started): (Request<Received>, &Identity, Instant),
    asked: Asked,
) -> Response<Body> {
    let mut track = Some(match asked.probe {
        true => plane.telemetry.untracked(started),
        false => plane.telemetry.track(Some(&served), started),
    });
    let timing = Timing { started, header: asked.limit, dialect: None };
    let call = Call { plane, served, identity, tenant: asked.tenant, timing };
    let result = match (rest, &mut track) {
        (Some(rest), track) => Box::pin(guest::answer(call, request, rest, track)).await,
        (None, Some(track)) => infer::answer(call, request, track).await,
        (None, None) => Err(Error::new(Kind::Internal, "internal error")),
    };
    match (result, track) {
        (Ok(response), Some(mut track)) => {
            track.finish(None);
            track.sent(response.body().length());
            response
        }
        (Ok(response), None) => response,
        (Err(error), Some(track)) => failed(track, &error, identity),
        (Err(error), None) => failed(plane.telemetry.track(None, started), &error, identity),
    }
}

/// Answers a golden test of a version that is served here.
async fn probed(plane: &DataPlane, served: Arc<Served>, input: Bytes, limit: Duration) -> Option<(StatusCode, Bytes)> {
    let mut request = Request::post("/").body(Received::whole(&[input])).ok()?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let identity = Identity::of(request.headers());
    let asked = Asked { tenant: PROBER.into(), limit: Some(limit), probe: true };
    let answer = answered(plane, served, None, (request, &identity, Instant::now()), asked).await;
    let status = answer.status();
    Some((status, answer.into_body().collect().await.ok()?.to_bytes()))
}

/// The answer to a request that failed, counted and logged.
fn failed(track: Track, error: &Error, identity: &Identity) -> Response<Body> {
    note(track, error, identity);
    answer::failure(error)
}

/// Counts and logs a failure.
fn note(mut track: Track, error: &Error, identity: &Identity) {
    track.finish(Some(error.kind));
    let request_id = &*identity.request_id;
    let (kind, detail) = (error.kind.as_str(), error.detail.as_deref().unwrap_or_default());
    match error.kind.origin() {
        Origin::Ours if error.kind == Kind::Internal => {
            tracing::error!(request_id, kind, detail, message = error.message);
        }
        Origin::Guest | Origin::Peer => tracing::warn!(request_id, kind, detail, message = error.message),
        Origin::Caller | Origin::Ours => tracing::debug!(request_id, kind, detail, message = error.message),
    }
}

/// Metadata of a model, or whether it is ready: from here where calls may be answered here, else from a site where they
/// may. Without a fleet, whatever admission finds is.
///
/// # Errors
/// [`Kind::NotFound`] where no site has it; why no site that does answered.
async fn read(
    plane: &DataPlane,
    tenant: &Tenant,
    route: Route<'_>,
    (mut request, identity, started): (Request<Received>, &Identity, Instant),
) -> Result<Response<Body>, Error> {
    let (Route::Metadata(target) | Route::ModelReady(target)) = route else {
        return Err(Error::new(Kind::Internal, "internal error"));
    };
    let here = || described_model(plane, target, matches!(route, Route::Metadata(_)));
    let Some(fleet) = plane.fleet.get() else { return here() };
    let table = table(plane, fleet);
    match table.find(target.model, target.version) {
        Some(found) if !found.answers_at(&fleet.config.site) => {
            wire::drop_internal(request.headers_mut());
            let found = (&*table, found);
            Box::pin(remote::answer(plane, fleet, tenant, found, route, (request, identity, started))).await
        }
        Some(_) => here(),
        None => here().map_err(|error| nowhere(fleet, target, error)),
    }
}

/// Metadata of a model that is served here, or only whether it is ready: whatever admission finds is.
fn described_model(plane: &DataPlane, target: Target<'_>, wants_metadata: bool) -> Result<Response<Body>, Error> {
    let served = admit::find(&plane.current.load(), target.model, target.version)?;
    Ok(described_version(plane, &served, wants_metadata))
}

/// Metadata of a version that is served here, or only that it is ready.
fn described_version(plane: &DataPlane, served: &Served, wants_metadata: bool) -> Response<Body> {
    let (name, version) = (&served.manifest.name, &served.manifest.version);
    if !wants_metadata {
        let ready = format!(r#"{{"name":"{name}","version":"{version}","ready":true}}"#);
        return answer::json(StatusCode::OK, ready);
    }
    let versions = plane.current.load().model(name).cloned().unwrap_or_default();
    described(metadata::model(served, &versions))
}

/// Statistics of one version of a model, of all its versions where none is named, or of everything.
fn statistics(plane: &DataPlane, target: Option<Target<'_>>) -> Result<Response<Body>, Error> {
    let snapshot = plane.current.load();
    let Some(Target { model, version }) = target else {
        let all = snapshot.models().flat_map(|(_, versions)| versions.iter());
        return Ok(described(stats::of(all.map(Arc::as_ref))));
    };
    let found = admit::find(&snapshot, model, version)?;
    let versions = snapshot.model(model).filter(|_| version.is_none());
    Ok(described(match versions {
        Some(versions) => stats::of(versions.iter().map(Arc::as_ref)),
        None => stats::of(std::iter::once(&*found)),
    }))
}

/// An answer of JSON that was written by `serde`.
fn described(written: Result<Vec<u8>, serde_json::Error>) -> Response<Body> {
    match written {
        Ok(json) => answer::json(StatusCode::OK, json),
        Err(error) => answer::failure(&Error::new(Kind::Internal, "internal error").with_detail(error.to_string())),
    }
}
