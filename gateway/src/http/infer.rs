//! One inference over the Open Inference Protocol: body to request, through admission and dispatch, answer to body.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};

use super::DataPlane;
use super::answer::{self, Body};
use super::body;
use super::identity::Identity;
use super::lease::Lease;
use super::oip::{self, AnswerFormat, Decoded, Envelope};
use super::received::Received;
use crate::admit::{self, Timing};
use crate::dispatch;
use crate::error::{Error, Kind};
use crate::snapshot::Served;
use crate::telemetry::Track;

/// Length of the JSON in front of binary data, bytes.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// How long the caller will wait, milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("windrose-timeout-ms");

/// Bodies longer than this are decoded on a thread of their own, bytes.
const LONG: usize = 4 << 20;

/// One call of one model, as the routes of inference and of guests have found it.
pub(super) struct Call<'a> {
    pub plane: &'a DataPlane,
    pub served: Arc<Served>,
    pub identity: &'a Identity,
    pub tenant: Arc<str>,
    pub timing: Timing,
}

impl Call<'_> {
    /// Whose it is, as admission needs to know.
    pub fn caller(&self) -> admit::Caller {
        admit::Caller { request_id: self.identity.request_id.clone(), tenant: self.tenant.clone() }
    }
}

/// Answers an inference.
///
/// # Errors
/// Whatever any stage refuses.
pub(super) async fn answer(
    call: Call<'_>,
    request: Request<Received>,
    track: &mut Track,
) -> Result<Response<Body>, Error> {
    let caller = call.caller();
    let Call { plane, served, mut timing, .. } = call;
    admit::check_kind(&served, true)?;
    admit::check_load(&served, &caller.tenant)?;
    let (head, incoming) = request.into_parts();
    timing.header = shorter(timing.header, timeout_header(&head.headers)?);
    let json_length = json_length(&head.headers)?;
    let mut lease = Lease::new(plane);
    let body = body::read(&head.headers, incoming, &plane.config, &mut lease, arrives_until(&served, timing)).await?;
    track.received(body.len());
    let decoded = decode(body, json_length, &mut lease).await?;
    timing.dialect = decoded.timeout;
    let Decoded { mut request, format, .. } = decoded;
    check_format(&served, &request.outputs, &format)?;
    let envelope = Envelope {
        model_name: served.manifest.name.clone(),
        model_version: Some(served.manifest.version.clone()),
        id: request.id.take(),
    };
    let admitted = admit::inference(served, caller, timing, request).await?;
    // In a box: hyper moves the future of every request, more than once.
    let (response, time) = Box::pin(dispatch::infer(admitted)).await;
    track.called(time);
    let encoded = oip::encode_response(&envelope, &response?, &format)?;
    drop(lease);
    let answer = message(encoded);
    Ok(answer::compressed(answer, head.headers.get(ACCEPT_ENCODING)).await)
}

/// Until when the body must be there. The protocol's own way to ask for a deadline is in the body: who asks by no header may
/// ask for the longest yet.
fn arrives_until(served: &Served, timing: Timing) -> Instant {
    let header = timing.header.unwrap_or(served.max_timeout);
    admit::deadline(served, Timing { header: Some(header), ..timing })
}

/// An encoded body with the headers that its form asks for.
fn message(encoded: oip::Encoded) -> Response<Body> {
    if encoded.binary.is_empty() {
        return answer::bytes(HeaderValue::from_static("application/json"), vec![encoded.json]);
    }
    let json_length = encoded.json.len();
    let mut pieces = encoded.binary;
    pieces.insert(0, encoded.json);
    let mut response = answer::bytes(HeaderValue::from_static("application/octet-stream"), pieces);
    response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(json_length));
    response
}

/// Decodes a body; the lease holds what comes of it as well.
async fn decode(body: Bytes, json_length: Option<usize>, lease: &mut Lease) -> Result<Decoded, Error> {
    let is_short = json_length.unwrap_or(body.len()) <= LONG;
    let decode = move |lease: &mut Lease| {
        oip::decode_request(&body, json_length, &mut |bytes| lease.grow(bytes).is_ok()).map_err(Error::from)
    };
    if is_short {
        return decode(lease);
    }
    let mut own = lease.another();
    let decoded = tokio::task::spawn_blocking(move || decode(&mut own).map(|decoded| (decoded, own))).await;
    let (decoded, own) =
        decoded.map_err(|e| Error::new(Kind::Internal, "internal error").with_detail(e.to_string()))??;
    lease.absorb(own);
    Ok(decoded)
}

/// Refuses an output that the asked form cannot carry, before it is computed.
fn check_format(served: &Served, wanted: &[String], format: &AnswerFormat) -> Result<(), Error> {
    let Some(signature) = &served.signature else { return Ok(()) };
    let asked = |name: &String| wanted.is_empty() || wanted.contains(name);
    for output in signature.outputs.iter().filter(|o| asked(&o.name)) {
        format.check(&output.name, output.datatype)?;
    }
    Ok(())
}

/// The timeout that the caller's header asks for.
pub(super) fn timeout_header(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    match number(headers, &TIMEOUT)? {
        Some(0) => Err(Error::new(Kind::InvalidInput, format!("{TIMEOUT}: is not a positive number"))),
        millis => Ok(millis.map(Duration::from_millis)),
    }
}

/// The shorter of two spans, where there are any.
pub(super) fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let length = number(headers, &HEADER_LENGTH)?;
    Ok(length.map(|length| usize::try_from(length).unwrap_or(usize::MAX)))
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Error> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.map(Some).ok_or_else(|| Error::new(Kind::Malformed, format!("{name}: is not a number")))
}
