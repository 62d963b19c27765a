//! A call that may be answered at any site: its bytes are held, `dispatch` picks replicas, and each attempt either runs
//! here or sends the same bytes on. Decoding happens only where the request runs.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;
use http_body_util::BodyExt;
use windrose_route::{AttemptId, Call, Failure, Hedging, Reason, ReplicaId, Rules, Source, Verdict};

use super::answer::{self, Body};
use super::body::before;
use super::held::Held;
use super::identity::Identity;
use super::infer::timeout_header;
use super::lease::Lease;
use super::received::Received;
use super::route::Route;
use super::{Asked, DataPlane, answered, verdict};
use crate::config::tenants::Tenant;
use crate::dispatch::replicas::{self, Lost, Outcome, Replicas, Running, Won};
use crate::dispatch::upload::Upload;
use crate::error::{Error, Kind};
use crate::fleet::upstream::{Answer, Outgoing, SendError, Upstream};
use crate::fleet::wire::{self, Forwarded, Report};
use crate::fleet::{Fleet, Place, Replicated, Table, To, catalog};
use crate::snapshot::Served;
use crate::telemetry::Attempt;

/// Where an answer comes from.
const SITE: HeaderName = HeaderName::from_static("windrose-site");
/// How many attempts there were.
const ATTEMPTS: HeaderName = HeaderName::from_static("windrose-attempts");

/// A call, as its attempts share it.
struct Shared<'a> {
    plane: &'a DataPlane,
    fleet: &'a Fleet,
    found: &'a Replicated,
    identity: &'a Identity,
    /// What chooses among the replicas.
    replicas: Arc<Replicas>,
    route: Route<'a>,
    tenant: Arc<str>,
    head: request::Parts,
    body: Kept,
    rules: Arc<Rules>,
    started: Instant,
    deadline: Instant,
}

/// The body of a request.
enum Kept {
    /// All of it, for as many attempts as it takes: the pieces as they came, which all of them share.
    Whole(Arc<[Bytes]>),
    /// Too large to be held: for one attempt, whichever takes it. And the waits for it.
    Once(Arc<Mutex<Option<Received>>>, Arc<Upload>),
}

/// Answers a call of `found` in the table, here or elsewhere, or a read of its metadata or readiness elsewhere. Where
/// the request names no version, its own rules may leave it another one.
///
/// # Errors
/// What the request itself has wrong, or why no replica answered.
pub(super) async fn answer(
    plane: &DataPlane,
    fleet: &Fleet,
    tenant: &Tenant,
    (table, found): (&Table, &Arc<Replicated>),
    route: Route<'_>,
    (request, identity, started): (Request<Received>, &Identity, Instant),
) -> Result<Response<Body>, Error> {
    let wishes = wire::wishes(request.headers())?;
    let asked = timeout_header(request.headers())?;
    let version = route.target().and_then(|target| target.version);
    let law = found.law(version);
    let is_bound = tenant.allow.is_some() || !tenant.deny.is_empty();
    let rules = match !is_bound && wishes.allow.is_none() && wishes.deny.is_empty() {
        true => law.clone(),
        false => {
            let rules = Rules::clone(law).and(Source::Tenant, tenant.allow.clone(), tenant.deny.clone());
            Arc::new(rules.and(Source::Request, wishes.allow, wishes.deny))
        }
    };
    let found = table.meant(found, version, &rules);
    let deadline = started + asked.unwrap_or(found.timeouts.0).min(found.timeouts.1);
    let (head, body) = request.into_parts();
    let is_call = matches!(route, Route::Infer(_) | Route::Guest(..));
    let replicas = if is_call { found.replicas.clone() } else { found.reads.clone() };
    let mut lease = Lease::new(plane);
    let body = hold(body, &head.headers, fleet.config.hold, &mut lease, deadline).await?;
    let mut call = Call {
        rules: rules.clone(),
        deadline: replicas.at(deadline.into()),
        repeatable: found.repeatable || !is_call,
        replayable: matches!(body, Kept::Whole(_)),
        hedging: if wishes.unhedged { Hedging::Never } else { found.hedging },
        verified: wishes.verified,
        forwarded: false,
        request: Some(identity.request_id.clone()),
        tenant: Some(tenant.name.clone()),
    };
    let tenant = tenant.name.clone();
    let mut shared =
        Shared { plane, fleet, found, identity, replicas, route, tenant, head, body, rules, started, deadline };
    let mut tried = 0;
    loop {
        let this = &shared;
        let start = |replica, attempt, _| this.start(replica, attempt);
        let ended = replicas::run(&this.replicas, call.clone(), this.body.upload(), start).await;
        let Lost { failure, answer } = match ended {
            Ok(Won { answer: (mut response, place), attempts, stream, .. }) => {
                if let Some(stream) = stream {
                    response.body_mut().tie(stream);
                }
                stamp(response.headers_mut(), place, attempts.saturating_add(tried));
                return Ok(response);
            }
            Err(lost) => lost,
        };
        // Once more at another version, and only where it may run twice. What is ejected by then is passed over.
        let may = version.is_none() && tried == 0 && is_unanswered(&call, &failure);
        let Some(below) = may.then(|| table.below(this.found, &this.rules)).flatten() else {
            return match (failure.reason, answer) {
                (Reason::Failed | Reason::Budget, Some((mut response, place))) => {
                    stamp(response.headers_mut(), place, failure.attempts.saturating_add(tried));
                    Ok(response)
                }
                _ => Err(verdict::unanswered(&failure, this.found, &this.rules, this.replicas.now())),
            };
        };
        drop(answer);
        tried = failure.attempts;
        shared.found = below;
        shared.replicas = if is_call { below.replicas.clone() } else { below.reads.clone() };
        call.repeatable = below.repeatable || !is_call;
    }
}

/// Whether a call that was lost may go to another version of its model: nobody answered it, and it can be sent again, or
/// was not sent. Whoever is busy is not relieved that way, and nobody has more time.
fn is_unanswered(call: &Call, failure: &Failure) -> bool {
    let again = call.repeatable && call.replayable;
    matches!(failure.reason, Reason::Failed | Reason::Budget | Reason::NoReplica) && (again || failure.attempts == 0)
}

fn stamp(headers: &mut HeaderMap, place: &Place, attempts: u8) {
    place.facts.stamp(headers);
    headers.insert(SITE, place.name.clone());
    headers.insert(ATTEMPTS, HeaderValue::from(u16::from(attempts)));
}

/// Holds a body that is small enough, and puts back what was read of one that is not.
async fn hold(
    mut body: Received,
    headers: &HeaderMap,
    bound: usize,
    lease: &mut Lease,
    deadline: Instant,
) -> Result<Kept, Error> {
    if body.is_end_stream() {
        return Ok(Kept::Whole(Arc::default()));
    }
    let declared: Option<u64> = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let mut held = Held::default();
    while declared.unwrap_or(0) <= bound as u64 {
        let frame = before(deadline, body.frame()).await;
        let frame =
            frame.ok_or_else(|| Error::new(Kind::Deadline, "the deadline passed before the body had arrived"))?;
        let Some(frame) = frame else { return Ok(Kept::Whole(held.pieces().into())) };
        let frame = frame.map_err(|e| Error::new(Kind::Malformed, "body: broke off").with_detail(e.to_string()))?;
        let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) else { continue };
        lease.grow(data.len())?;
        held.push(data);
        if held.length() > bound {
            break;
        }
    }
    body.unread(held.pieces());
    let upload = body.timed();
    Ok(Kept::Once(Arc::new(Mutex::new(Some(body))), upload))
}

impl Kept {
    /// The waits for the rest of it, where there is one.
    fn upload(&self) -> Option<Arc<Upload>> {
        match self {
            Kept::Whole(_) => None,
            Kept::Once(_, upload) => Some(upload.clone()),
        }
    }
}

type Ended<'a> = (Response<Body>, &'a Place);

/// The answer of a module that failed after its head, of which the client has seen nothing: as one that failed before it.
fn broke_off(place: &Place) -> Outcome<Ended<'_>> {
    let answer = answer::failure(&Error::new(Kind::GuestFailed, "the module failed within its answer"));
    let whole = Some(answer.body().length() as u64);
    Outcome::Answer { verdict: Verdict::Module, whole, answer: (answer, place) }
}

/// What becomes of a request whose body its own client broke off: it says nothing of the replica.
fn without_body(place: &Place) -> Outcome<Ended<'_>> {
    let answer = answer::failure(&Error::new(Kind::Malformed, "body: broke off"));
    let whole = Some(answer.body().length() as u64);
    Outcome::Answer { verdict: Verdict::Module, whole, answer: (answer, place) }
}

/// Counts how an attempt ends.
async fn counted<T>(place: &Place, attempt: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let track = place.metrics.attempt();
    let outcome = attempt.await;
    track.end(match &outcome {
        Outcome::ConnectFailed => Attempt::ConnectFailed,
        Outcome::Refused => Attempt::Refused,
        Outcome::Reset => Attempt::Reset,
        Outcome::Cut => Attempt::Cut,
        Outcome::Answer { verdict: Verdict::Answer | Verdict::Rejected | Verdict::Module, .. } => Attempt::Answered,
        Outcome::Answer { verdict: Verdict::Failed | Verdict::Graph, .. } => Attempt::Failed,
        Outcome::Answer { verdict: Verdict::Overloaded { .. } | Verdict::OverShare { .. }, .. } => Attempt::Overloaded,
        Outcome::Answer { verdict: Verdict::TooLate, .. } => Attempt::TooLate,
        Outcome::Answer { verdict: Verdict::NotHere | Verdict::Unlawful, .. } => Attempt::NotHere,
    });
    outcome
}

impl<'a> Shared<'a> {
    /// Begins one attempt.
    fn start(&'a self, replica: ReplicaId, attempt: u8) -> Running<'a, Ended<'a>> {
        let site = self.replicas.lock().replica(replica).map(|replica| replica.site.name.clone());
        let place = site.and_then(|site| self.found.places.get(&*site));
        let Some(place) = place else {
            // The fleet has changed under the request, and this one has gone.
            return Box::pin(std::future::ready(Outcome::ConnectFailed));
        };
        // The choice is made of the fleet as it is now, and the way there may be an older one's.
        if self.rules.permit(place.site.jurisdiction.as_ref()).is_err() {
            return Box::pin(std::future::ready(Outcome::ConnectFailed));
        }
        match &place.to {
            To::Here(served) => Box::pin(counted(place, self.here(served.clone(), place))),
            To::There(upstream) => Box::pin(counted(place, self.there(upstream, place, (replica, AttemptId(attempt))))),
        }
    }

    async fn here(&'a self, served: Arc<Served>, place: &'a Place) -> Outcome<Ended<'a>> {
        let body = match &self.body {
            Kept::Whole(pieces) => Some(Received::whole(pieces)),
            Kept::Once(body, _) => body.lock().unwrap_or_else(PoisonError::into_inner).take(),
        };
        let Some(body) = body else { return Outcome::Reset };
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.version_mut() = self.head.version;
        *request.headers_mut() = self.head.headers.clone();
        let left = self.deadline.saturating_duration_since(self.started);
        let asked = Asked { tenant: self.tenant.clone(), limit: Some(left), probe: false };
        let call = (request, self.identity, self.started);
        let response = answered(self.plane, served.clone(), self.route.rest(), call, asked).await;
        let whole = response.body().is_whole().then(|| response.body().length() as u64);
        let verdict = match response.status() {
            _ if answer::is_modules(&response) => Verdict::Module,
            StatusCode::TOO_MANY_REQUESTS => {
                let until = verdict::after(self.replicas.now(), wire::rest(&catalog::load(&served)));
                verdict::of_tenant(Verdict::Overloaded { until: Some(until) }, &self.tenant)
            }
            status => verdict::of_peer(status, response.headers(), self.replicas.now()),
        };
        Outcome::Answer { verdict, whole, answer: (response, place) }
    }

    async fn there(
        &'a self,
        upstream: &'a Upstream,
        place: &'a Place,
        (replica, attempt): (ReplicaId, AttemptId),
    ) -> Outcome<Ended<'a>> {
        let sent = match upstream {
            Upstream::Peer(peer) => {
                let Some(request) = self.to_peer(place, attempt) else { return Outcome::ConnectFailed };
                let body = match &self.body {
                    Kept::Whole(pieces) => Outgoing::Whole(pieces.clone()),
                    Kept::Once(body, _) => Outgoing::Once(body.clone()),
                };
                peer.send(request, body).await.map(|(head, body)| (head, Answer::Peer(body)))
            }
            Upstream::Foreign(server) => {
                let Some(head) = self.to_foreign() else { return Outcome::ConnectFailed };
                let body = || match &self.body {
                    Kept::Whole(pieces) => Some(Received::whole(pieces)),
                    Kept::Once(body, _) => body.lock().unwrap_or_else(PoisonError::into_inner).take(),
                };
                server.send(head, body).await.map(|(head, body)| (head, Answer::Foreign(body)))
            }
        };
        let (head, body) = match sent {
            Ok(answer) => answer,
            Err(SendError::Connect) => return Outcome::ConnectFailed,
            Err(SendError::Refused) => return Outcome::Refused,
            Err(SendError::Reset) => return Outcome::Reset,
            Err(SendError::Body) => return without_body(place),
            Err(SendError::Module) => return broke_off(place),
        };
        let verdict = match upstream {
            Upstream::Peer(peer) => {
                if let Some(report) = Report::of(&head.headers) {
                    let now = self.replicas.now();
                    self.replicas.lock().report(replica, report.load, now);
                    peer.speaks_of(report.generation);
                }
                let verdict = verdict::of_peer(head.status, &head.headers, self.replicas.now());
                verdict::of_tenant(verdict, &self.tenant)
            }
            Upstream::Foreign(_) => verdict::of_foreign(head.status, &head.headers, self.replicas.now()),
        };
        self.received(Response::from_parts(head, body), verdict, place).await
    }

    /// Holds the answer as far as it fits.
    async fn received(&self, answer: Response<Answer>, verdict: Verdict, place: &'a Place) -> Outcome<Ended<'a>> {
        let (head, mut body) = answer.into_parts();
        let declared: Option<u64> = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let bound = self.fleet.config.hold;
        let events =
            head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let (mut held, mut lease) = (Held::default(), Lease::new(self.plane));
        // Where there is no memory to hold it in, it is passed on as it comes.
        let mut may_hold = !events && declared.unwrap_or(0) <= bound as u64;
        let is_whole = loop {
            if !may_hold {
                break false;
            }
            match body.data().await {
                None if declared.is_some_and(|d| d != held.length() as u64)
                    && self.head.method != http::Method::HEAD =>
                {
                    return Outcome::Cut;
                }
                None => break true,
                Some(Err(SendError::Module)) => return broke_off(place),
                Some(Err(_)) => return Outcome::Cut,
                Some(Ok(piece)) => {
                    may_hold = lease.grow(piece.len()).is_ok();
                    held.push(piece);
                    may_hold &= held.length() <= bound;
                }
            }
        };
        let whole = is_whole.then_some(held.length() as u64);
        let body = match is_whole {
            true => Body::pieces(held.pieces()),
            false => Body::remote(held.pieces(), body, declared, self.deadline),
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        wire::strip(response.headers_mut());
        Outcome::Answer { verdict, whole, answer: (response, place) }
    }

    /// The head of the request as a peer gets it.
    fn to_peer(&self, place: &Place, attempt: AttemptId) -> Option<Request<()>> {
        let path = self.head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(http::uri::Scheme::HTTPS);
        parts.authority = Some(http::uri::Authority::from_static("windrose"));
        parts.path_and_query = Some(path);
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.to_site();
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        let told = Forwarded {
            remaining,
            digest: place.digest?,
            rules: self.rules.clone(),
            attempt: attempt.0,
            tenant: self.tenant.clone(),
            probe: false,
        };
        told.stamp(request.headers_mut());
        Some(request)
    }

    /// The head of the request as a foreign server gets it: it knows one version of the model.
    fn to_foreign(&self) -> Option<Request<()>> {
        let path = match self.route {
            Route::Infer(target) => format!("/v2/models/{}/infer", target.model),
            Route::Metadata(target) => format!("/v2/models/{}", target.model),
            Route::ModelReady(target) => format!("/v2/models/{}/ready", target.model),
            _ => return None,
        };
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = path.parse().ok()?;
        *request.headers_mut() = self.to_site();
        wire::drop_ours(request.headers_mut());
        Some(request)
    }

    fn to_site(&self) -> HeaderMap {
        let mut headers = wire::end_to_end(&self.head.headers);
        self.identity.stamp(&mut headers);
        headers
    }
}

/// Refuses what no rule lets happen here.
///
/// # Errors
/// [`Kind::Unlawful`], naming the rule.
pub(super) fn check_law(rules: &Rules, fleet: Option<&Fleet>, found: Option<&Replicated>) -> Result<(), Error> {
    let here = fleet.zip(found).and_then(|(fleet, found)| found.places.get(fleet.config.site.as_str()));
    let at = here.and_then(|place| place.site.jurisdiction.as_ref());
    rules.permit(at).map_err(|breach| Error::new(Kind::Unlawful, format!("this site may not answer: {breach}")))
}

/// The time that a forwarded request has.
pub(super) fn remaining(told: &Forwarded, headers: &HeaderMap) -> Result<Duration, Error> {
    Ok(timeout_header(headers)?.map_or(told.remaining, |own| own.min(told.remaining)))
}
