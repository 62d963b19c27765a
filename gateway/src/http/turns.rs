//! The requests of one connection: which have begun, and for how long there has been none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// The requests of one connection, as its service sees them.
#[derive(Debug)]
pub(crate) struct Turns {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// When the connection began.
    since: Instant,
    /// When the last request ended, nanoseconds after that.
    last: AtomicU64,
}

/// A request that has no whole answer yet.
pub(crate) struct Turn(Arc<Turns>);

/// The body of an answer, with the turn that ends with it.
pub(crate) struct Tied<B> {
    body: B,
    _turn: Turn,
}

// === impl Turns ===

impl Default for Turns {
    fn default() -> Turns {
        Turns { begun: AtomicUsize::new(0), ended: AtomicUsize::new(0), since: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Turns {
    /// A request begins.
    pub fn begin(self: &Arc<Turns>) -> Turn {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Turn(self.clone())
    }

    /// Requests that have begun.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Those of them that have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits until there has been no request for `span`.
    pub async fn idle(&self, span: Duration) {
        loop {
            // In this order: one that begins in between counts as one that has not ended.
            let is_idle = self.ended() == self.begun();
            let now = Instant::now();
            let over = if is_idle { self.since + Duration::from_nanos(self.last.load(Ordering::Relaxed)) } else { now };
            if is_idle && over + span <= now {
                return;
            }
            tokio::time::sleep_until(over + span).await;
        }
    }
}

impl Turn {
    /// The answer, with whose body the turn ends.
    pub fn tie<B>(self, answer: Response<B>) -> Response<Tied<B>> {
        answer.map(|body| Tied { body, _turn: self })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.0.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.last.store(nanos, Ordering::Relaxed);
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

impl<B: Body + Unpin> Body for Tied<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_a_span_after_the_last_request_has_ended() {
        let began = Instant::now();
        let turns = Arc::<Turns>::default();
        let requests = async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            let turn = turns.begin();
            tokio::time::sleep(Duration::from_secs(33)).await;
            let other = turns.begin();
            drop(turn);
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(other);
        };
        let idle = async {
            turns.idle(SPAN).await;
            began.elapsed()
        };
        let ((), took) = tokio::join!(requests, idle);
        assert_eq!(took.as_secs(), 6 + 33 + 2 + 10);
        // It is still, for whoever asks again.
        turns.idle(SPAN).await;
        assert_eq!(began.elapsed().as_secs(), took.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_is_idle_from_its_beginning() {
        let began = Instant::now();
        let turns = Turns::default();
        tokio::time::sleep(SPAN / 2).await;
        turns.idle(SPAN).await;
        assert_eq!(began.elapsed().as_secs(), SPAN.as_secs());
    }
}
