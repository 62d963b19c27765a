//! How much of a request's time is its client's, who sends a body that is not held as slowly as it likes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

/// The waits for one body that is sent on as it comes. Whoever reads it says how each look at it ended.
#[derive(Debug, Default)]
pub struct Upload(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    /// All that are over.
    over: Duration,
    /// When the one that lasts began.
    since: Option<Instant>,
}

impl Upload {
    /// Somebody looked whether more has come. Nobody waits for the client while nobody looks.
    pub fn looked(&self, came: bool) {
        let mut waits = self.waits();
        match (came, waits.since) {
            (true, Some(since)) => (waits.over, waits.since) = (waits.over + since.elapsed(), None),
            (false, None) => waits.since = Some(Instant::now()),
            _ => {}
        }
    }

    /// How long it has been waited for the client altogether.
    pub fn waited(&self) -> Duration {
        let waits = self.waits();
        waits.over + waits.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_add_up_and_the_one_that_lasts_counts() {
        let upload = Upload::default();
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        pass(1).await;
        upload.looked(false);
        pass(2).await;
        upload.looked(false);
        pass(4).await;
        assert_eq!(upload.waited(), Duration::from_secs(6));
        upload.looked(true);
        pass(8).await;
        upload.looked(true);
        assert_eq!(upload.waited(), Duration::from_secs(6), "nobody looks");
        upload.looked(false);
        pass(16).await;
        assert_eq!(upload.waited(), Duration::from_secs(22));
    }
}
