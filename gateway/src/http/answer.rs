//! Bodies and heads of answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use windrose_sandbox::{CallError, HttpBody};

use super::body::Overrun;
use super::coding::{Coding, compress};
use super::lease::Lease;
use super::{DataPlane, oip};
use crate::admit::Place;
use crate::dispatch::patience::Patience;
use crate::dispatch::replicas::Stream;
use crate::error::{Error, Kind};
use crate::fleet::upstream::{self, SendError};
use crate::fleet::wire;
use crate::telemetry::Track;

/// The kind of an error, beside its message in the body.
pub(super) const ERROR: HeaderName = HeaderName::from_static("windrose-error");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Answers shorter than this are not worth compressing, bytes.
const WORTH_COMPRESSING: usize = 1024;

/// Answers longer than this are compressed on a thread of their own, bytes.
const LONG: usize = 64 << 10;

/// A foreign server that has sent nothing for so long when the time is over has stalled: it is not that its client gave
/// it too little.
const STALLED: Duration = Duration::from_secs(1);

/// The body of an answer.
pub(super) enum Body {
    /// Pieces in memory.
    Pieces(Pieces),
    /// What a guest streams.
    Guest(Box<GuestBody>),
    /// What another site streams.
    Remote(Box<RemoteBody>),
}

/// What another site streams, behind what was held of it.
pub(super) struct RemoteBody {
    /// The first piece last.
    first: Vec<Bytes>,
    rest: upstream::Answer,
    length: Option<u64>,
    /// How long may be waited for the rest.
    patience: Patience,
    /// Told how the body ended.
    stream: Option<Stream>,
}

/// Pieces in memory, last first.
pub(super) struct Pieces {
    rest: Vec<Bytes>,
    length: u64,
}

/// What a guest streams, with everything that lasts as long as it does.
pub(super) struct GuestBody {
    body: HttpBody,
    /// Bytes that the head promised and that have not come yet.
    promised: Option<u64>,
    track: Track,
    /// Whether the request's body, which the guest may still be reading, was too large.
    overrun: Overrun,
    /// Where a replica was chosen for it: its request is in flight for as long.
    stream: Option<Stream>,
    /// It goes to a peer, which is told whose fault it is that it breaks off.
    to_peer: bool,
    _permit: Place,
}

/// Marks an answer with an error status as the module's own, which it would give at any site.
#[derive(Clone, Copy)]
struct OfModule;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

// === impl Body ===

impl Body {
    /// A body in one piece.
    pub fn whole(piece: Bytes) -> Body {
        Body::pieces(vec![piece])
    }

    /// A body in pieces.
    pub fn pieces(mut pieces: Vec<Bytes>) -> Body {
        pieces.retain(|piece| !piece.is_empty());
        pieces.reverse();
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Body::Pieces(Pieces { rest: pieces, length })
    }

    /// A guest's body.
    pub fn guest(answer: Response<HttpBody>, track: Track, overrun: Overrun, permit: Place) -> Response<Body> {
        let (head, body) = answer.into_parts();
        let declared = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let promised = declared.or_else(|| http_body::Body::size_hint(&body).exact());
        let mut guest = GuestBody { body, promised, track, overrun, stream: None, to_peer: false, _permit: permit };
        if promised == Some(0) {
            guest.track.finish(None);
        }
        Response::from_parts(head, Body::Guest(Box::new(guest)))
    }

    /// A body of which the beginning is held and the rest still comes from another site, which has until `deadline`.
    pub fn remote(mut first: Vec<Bytes>, rest: upstream::Answer, length: Option<u64>, deadline: Instant) -> Body {
        first.reverse();
        let patience = Patience::until(deadline.into());
        Body::Remote(Box::new(RemoteBody { first, rest, length, patience, stream: None }))
    }

    /// Ties the stream of the attempt that won to its body.
    pub fn tie(&mut self, stream: Stream) {
        match self {
            Body::Guest(guest) => guest.stream = Some(stream),
            Body::Remote(remote) => remote.stream = Some(stream),
            Body::Pieces(_) => stream.end(true),
        }
    }

    /// Says that it goes to a peer.
    pub fn goes_to_peer(&mut self) {
        if let Body::Guest(guest) = self {
            guest.to_peer = true;
        }
    }

    /// Counts what is in memory of it from now on, until the client has taken it.
    pub fn count(&mut self, plane: &DataPlane) {
        let held = match self {
            Body::Pieces(pieces) => &mut pieces.rest,
            Body::Remote(remote) => &mut remote.first,
            Body::Guest(_) => return,
        };
        for piece in held {
            *piece = Lease::of_answer(plane, std::mem::take(piece));
        }
    }

    /// Whether all of it is in memory.
    pub fn is_whole(&self) -> bool {
        matches!(self, Body::Pieces(_))
    }

    /// Bytes in memory.
    pub fn length(&self) -> usize {
        match self {
            Body::Pieces(pieces) => usize::try_from(pieces.length).unwrap_or(usize::MAX),
            Body::Guest(_) | Body::Remote(_) => 0,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Body::Pieces(pieces) => Poll::Ready(pieces.rest.pop().map(|piece| {
                pieces.length -= piece.len() as u64;
                Ok(Frame::data(piece))
            })),
            Body::Guest(guest) => guest.poll_frame(cx),
            Body::Remote(remote) => remote.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Pieces(pieces) => pieces.rest.is_empty(),
            Body::Guest(guest) => guest.body.is_end_stream(),
            Body::Remote(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Pieces(pieces) => SizeHint::with_exact(pieces.length),
            Body::Guest(guest) => guest.body.size_hint(),
            Body::Remote(remote) => remote.length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl GuestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.track.sent(length);
                self.promised = self.promised.map(|left| left.saturating_sub(length as u64));
                // With its promise kept it is complete; whoever writes it may not ask for more.
                if self.promised == Some(0) || self.body.is_end_stream() {
                    self.track.finish(self.overrun.error().map(|error| error.kind));
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let own = || error.downcast_ref::<CallError>().map(|error| Error::from(error.clone()));
                let kind = self.overrun.error().or_else(own).map_or(Kind::GuestFailed, |error| error.kind);
                Some(Err(self.broken(kind, error)))
            }
            None => match self.overrun.error() {
                // It ends as if it were the answer to the whole request.
                Some(error) => Some(Err(self.broken(error.kind, error.message.into()))),
                None => {
                    self.track.finish(None);
                    None
                }
            },
        })
    }

    /// The error that it breaks off with. A peer is told where that is not the site's fault.
    fn broken(&mut self, kind: Kind, error: BoxError) -> BoxError {
        self.track.finish(Some(kind));
        match self.to_peer && (kind.is_modules() || kind == Kind::TooLarge) {
            true => h2::Error::from(wire::module_failed()).into(),
            false => error,
        }
    }
}

impl RemoteBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(piece) = self.first.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let looked = self.rest.poll_data(cx);
        let piece = match std::task::ready!(self.patience.bound(cx, looked)) {
            Ok(piece) => piece,
            Err(over) => {
                // A gateway watches the deadline itself, and its connection is watched. Of any other stream that ends here
                // nothing is known: it may just take longer than its client would wait.
                let stalled = matches!(self.rest, upstream::Answer::Foreign(_)) && over.silent >= STALLED;
                if let Some(stream) = self.stream.take().filter(|_| stalled) {
                    stream.end(false);
                }
                return Poll::Ready(Some(Err("the deadline passed within the answer of another site".into())));
            }
        };
        if !matches!(piece, Some(Ok(_)))
            && let Some(stream) = self.stream.take()
        {
            // What its module did is not the site's.
            stream.end(matches!(piece, None | Some(Err(SendError::Module))));
        }
        Poll::Ready(
            piece.map(|piece| piece.map(Frame::data).map_err(|_| "the answer of another site broke off".into())),
        )
    }
}

// === answers ===

/// An answer of JSON.
pub(super) fn json(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// An answer of bytes.
pub(super) fn bytes(content_type: HeaderValue, pieces: Vec<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::pieces(pieces));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The answer to a request that failed.
pub(super) fn failure(error: &Error) -> Response<Body> {
    let mut response = json(error.kind.status(), oip::encode_error(&error.message));
    let headers = response.headers_mut();
    headers.insert(ERROR, HeaderValue::from_static(error.kind.as_str()));
    if let Some(seconds) = error.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.kind == Kind::Unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if error.kind.is_modules() {
        response.extensions_mut().insert(OfModule);
    }
    response
}

/// Says of an answer that a guest wrote itself whether its error is the guest's own. Where it has `engines`, it may only be
/// passing on that one of them failed.
pub(super) fn mark_guests(answer: &mut Response<HttpBody>, engines: bool) {
    if answer.status() == StatusCode::TOO_MANY_REQUESTS || answer.status().is_server_error() && !engines {
        answer.extensions_mut().insert(OfModule);
    }
}

/// Whether it is an error of the module's own.
pub(super) fn is_modules(answer: &Response<Body>) -> bool {
    answer.extensions().get::<OfModule>().is_some()
}

/// The answer to a method that a path does not take.
pub(super) fn wrong_method(allow: &'static str) -> Response<Body> {
    let mut response = failure(&Error::new(Kind::MethodNotAllowed, format!("the path takes {allow}")));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// Compresses an answer as the client asked, where it is worth it.
pub(super) async fn compressed(response: Response<Body>, accept: Option<&HeaderValue>) -> Response<Body> {
    let Some(coding) = accept.and_then(|value| Coding::negotiate(value.to_str().ok()?)) else { return response };
    let length = response.body().length();
    if length < WORTH_COMPRESSING {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let Body::Pieces(mut pieces) = body else { return Response::from_parts(head, body) };
    pieces.rest.reverse();
    let parts = pieces.rest.clone();
    let packed = if length > LONG {
        tokio::task::spawn_blocking(move || compress(coding, &parts)).await.ok().and_then(Result::ok)
    } else {
        compress(coding, &parts).ok()
    };
    let Some(packed) = packed else { return Response::from_parts(head, Body::pieces(pieces.rest)) };
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    head.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    Response::from_parts(head, Body::whole(packed.into()))
}

/// What a connection's service returns.
pub(super) type Answer = Result<Response<Body>, Infallible>;
