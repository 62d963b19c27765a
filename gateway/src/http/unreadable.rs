//! An answer of ours to a head that is no request: one that is malformed, or too long.
//!
//! hyper answers such a head itself, with nothing but a status, and has no place to say more. So the stream below it is
//! watched. Once the last answer has gone out whole and no further request has begun, whatever is written is that answer
//! of hyper's; ours goes out in its place. An HTTP/2 connection is left alone: what is written there is frames.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use http::StatusCode;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::answer::ERROR;
use super::identity::Identity;
use super::turns::Turns;
use crate::error::Error;

/// How an answer of hyper's begins, in every version of HTTP/1.
const BEGINS: &[u8] = b"HTTP/1.";

/// Where its status is.
const STATUS: std::ops::Range<usize> = 9..12;

/// What is still on the way when a head has been refused is read and dropped, else the kernel resets the connection and
/// the client may lose the answer: for so long, and so many bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// The body of the answer to a head that is no request, as JSON; it is told when there is one.
pub(crate) type Refuse = Box<dyn Fn(&Error, &Identity) -> Bytes + Send + Sync>;

/// A connection's stream, watched.
pub(crate) struct Watched<S> {
    stream: S,
    turns: Arc<Turns>,
    /// Requests that had begun when everything had last been written.
    settled: usize,
    refuse: Refuse,
    /// What is left of the answer to a head that is no request, once there was one.
    answer: Option<Bytes>,
    /// After that answer: how long the rest is read, and bytes of it.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

// === impl Watched ===

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Watches a stream of which nothing has been written.
    pub fn new(stream: S, refuse: Refuse) -> Watched<S> {
        let turns = Arc::default();
        Watched { stream, turns, settled: 0, refuse, answer: None, linger: None }
    }

    /// Where the connection's service says what begins and ends.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Whether what is written answers a head that is no request.
    fn refuses(&self, first: &[u8]) -> bool {
        self.answer.is_some() || self.turns.begun() == self.settled && first.starts_with(BEGINS)
    }

    /// Writes the answer of ours in place of all that hyper wrote.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, head: &[u8], length: usize) -> Poll<io::Result<usize>> {
        let mut answer = self.answer.take().unwrap_or_else(|| self.answer_to(head));
        while !answer.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &answer) {
                Poll::Ready(Ok(written)) if written > 0 => answer.advance(written),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.answer = Some(answer);
                    return Poll::Pending;
                }
            }
        }
        self.answer = Some(answer);
        Poll::Ready(Ok(length))
    }

    fn answer_to(&self, head: &[u8]) -> Bytes {
        let error = Error::unreadable(head.get(STATUS).and_then(|status| StatusCode::from_bytes(status).ok()));
        let identity = Identity::of(&HeaderMap::new());
        let body = (self.refuse)(&error, &identity);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(ERROR, HeaderValue::from_static(error.kind.as_str()));
        if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
            headers.insert(DATE, date);
        }
        identity.stamp(&mut headers);
        let mut answer = format!("HTTP/1.1 {}\r\n", error.kind.status()).into_bytes();
        for (name, value) in &headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                answer.extend_from_slice(part);
            }
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(&body);
        answer.into()
    }

    /// Reads and drops what a client still sends.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (until, left) = self.linger.get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER)), LINGER_BYTES));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut piece = [0; 16 << 10];
        loop {
            let mut piece = ReadBuf::new(&mut piece);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece));
            let length = piece.filled().len();
            if read.is_err() || length == 0 || length > *left {
                return Poll::Ready(());
            }
            *left -= length;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.refuses(bytes) {
            return self.poll_refuse(cx, bytes, bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = pieces.first().map_or(&[][..], |piece| piece);
        if self.refuses(first) {
            return self.poll_refuse(cx, first, pieces.iter().map(|piece| piece.len()).sum());
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes once it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let begun = self.turns.begun();
        if self.turns.ended() == begun {
            self.settled = begun;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.answer.is_some() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const OURS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    fn watched(room: usize) -> (Watched<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (here, there) = tokio::io::duplex(room);
        (Watched::new(here, Box::new(|error, _| error.kind.as_str().into())), there)
    }

    async fn written(mut stream: Watched<tokio::io::DuplexStream>, mut there: tokio::io::DuplexStream) -> String {
        let reading = tokio::spawn(async move {
            let mut all = String::new();
            there.read_to_string(&mut all).await.unwrap();
            all
        });
        stream.shutdown().await.unwrap();
        drop(stream);
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn what_is_written_before_a_request_is_replaced() {
        for (line, kind) in [("400 Bad Request", "malformed"), ("414 URI Too Long", "uri_too_long")] {
            let (mut stream, there) = watched(4096);
            stream.write_all(format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            let said = written(stream, there).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {line}\r\n")) && said.ends_with(&format!("\r\n\r\n{kind}")));
            assert!(said.contains("x-request-id: ") && said.contains("traceparent: 00-"), "{said}");
        }
    }

    #[tokio::test]
    async fn it_is_written_whole_where_there_is_little_room() {
        let (mut stream, mut there) = watched(7);
        let writing = tokio::spawn(async move {
            stream.write_all(OURS).await.unwrap();
            drop(stream);
        });
        let mut said = String::new();
        there.read_to_string(&mut said).await.unwrap();
        writing.await.unwrap();
        assert!(said.ends_with("\r\n\r\nmalformed") && said.matches("HTTP/1.1").count() == 1, "{said}");
    }

    /// What a model answers may look like it, whenever it is written.
    #[tokio::test]
    async fn an_answer_is_left_alone_until_all_of_it_is_written() {
        let (mut stream, there) = watched(4096);
        let turn = stream.turns().begin();
        stream.write_all(OURS).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(OURS).await.unwrap();
        drop(turn.tie(Response::new(Full::new(Bytes::new()))));
        stream.write_all(OURS).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(OURS).await.unwrap();
        let said = written(stream, there).await;
        let (answers, refusal) = said.split_at(3 * OURS.len());
        assert_eq!(answers.as_bytes(), OURS.repeat(3));
        assert!(refusal.starts_with("HTTP/1.1 400") && refusal.ends_with("malformed"), "{refusal}");
    }

    #[tokio::test]
    async fn frames_of_http2_are_left_alone() {
        let (mut stream, there) = watched(4096);
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert_eq!(written(stream, there).await, "\0\0\0\x04\0\0\0\0\0");
    }
}
