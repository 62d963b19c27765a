//! Clients that take nothing of their answers. A connection on which nothing can be written for a while is closed; over
//! HTTP/2, where a client may keep one stream's window closed while the connection goes on, that stream is reset.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// The most of a body that is handed on at once, bytes: as much as is sent in one frame.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// The stream of the task.
    static STREAM: Arc<Stream>;
}

/// A connection whose client takes something of what is written now and then, or writing fails.
pub(super) struct Taken {
    stream: TcpStream,
    patience: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Runs the streams of an HTTP/2 connection, each until its client has taken nothing for so long.
#[derive(Clone, Copy)]
pub(super) struct Streams(pub Duration);

/// What is known of one stream of an HTTP/2 connection.
#[derive(Default)]
struct Stream {
    /// Since when the client has had a piece to take.
    since: Mutex<Option<Instant>>,
}

/// The body of an answer on a stream, in pieces that are handed on only when the client has room for some of the next.
///
/// The last byte of every frame goes on its own: there is room for it only once there is room for all before it, so that nothing
/// is left waiting for room, and watched by nobody, when the body has ended.
pub(super) struct Paced<B> {
    body: B,
    /// What is left of a frame.
    rest: Bytes,
    stream: Option<Arc<Stream>>,
}

// === impl Taken ===

impl Taken {
    pub fn new(stream: TcpStream, patience: Duration) -> Taken {
        Taken { stream, patience, stalled: None }
    }

    /// Passes on what became of writing `first`, and lets it fail when the time is over.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        first: &[u8],
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        self.stalled = None;
        // The kernel says that there is room once there is a lot of it. A client that reads slowly has made some.
        match send(&self.stream, first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(length) => Poll::Ready(Ok(length)),
            Err(rustix::io::Errno::AGAIN) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncRead for Taken {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
        self.judge(cx, written, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl Streams ===

impl<F: Future + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let stream = Arc::<Stream>::default();
        tokio::spawn(STREAM.scope(stream.clone(), watched(future, stream, self.0)));
    }
}

/// Runs what answers on a stream. Dropped before its end, it resets the stream.
async fn watched(future: impl Future, stream: Arc<Stream>, patience: Duration) {
    let mut future = pin!(future);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(until) = stream.since().map(|since| since + patience) else {
            timer = None;
            return Poll::Pending;
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        tracing::debug!("a client took nothing of its answer for too long");
        Poll::Ready(())
    })
    .await;
}

impl Stream {
    fn since(&self) -> Option<Instant> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

// === impl Paced ===

impl<B> Paced<B> {
    /// The body of an answer to the request of this task.
    pub fn new(body: B) -> Paced<B> {
        Paced { body, rest: Bytes::new(), stream: STREAM.try_with(Arc::clone).ok() }
    }

    fn handed_on(&self, since: Option<Instant>) {
        if let Some(stream) = &self.stream {
            stream.set(since);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // Whoever asks for more has had room for what there was.
        self.handed_on(None);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = match self.rest.len() {
            length @ (0 | 1) => length,
            length => (length - 1).min(PIECE),
        };
        self.handed_on(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, left) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + left.lower());
        if let Some(upper) = left.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests;
