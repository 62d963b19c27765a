//! A request becomes [`Admitted`]: its model is found, its inputs fit the declaration, it has a deadline and a permit.
//! This is the only place that refuses by policy.

mod calls;
mod signature;
pub mod tenants;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use windrose_route::{Rules, Source};
use windrose_sandbox::ModuleKind;

pub use self::calls::{Calls, Place};
use crate::config::tenants::Tenant;
use crate::error::{Error, Kind};
use crate::fleet::wire::wishes;
use crate::request::Request;
use crate::snapshot::{NotReady, Served, Snapshot};

/// What was admitted, with everything that its call needs.
pub struct Admitted<T> {
    /// The version that answers; the request finishes on it whatever is deployed meanwhile.
    pub served: Arc<Served>,
    /// One of the model's calls at the same time. It is given back when the answer is complete.
    pub permit: Place,
    /// After this the answer is of no use. Made once, here.
    pub deadline: Instant,
    /// The request's id, for log lines.
    pub request_id: Arc<str>,
    /// Who is calling.
    pub tenant: Arc<str>,
    /// What is asked.
    pub what: T,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The request's id.
    pub request_id: Arc<str>,
    /// Whose share of the engines it takes, and whose requests it may share a batch with.
    pub tenant: Arc<str>,
}

/// When a request arrived and how long its answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When its head arrived.
    pub started: Instant,
    /// What the caller asked for in a header.
    pub header: Option<Duration>,
    /// What the caller asked for in the dialect's own way.
    pub dialect: Option<Duration>,
}

/// Finds a version of a model in one snapshot; the highest that is ready where the caller names none.
///
/// # Errors
/// [`Kind::NotFound`], naming what is not there; [`Kind::NotReady`] for what is deployed and does not answer.
pub fn find(snapshot: &Snapshot, model: &str, version: Option<&str>) -> Result<Arc<Served>, Error> {
    let versions = snapshot.model(model);
    let served = versions.and_then(|versions| match version {
        None => versions.highest(),
        Some(version) => versions.get(version),
    });
    served.cloned().ok_or_else(|| missing(snapshot, model, version))
}

/// Why nothing answers for a model, or for one version of it.
#[cold]
fn missing(snapshot: &Snapshot, model: &str, version: Option<&str>) -> Error {
    let unready = snapshot.unready(model);
    let known = snapshot.model(model).is_some() || !unready.is_empty();
    let what = match version.filter(|_| known) {
        Some(version) => format!("version {:?} of model {:?}", clipped(version), clipped(model)),
        None => format!("model {:?}", clipped(model)),
    };
    let mut named = unready.iter().filter(|v| version.is_none_or(|version| v.version == version)).peekable();
    if named.peek().is_none() {
        return Error::new(Kind::NotFound, format!("{what} is not deployed"));
    }
    // One that is still being loaded may answer soon, whatever became of the others.
    let message = match named.any(|v| v.why == NotReady::Loading) {
        true => format!("{what} is being loaded"),
        false => format!("{what} could not be loaded after the gateway's start"),
    };
    Error::new(Kind::NotReady, message)
}

/// Refuses what is bound to a jurisdiction, at a gateway that is no site of a fleet: nobody knows whose law holds there.
///
/// # Errors
/// [`Kind::Unlawful`]; [`Kind::Malformed`] for rules of the caller that cannot be read.
pub fn check_law(served: &Served, tenant: &Tenant, headers: &HeaderMap) -> Result<(), Error> {
    let wishes = wishes(headers)?;
    let rules = served.manifest.jurisdictions.bind(Rules::none());
    let rules = rules.and(Source::Tenant, tenant.allow.clone(), tenant.deny.clone());
    let rules = rules.and(Source::Request, wishes.allow, wishes.deny);
    let message = |breach| format!("this gateway may not answer: {breach}");
    rules.permit(None).map_err(|breach| Error::new(Kind::Unlawful, message(breach)))
}

/// Refuses a model of another kind than the caller's way of calling takes.
///
/// # Errors
/// [`Kind::InvalidInput`], saying where the model is called.
pub fn check_kind(served: &Served, wants_inference: bool) -> Result<(), Error> {
    let name = &served.manifest.name;
    let message = match (served.kind, wants_inference) {
        (ModuleKind::Model, true) | (ModuleKind::Http | ModuleKind::Command, false) => return Ok(()),
        (ModuleKind::Model, false) => format!("model {name:?} takes inferences: POST /v2/models/{name}/infer"),
        (ModuleKind::Http, true) => format!("model {name:?} is an http component: call it under /models/{name}/"),
        (ModuleKind::Command, true) => format!("model {name:?} is a command: POST its input to /models/{name}"),
    };
    Err(Error::new(Kind::InvalidInput, message))
}

/// Refuses at once what would only wait, before its body is read.
///
/// # Errors
/// [`Kind::Overloaded`] when as many of the model's calls are in flight as may be, or as its tenant may have.
pub fn check_load(served: &Served, tenant: &Arc<str>) -> Result<(), Error> {
    let has_room = served.calls.has_room(tenant, |in_flight| serving(served, in_flight));
    if has_room { Ok(()) } else { Err(overloaded(served)) }
}

/// Those of a model's calls in flight that do not wait for an engine; at least one for each of its graph's sessions.
fn serving(served: &Served, in_flight: usize) -> usize {
    let sessions = served.graphs.iter().map(|(_, graph)| graph.info().sessions).max();
    in_flight.saturating_sub(served.program.waiting()).max(sessions.unwrap_or(0))
}

/// The deadline of a request: the shorter of the two ways to ask for one, the model's default without either, and
/// never beyond the model's maximum.
pub fn deadline(served: &Served, timing: Timing) -> Instant {
    let asked = match (timing.header, timing.dialect) {
        (Some(header), Some(dialect)) => Some(header.min(dialect)),
        (header, dialect) => header.or(dialect),
    };
    timing.started + asked.unwrap_or(served.default_timeout).min(served.max_timeout)
}

/// Admits an inference whose inputs and outputs fit the model's declaration.
///
/// # Errors
/// [`Kind::InvalidInput`] naming the input or output; [`Kind::Overloaded`]; [`Kind::Deadline`].
pub async fn inference(
    served: Arc<Served>,
    caller: Caller,
    timing: Timing,
    request: Request,
) -> Result<Admitted<Request>, Error> {
    if let Some(spec) = &served.signature {
        signature::check(spec, &request).map_err(|message| Error::new(Kind::InvalidInput, message))?;
    }
    exchange(served, caller, timing, request).await
}

/// Admits what has no declaration to fit, once it has its place.
///
/// # Errors
/// [`Kind::Overloaded`]; [`Kind::Deadline`].
pub async fn exchange<T>(served: Arc<Served>, caller: Caller, timing: Timing, what: T) -> Result<Admitted<T>, Error> {
    let deadline = deadline(&served, timing);
    let has_passed = || deadline <= Instant::now();
    let late = || Error::new(Kind::Deadline, "the deadline passed");
    if has_passed() {
        return Err(late());
    }
    let Caller { request_id, tenant } = caller;
    let permit = served.calls.enter(&tenant, |in_flight| serving(&served, in_flight), deadline).await;
    let permit = permit.ok_or_else(|| if has_passed() { late() } else { overloaded(&served) })?;
    Ok(Admitted { served, permit, deadline, request_id, tenant, what })
}

#[cold]
fn overloaded(served: &Served) -> Error {
    let name = &served.manifest.name;
    Error::new(Kind::Overloaded, format!("model {name:?} has {} calls in flight", served.calls.here()))
}

/// A caller's text, short enough for a message.
fn clipped(text: &str) -> &str {
    let end = (0..=128.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}
