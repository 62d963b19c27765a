//! The body of a request, as it comes from its connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// How long what is left of a refused body is read and thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// A body that may be dropped before its end, when its request is refused early.
///
/// A client of HTTP/1.1 that is still sending gets a reset when the connection closes under it, and loses the answer that
/// says why. What it sends is therefore taken and thrown away for a while.
pub(super) struct Received {
    /// `None` once it has ended.
    body: Option<Incoming>,
    /// The client sends until it has sent everything: HTTP/1.1, and it did not ask whether it should.
    insists: bool,
}

impl Received {
    /// The body of a request.
    pub fn of(request: Request<Incoming>) -> Request<Received> {
        let insists = request.version() < Version::HTTP_2 && !request.headers().contains_key(EXPECT);
        request.map(|body| Received { body: Some(body), insists })
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| self.insists && !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(LINGER, async move { while let Some(Ok(_)) = body.frame().await {} }));
    }
}
