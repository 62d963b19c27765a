//! How many requests a replica gets at the same time: the limit finds what it can take.

use crate::time::Nanos;

/// Where a limit starts: well above what one model at one site holds in flight, so that a sudden move of all traffic is
/// not refused.
const START: f64 = 512.0;
/// What is left of the requests in flight after a refusal.
const CUT: f64 = 0.8;
/// Near what was refused last, the limit grows so much slower.
const WARY: f64 = 0.05;

/// An adaptive limit: a refusal by the replica cuts it below what was in flight, answers raise it while it is used.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    limit: f64,
    bounds: (f64, f64),
    /// What was refused last; infinite while nothing was, and then the limit may grow quickly.
    refused: f64,
    cut_at: Nanos,
}

impl Limit {
    pub(crate) fn new(bounds: (u32, u32)) -> Limit {
        let bounds = (f64::from(bounds.0), f64::from(bounds.1.max(bounds.0)));
        Limit { limit: START.clamp(bounds.0, bounds.1), bounds, refused: f64::INFINITY, cut_at: 0 }
    }

    /// The replica refused what was sent at `sent`, with `in_flight` others there at that time. What was sent before the last cut
    /// says nothing about the limit since.
    pub(crate) fn refused(&mut self, in_flight: u32, sent: Nanos, now: Nanos) {
        if sent >= self.cut_at {
            let base = f64::from(in_flight).min(self.limit);
            self.limit = (base * CUT).clamp(self.bounds.0, self.bounds.1);
            (self.cut_at, self.refused) = (now, base);
        }
    }

    /// The replica answered, with `in_flight` requests there.
    pub(crate) fn answered(&mut self, in_flight: u32) {
        if f64::from(in_flight) * 2.0 > self.limit {
            let step = match self.limit / self.refused {
                0.0 => 1.0,
                near if near > 0.9 => WARY / self.limit,
                _ => 2.0 / self.limit,
            };
            self.limit = (self.limit + step).min(self.bounds.1);
        }
    }

    /// Whether one more is let through.
    pub(crate) fn admits(&self, in_flight: u32) -> bool {
        f64::from(in_flight) + 1.0 <= self.limit
    }

    /// The limit now.
    pub(crate) fn now(&self) -> u32 {
        self.limit as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MILLISECOND;

    #[test]
    fn the_limit_settles_below_what_is_refused() {
        let mut limit = Limit::new((4, 16_384));
        let (mut now, mut refusals) = (0, 0);
        // A replica that takes 40 at the same time, and a caller that always fills the limit.
        for step in 0..20_000 {
            now += MILLISECOND;
            let in_flight = limit.now();
            if in_flight > 40 {
                refusals += u32::from(step > 1_000);
                limit.refused(in_flight, now, now);
            } else {
                limit.answered(in_flight);
            }
        }
        assert!((25..=41).contains(&limit.now()), "{}", limit.now());
        assert!(refusals < 19_000 / 20, "{refusals}");
    }

    #[test]
    fn bounds_hold_and_an_unused_limit_does_not_grow() {
        let mut limit = Limit::new((4, 600));
        for now in 0..100 {
            limit.refused(0, now, now);
        }
        assert_eq!(limit.now(), 4);
        assert!(limit.admits(3) && !limit.admits(4));
        limit.answered(1);
        assert_eq!(limit.now(), 4);
        let mut fresh = Limit::new((4, 600));
        for _ in 0..1_000 {
            fresh.answered(600);
        }
        assert_eq!(fresh.now(), 600);
    }
}
