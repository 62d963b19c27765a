//! How a connection begins: its first bytes tell HTTP/2 from HTTP/1.1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How a client begins that speaks HTTP/2 without having asked.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose first bytes are known. Whoever reads it gets them all the same.
pub(super) struct Begun<S> {
    stream: S,
    seen: [u8; PREFACE.len()],
    /// How many of them there are, and how many were read again.
    length: usize,
    read: usize,
}

// === impl Begun ===

impl<S: AsyncRead + Unpin> Begun<S> {
    /// Reads as far as tells how the client begins. One that sends no more of the preface costs nothing while it waits.
    pub async fn read(mut stream: S) -> io::Result<Begun<S>> {
        let (mut seen, mut length) = ([0; PREFACE.len()], 0);
        while length < PREFACE.len() && PREFACE.starts_with(&seen[..length]) {
            match stream.read(&mut seen[length..]).await? {
                0 => break,
                count => length += count,
            }
        }
        Ok(Begun { stream, seen, length, read: 0 })
    }

    /// Whether the client begins with the preface of HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.seen == PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let again = &this.seen[this.read..this.length];
        if again.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, into);
        }
        let count = again.len().min(into.remaining());
        into.put_slice(&again[..count]);
        this.read += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
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

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Sends pieces one after the other; what the stream is then, and all that is read of it.
    async fn sent(pieces: &[&[u8]]) -> (bool, Vec<u8>) {
        let (here, mut there) = tokio::io::duplex(64);
        let sending = async {
            for piece in pieces {
                there.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(there);
        };
        let reading = async {
            let mut begun = Begun::read(here).await.unwrap();
            let mut all = Vec::new();
            let is = begun.speaks_http2();
            begun.read_to_end(&mut all).await.unwrap();
            (is, all)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn the_preface_is_told_from_all_else_however_it_is_cut() {
        let all = [PREFACE, b"and frames"].concat();
        for cut in 0..PREFACE.len() {
            assert_eq!(sent(&[&all[..cut], &all[cut..]]).await, (true, all.clone()), "{cut}");
            let other = [&PREFACE[..cut], b"\0GET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(sent(&[&other[..cut], &other[cut..]]).await, (false, other.clone()), "{cut}");
            assert_eq!(sent(&[&PREFACE[..cut]]).await, (false, PREFACE[..cut].to_vec()), "{cut}");
        }
        let bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(sent(&bytes).await, (true, all.clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_more_wakes_nobody() {
        let (here, mut there) = tokio::io::duplex(64);
        there.write_all(b"PRI").await.unwrap();
        let mut polls = 0;
        let mut reading = pin!(Begun::read(here));
        let counted = poll_fn(|cx| {
            polls += 1;
            reading.as_mut().poll(cx)
        });
        assert!(tokio::time::timeout(Duration::from_secs(75), counted).await.is_err());
        assert!(polls <= 2, "{polls}");
    }
}
