//! What a replica's answers took: an average that peaks at once and forgets slowly, and quantiles.

use crate::time::{MILLISECOND, Nanos};

/// Buckets for each doubling: an edge is at most an eighth off.
const STEPS: usize = 8;
/// The first bucket ends at 2^FIRST ns, 8 µs.
const FIRST: u32 = 13;
/// 8 µs to 137 s.
const BUCKETS: usize = 24 * STEPS;
/// At this many answers the older half is forgotten.
const FORGET: u32 = 1_024;
/// Below this many answers there are no quantiles.
const ENOUGH: u32 = 16;
/// How often the quantiles are read anew.
const REFRESH: u32 = 16;
/// How fast the average falls when answers are quicker than it.
const FALL: f64 = 50.0 * MILLISECOND as f64;

/// One replica's answers.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Peak EWMA in ns; 0 before the first answer.
    average: f64,
    /// The quickest answer, forgotten slowly, in ns.
    floor: f64,
    /// Requests in flight when answers were asked for, on average.
    beside: f64,
    updated: Nanos,
    counts: Box<[u16; BUCKETS]>,
    total: u32,
    since_refresh: u32,
    late: Nanos,
    p99: Nanos,
}

impl History {
    pub(crate) fn new() -> History {
        History {
            average: 0.0,
            floor: 0.0,
            beside: 0.0,
            updated: 0,
            counts: Box::new([0; BUCKETS]),
            total: 0,
            since_refresh: 0,
            late: 0,
            p99: 0,
        }
    }

    /// An answer took `took` and had `beside` other requests in flight when it was asked for; `late` is the quantile
    /// that hedges wait for.
    pub(crate) fn answered(&mut self, took: Nanos, beside: u32, late: f64, now: Nanos) {
        let (took_ns, beside) = (took as f64, f64::from(beside));
        if self.average == 0.0 {
            (self.average, self.floor, self.beside) = (took_ns, took_ns, beside);
        } else {
            let passed = now.saturating_sub(self.updated) as f64;
            // At least a sixteenth a sample, so that a burst of answers counts although no time passes.
            let weight = (passed / (passed + FALL)).max(1.0 / 16.0);
            let weight = if took_ns > self.average { 1.0f64.min(weight * 4.0) } else { weight };
            self.average += (took_ns - self.average) * weight;
            self.beside += (beside - self.beside) * weight;
            self.floor = if took_ns < self.floor { took_ns } else { self.floor + (took_ns - self.floor) * 1e-3 };
        }
        self.updated = now;
        self.count(took);
        if self.since_refresh >= REFRESH || self.total <= ENOUGH {
            self.since_refresh = 0;
            (self.late, self.p99) = (self.quantile(late), self.quantile(0.99));
        }
    }

    /// No answer came within `waited`: it would have taken longer than that.
    pub(crate) fn at_least(&mut self, waited: Nanos, now: Nanos) {
        if waited as f64 > self.average {
            self.average = waited as f64;
            self.updated = now;
        }
    }

    /// The peak EWMA, in ns; `None` before the first answer.
    pub(crate) fn average(&self) -> Option<f64> {
        (self.average > 0.0).then_some(self.average)
    }

    /// In ns: the peak EWMA, the quickest answer of late, how many requests are in flight beside one on average; and the
    /// time of the last answer, or of one that took longer than them. `None` before the first.
    pub(crate) fn known(&self) -> Option<(f64, f64, f64, Nanos)> {
        (self.average > 0.0).then_some((self.average, self.floor, self.beside, self.updated))
    }

    /// It is back after an outage, of which the average knows too much.
    pub(crate) fn forgive(&mut self) {
        self.average = self.floor;
    }

    /// The time within which answers are not late; `None` before there are enough.
    pub(crate) fn late(&self) -> Option<Nanos> {
        (self.total >= ENOUGH).then_some(self.late)
    }

    /// The 99th percentile; `None` before there are enough answers.
    pub(crate) fn p99(&self) -> Option<Nanos> {
        (self.total >= ENOUGH).then_some(self.p99)
    }

    fn count(&mut self, took: Nanos) {
        self.counts[bucket(took)] += 1;
        self.total += 1;
        self.since_refresh += 1;
        if self.total >= FORGET {
            self.total = 0;
            for count in self.counts.iter_mut() {
                *count /= 2;
                self.total += u32::from(*count);
            }
        }
    }

    /// The upper edge of the bucket within which a share of `q` of the answers are.
    fn quantile(&self, q: f64) -> Nanos {
        let mut above = (f64::from(self.total) * (1.0 - q)).floor();
        for (index, count) in self.counts.iter().enumerate().rev() {
            above -= f64::from(*count);
            if above < 0.0 {
                return edge(index);
            }
        }
        edge(0)
    }
}

/// The bucket that counts answers of `took`.
fn bucket(took: Nanos) -> usize {
    let exponent = took.max(1).ilog2();
    if exponent < FIRST {
        return 0;
    }
    let step = (took >> (exponent - STEPS.ilog2())) as usize & (STEPS - 1);
    ((exponent - FIRST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// Where the bucket of this index ends.
fn edge(index: usize) -> Nanos {
    let exponent = FIRST + (index / STEPS) as u32;
    let step = (index % STEPS + 1) as u64;
    (1 << exponent) + (step << (exponent - STEPS.ilog2()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_it_counts(took in 9_000u64..100_000_000_000) {
            let end = edge(bucket(took));
            prop_assert!(took < end && end as f64 <= took as f64 * 1.126, "{took} {end}");
        }

        #[test]
        fn quantiles_are_an_eighth_above_at_most(mut took in prop::collection::vec(20_000u64..1_000_000_000, 16..900)) {
            let mut history = History::new();
            for (index, &t) in took.iter().enumerate() {
                history.answered(t, 0, 0.98, index as u64 * MILLISECOND);
            }
            took.sort_unstable();
            let exact = took[took.len() - 1 - (took.len() as f64 * (1.0 - 0.98)) as usize];
            let read = history.quantile(0.98);
            prop_assert!(read >= exact && read as f64 <= exact as f64 * 1.126, "{exact} {read}");
        }
    }

    #[test]
    fn the_average_peaks_and_forgets() {
        let mut history = History::new();
        let mut now = 0;
        for _ in 0..100 {
            now += MILLISECOND;
            history.answered(2 * MILLISECOND, 1, 0.98, now);
        }
        assert!(history.average().is_some_and(|a| (a - 2e6).abs() < 1e4));
        history.at_least(500 * MILLISECOND, now);
        assert!(history.average().is_some_and(|a| a >= 500e6));
        for _ in 0..200 {
            now += MILLISECOND;
            history.answered(2 * MILLISECOND, 1, 0.98, now);
        }
        assert!(history.average().is_some_and(|a| a < 2.1e6), "{:?}", history.average());
    }

    #[test]
    fn old_answers_are_forgotten() {
        let mut history = History::new();
        for n in 0..2_000 {
            history.answered(2 * MILLISECOND, 0, 0.98, n * MILLISECOND);
        }
        for n in 2_000..2_040 {
            history.answered(60 * MILLISECOND, 0, 0.98, n * MILLISECOND);
        }
        assert!(history.late().is_some_and(|l| l >= 60 * MILLISECOND), "{:?}", history.late());
        for n in 2_040..8_000 {
            history.answered(2 * MILLISECOND, 0, 0.98, n * MILLISECOND);
        }
        assert!(history.late().is_some_and(|l| l < 3 * MILLISECOND), "{:?}", history.late());
    }
}
