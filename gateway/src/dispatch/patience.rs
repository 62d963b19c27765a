//! How long a body that is passed on as it comes may keep its client waiting.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Duration, Instant, Sleep, sleep_until};

/// The time that a replica has for the rest of its answer. Only waits for the replica take of it: a client may read as
/// slowly as it likes, and then finds there what it has not read.
pub struct Patience {
    left: Duration,
    /// When the wait that lasts began.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// How long nothing has come.
    pub silent: Duration,
}

impl Patience {
    /// As much time as there is until then.
    pub fn until(deadline: Instant) -> Patience {
        Patience { left: deadline.saturating_duration_since(Instant::now()), since: None, timer: None }
    }

    /// What came of a look whether there is more; an error once it has been waited for too long.
    pub fn bound<T>(&mut self, cx: &mut Context<'_>, looked: Poll<T>) -> Poll<Result<T, Over>> {
        if let Poll::Ready(came) = looked {
            let waited = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            self.left = self.left.saturating_sub(waited);
            return Poll::Ready(Ok(came));
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let end = since + self.left;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // It rings no later than this wait may end, and is put off only then: most waits end long before.
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(Err(Over { silent: since.elapsed() }));
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    async fn next(patience: &mut Patience, from: &mut Receiver<u8>) -> Result<Option<u8>, Over> {
        poll_fn(|cx| {
            let looked = from.poll_recv(cx);
            patience.bound(cx, looked)
        })
        .await
    }

    fn in_seconds(seconds: u64) -> Patience {
        Patience::until(Instant::now() + Duration::from_secs(seconds))
    }

    /// Whether it is about so many seconds since then: timers ring within a few milliseconds.
    fn is_after(began: Instant, seconds: u64) -> bool {
        began.elapsed().abs_diff(Duration::from_secs(seconds)) < Duration::from_millis(20)
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_waited_for_until_the_deadline() {
        let (_to, mut from) = channel(1);
        let (began, mut patience) = (Instant::now(), in_seconds(5));
        let over = next(&mut patience, &mut from).await.unwrap_err();
        assert!(is_after(began, 5) && over.silent >= Duration::from_secs(5), "{over:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_that_come_put_nothing_off() {
        let (to, mut from) = channel(1);
        tokio::spawn(async move {
            while to.send(1).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let (began, mut patience) = (Instant::now(), in_seconds(5));
        let mut pieces = 0;
        let over = loop {
            match next(&mut patience, &mut from).await {
                Ok(piece) => pieces += u64::from(piece.unwrap()),
                Err(over) => break over,
            }
        };
        assert!(is_after(began, 5), "{:?}", began.elapsed());
        assert_eq!(pieces, 3);
        assert!(over.silent < Duration::from_secs(2), "the last piece came a second before: {over:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_takes_none_of_the_replicas_time() {
        let (to, mut from) = channel(16);
        for piece in 0..10 {
            to.send(piece).await.unwrap();
        }
        let mut patience = in_seconds(5);
        for piece in 0..10 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(next(&mut patience, &mut from).await, Ok(Some(piece)));
        }
        let began = Instant::now();
        next(&mut patience, &mut from).await.unwrap_err();
        assert!(is_after(began, 5), "{:?}", began.elapsed());
        drop(to);
    }
}
