//! The body of a request, as it comes from its connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::dispatch::upload::Upload;
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
    /// Who wants to know how long the client keeps its reader waiting.
    upload: Option<Arc<Upload>>,
}

impl Received {
    /// The body of a request.
    pub fn of(request: Request<Incoming>) -> Request<Received> {
        let insists = !request.headers().contains_key(EXPECT);
        request.map(|body| Received { first: Vec::new(), body: Some(body), insists, upload: None })
    }

    /// A body that is held whole.
    pub fn whole(pieces: &[Bytes]) -> Received {
        Received { first: pieces.iter().rev().cloned().collect(), body: None, insists: false, upload: None }
    }

    /// Puts back what was read of it, in the order in which it came.
    pub fn unread(&mut self, mut pieces: Vec<Bytes>) {
        pieces.reverse();
        self.first.append(&mut pieces);
    }

    /// Has the waits for its client counted from now on.
    pub fn timed(&mut self) -> Arc<Upload> {
        self.upload.get_or_insert_default().clone()
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
        let looked = Pin::new(body).poll_frame(cx);
        self.upload.iter().for_each(|upload| upload.looked(looked.is_ready()));
        let mut frame = ready!(looked);
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
        // Nobody waits for the client any more.
        self.upload.iter().for_each(|upload| upload.looked(true));
        let Some(mut body) = self.body.take().filter(|body| self.insists && !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(LINGER, async move { while let Some(Ok(_)) = body.frame().await {} }));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn what_is_put_back_comes_first_and_in_order() {
        let mut body = Received::whole(&[Bytes::from_static(b"c")]);
        body.unread(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(Received::whole(&[]).is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_a_client_takes_is_told_from_that_of_the_reader() {
        let (mut client, server) = tokio::io::duplex(4096);
        let (told, told_by) = tokio::sync::oneshot::channel();
        let told = std::sync::Mutex::new(Some(told));
        let service = service_fn(|request: Request<Incoming>| {
            let mut body = Received::of(request).into_body();
            let upload = body.timed();
            told.lock().unwrap().take().map(|told| told.send(upload).ok());
            async move {
                // A reader that takes its time, before the first piece and behind the last.
                sleep(Duration::from_secs(1)).await;
                let read = body.collect().await.unwrap().to_bytes();
                sleep(Duration::from_secs(3)).await;
                Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(read)))
            }
        });
        let served = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(server), service);
        let sends = async {
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab").await.unwrap();
            sleep(Duration::from_secs(6)).await;
            client.write_all(b"cd").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("abcd"), "{answer}");
        };
        let (served, ()) = tokio::join!(served, sends);
        served.unwrap();
        let waited = told_by.await.unwrap().waited();
        assert!(waited.abs_diff(Duration::from_secs(5)) < Duration::from_millis(20), "{waited:?}");
    }
}
