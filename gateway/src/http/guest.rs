//! Guests that speak for themselves, under the path of their model: `wasi:http` components and commands.

use http::header::{ACCEPT_ENCODING, CONNECTION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use windrose_sandbox::ModuleKind;

use super::answer::{self, Body};
use super::body;
use super::infer::{Call, shorter, timeout_header};
use super::lease::Lease;
use super::received::Received;
use crate::admit;
use crate::dispatch;
use crate::error::{Error, Kind};
use crate::fleet::wire::{self, HOP_BY_HOP};
use crate::telemetry::Track;

/// Answers a call of a guest. `rest` is its part of the path. A stream takes the track with it; it is left where the
/// answer is complete.
///
/// # Errors
/// Whatever any stage refuses.
pub(super) async fn answer(
    call: Call<'_>,
    request: Request<Received>,
    rest: &str,
    track: &mut Option<Track>,
) -> Result<Response<Body>, Error> {
    admit::check_kind(&call.served, false)?;
    admit::check_load(&call.served, &call.tenant)?;
    match call.served.kind {
        ModuleKind::Http => exchange(call, request, rest, track).await,
        ModuleKind::Command | ModuleKind::Model => command(call, request, rest, track).await,
    }
}

async fn exchange(
    call: Call<'_>,
    request: Request<Received>,
    rest: &str,
    track: &mut Option<Track>,
) -> Result<Response<Body>, Error> {
    let caller = call.caller();
    let Call { plane, served, identity, mut timing, .. } = call;
    timing.header = shorter(timing.header, timeout_header(request.headers())?);
    let engines = !served.graphs.is_empty() || served.manifest.grants.load;
    let (mut head, body) = request.into_parts();
    head.uri = stripped(&head.uri, rest)?;
    strip_hop_by_hop(&mut head.headers);
    identity.stamp(&mut head.headers);
    let (body, overrun) = body::passed_on(body, plane.config.max_body)?;
    let admitted = admit::exchange(served, caller, timing, Request::from_parts(head, body)).await?;
    let (answer, time) = dispatch::serve(admitted).await;
    if let Some(track) = track {
        track.called(time);
    }
    // Whatever the guest made of a body that broke off, the caller sent too much.
    if let Some(error) = overrun.error() {
        return Err(error);
    }
    let (mut answer, permit) = answer?;
    strip_hop_by_hop(answer.headers_mut());
    drop_ours(answer.headers_mut());
    answer::mark_guests(&mut answer, engines);
    match track.take() {
        Some(track) => Ok(Body::guest(answer, track, overrun, permit)),
        None => Err(Error::new(Kind::Internal, "internal error").with_detail("an exchange without a track")),
    }
}

async fn command(
    call: Call<'_>,
    request: Request<Received>,
    rest: &str,
    track: &mut Option<Track>,
) -> Result<Response<Body>, Error> {
    let caller = call.caller();
    let Call { plane, served, mut timing, .. } = call;
    if !rest.is_empty() && rest != "/" {
        return Err(Error::new(
            Kind::NotFound,
            format!("model {:?} is a command: it has no paths", served.manifest.name),
        ));
    }
    if request.method() != Method::POST {
        return Ok(answer::wrong_method("POST"));
    }
    timing.header = shorter(timing.header, timeout_header(request.headers())?);
    let (head, incoming) = request.into_parts();
    let mut lease = Lease::new(plane);
    let arrives_until = admit::deadline(&served, timing);
    let stdin = body::read(&head.headers, incoming, &plane.config, &mut lease, arrives_until).await?;
    let received = stdin.len();
    let content_type = content_type(served.manifest.command.content_type.as_deref());
    let admitted = admit::exchange(served, caller, timing, stdin).await?;
    let (output, time) = dispatch::run(admitted).await;
    if let Some(track) = track {
        track.received(received);
        track.called(time);
    }
    let answer = answer::bytes(content_type, vec![output?.stdout]);
    Ok(answer::compressed(answer, head.headers.get(ACCEPT_ENCODING)).await)
}

/// The URI that the guest sees: the model's path taken off, host and query kept.
fn stripped(uri: &Uri, rest: &str) -> Result<Uri, Error> {
    let path = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().map_err(|_| bad_path())?);
    Uri::from_parts(parts).map_err(|_| bad_path())
}

fn bad_path() -> Error {
    Error::new(Kind::Malformed, "path: is not one that can be passed on")
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Takes off an answer what only gateways say: a peer would believe it.
fn drop_ours(headers: &mut HeaderMap) {
    wire::drop_internal(headers);
    headers.remove(answer::ERROR);
}

fn content_type(declared: Option<&str>) -> HeaderValue {
    declared
        .and_then(|value| HeaderValue::from_str(value).ok())
        .unwrap_or_else(|| HeaderValue::from_static("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_goes_and_the_query_stays() {
        let cases = [
            ("/models/m", "", "/"),
            ("/models/m/", "/", "/"),
            ("/models/m/a%20b?x=1&y", "/a%20b", "/a%20b?x=1&y"),
            ("http://host:1/models/m/a", "/a", "http://host:1/a"),
        ];
        for (uri, rest, expected) in cases {
            assert_eq!(stripped(&uri.parse().unwrap(), rest).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_connections_own_headers_are_taken_off() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, X-Own"), ("x-own", "1"), ("te", "trailers"), ("accept", "a")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn a_guest_does_not_speak_as_a_gateway() {
        let mut headers = HeaderMap::new();
        for name in ["windrose-load", "windrose-error", "windrose-tenant", "x-own"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        drop_ours(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-own"]);
    }
}
