//! Budgets: extra attempts as a share of requests, with a reserve for the start of an outage.

use crate::time::{Nanos, SECOND};

/// What a budget holds at least, so that a quiet model survives an outage as well.
const LEAST_RESERVE: f64 = 16.0;

/// Over what time the rate of requests is averaged.
const RATE_WINDOW: f64 = 5.0 * SECOND as f64;

/// A bucket of extra attempts. Each request adds its share; the bucket holds as many as requests arrive in the reserve's
/// time, so that each of those may be tried once more before the ejection of what failed has taken effect.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    share: f64,
    reserve: f64,
    tokens: f64,
    capacity: f64,
    /// Requests within the window, older ones counting less.
    recent: f64,
    last: Nanos,
}

impl Budget {
    pub(crate) fn new(share: f64, reserve: Nanos) -> Budget {
        Budget { share, reserve: reserve as f64, tokens: LEAST_RESERVE, capacity: LEAST_RESERVE, recent: 0.0, last: 0 }
    }

    /// A request came in.
    pub(crate) fn request(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.last) as f64;
        self.last = now;
        self.recent = self.recent * RATE_WINDOW / (RATE_WINDOW + passed) + 1.0;
        let capacity = (self.recent / RATE_WINDOW * self.reserve).max(LEAST_RESERVE);
        // What the reserve grows by is there at once; the rate itself follows a rise over its window.
        let grown = (capacity - self.capacity).max(0.0);
        self.capacity = capacity;
        self.tokens = (self.tokens + grown + self.share).min(capacity);
    }

    /// Takes one extra attempt, if there is one.
    pub(crate) fn take(&mut self) -> bool {
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// How many extra attempts are left.
    pub(crate) fn left(&self) -> f64 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MILLISECOND;

    #[test]
    fn the_reserve_carries_every_request_of_its_time_and_no_more() {
        let mut budget = Budget::new(0.1, 300 * MILLISECOND);
        let mut now = 0;
        for _ in 0..20_000 {
            now += 2 * MILLISECOND;
            budget.request(now);
        }
        let mut carried = 0;
        for _ in 0..5_000 {
            now += 2 * MILLISECOND;
            budget.request(now);
            carried += u32::from(budget.take());
        }
        // 150 requests in 300 ms; then a tenth of the requests.
        let least = 150 + 5_000 / 10 - 10;
        assert!((least..=least + 30).contains(&carried), "{carried}");
    }

    #[test]
    fn a_quiet_model_has_a_reserve_too() {
        let mut budget = Budget::new(0.1, 300 * MILLISECOND);
        budget.request(SECOND);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 16);
        assert!(budget.left() < 1.0);
    }
}
