//! The body of a request, as it comes from its connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::fleet::wire::drop_internal;

/// How long what is left of a refused body is read and thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// A body that may be dropped before its end, when its request is refused early.
///
/// A client that is still sending gets a reset, of its connection or of its stream, and loses the answer that says why:
/// over HTTP/2 it should not, but curl does. What it sends is therefore taken and thrown away for a while.
pub struct Received {
    /// What has been read of it already, the first piece last.
    first: Vec<Bytes>,
    /// `None` once it has ended.
    body: Option<Incoming>,
    /// The client sends until it has sent everything: it did not ask whether it should.
    insists: bool,
}

impl Received {
    /// The body of a request.
    pub fn of(request: Request<Incoming>) -> Request<Received> {
        let insists = !request.headers().contains_key(EXPECT);
        request.map(|body| Received { first: Vec::new(), body: Some(body), insists })
    }

    /// A body that is held whole.
    pub fn whole(pieces: &[Bytes]) -> Received {
        Received { first: pieces.iter().rev().cloned().collect(), body: None, insists: false }
    }

    /// Puts back what was read of it, in the order in which it came.
    pub fn unread(&mut self, mut pieces: Vec<Bytes>) {
        pieces.reverse();
        self.first.append(&mut pieces);
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(piece) = self.first.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let mut frame = ready!(Pin::new(body).poll_frame(cx));
        match &mut frame {
            // Behind the body, a client may as little speak as a gateway as before it.
            Some(Ok(frame)) => frame.trailers_mut().into_iter().for_each(drop_internal),
            Some(Err(_)) | None => self.body = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first: u64 = self.first.iter().map(|piece| piece.len() as u64).sum();
        let rest = self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(first + upper);
        }
        hint
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| self.insists && !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(LINGER, async move { while let Some(Ok(_)) = body.frame().await {} }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_back_comes_first_and_in_order() {
        let mut body = Received::whole(&[Bytes::from_static(b"c")]);
        body.unread(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(Received::whole(&[]).is_end_stream());
    }
}
