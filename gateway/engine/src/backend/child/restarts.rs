//! When a child that has ended is started again.
//!
//! An end is no reason to refuse callers: one input of a stranger may have brought it about. So the next child is started
//! at once, as long as starts take no more than half of a core's time, and callers wait for it. Only where children end
//! in which nothing has run is there something wrong with the graph or the machine: then each start is put off longer
//! than the one before, and callers are told to come again.

use std::time::{Duration, Instant};

/// How long an idle child must have lived for its end to be no sign that the next will not live either.
const STEADY: Duration = Duration::from_secs(60);
/// How long the third start in a row is put off; each further one twice as long.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest that a start is put off.
const LONGEST: Duration = Duration::from_secs(30);
/// What starts may take beyond half of the time, all of them together.
const BURST: Duration = Duration::from_secs(10);

/// What the ends of a graph's children so far say about the next start.
pub(super) struct Restarts {
    /// Children in a row that did not live long, and ran nothing.
    short_lives: u32,
    /// What starts have taken beyond half of the time.
    spent: Duration,
    /// When that was so.
    at: Instant,
}

/// The life of one child.
pub(super) struct Life {
    /// What its start took.
    pub start: Duration,
    /// The start, and all that followed.
    pub whole: Duration,
    /// Whether anything has run in it.
    pub used: bool,
}

/// How long a start is put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub length: Duration,
    /// Whether callers are refused meanwhile. Those who wait, wait no longer than the last start took.
    pub refuses: bool,
}

impl Restarts {
    pub fn new(now: Instant) -> Restarts {
        Restarts { short_lives: 0, spent: Duration::ZERO, at: now }
    }

    /// When the next child is started, now that one has ended.
    pub fn after(&mut self, life: &Life, now: Instant) -> Pause {
        let short = !life.used && life.whole <= STEADY;
        self.short_lives = if short { self.short_lives.saturating_add(1) } else { 0 };
        let earned = now.saturating_duration_since(self.at) / 2;
        (self.spent, self.at) = (self.spent.saturating_sub(earned) + life.start, now);
        let (rest, backoff) = (2 * self.spent.saturating_sub(BURST), backoff(self.short_lives));
        Pause { length: rest.max(backoff), refuses: !backoff.is_zero() }
    }
}

/// How long the next start is put off after as many short lives in a row.
fn backoff(short_lives: u32) -> Duration {
    match short_lives {
        0..=2 => Duration::ZERO,
        more => BACKOFF.saturating_mul(1 << (more - 3).min(16)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_millis(200);

    fn life(used: bool) -> Life {
        Life { start: START, whole: START, used }
    }

    #[test]
    fn children_that_run_nothing_are_started_more_and_more_slowly() {
        let now = Instant::now();
        let mut restarts = Restarts::new(now);
        let quick = Life { start: Duration::ZERO, ..life(false) };
        let pauses: Vec<(u128, bool)> = (0..7)
            .map(|_| restarts.after(&quick, now))
            .map(|pause| (pause.length.as_millis(), pause.refuses))
            .collect();
        let expected: [(u128, bool); 7] =
            [(0, false), (0, false), (100, true), (200, true), (400, true), (800, true), (1_600, true)];
        assert_eq!(pauses, expected);
        assert_eq!(backoff(u32::MAX), LONGEST);
        // One that has run something, or lived for long, ends that.
        let pause = restarts.after(&Life { used: true, ..quick }, now);
        assert_eq!((pause.length, pause.refuses), (Duration::ZERO, false));
        restarts.after(&quick, now);
        restarts.after(&quick, now);
        restarts.after(&Life { whole: 2 * STEADY, ..quick }, now);
        assert!(!restarts.after(&quick, now).refuses);
    }

    /// A flood of inputs that end the child as soon as it is there.
    #[test]
    fn starts_take_half_of_the_time_in_the_end_and_nobody_is_refused() {
        let begin = Instant::now();
        let (mut now, mut restarts, mut busy) = (begin, Restarts::new(begin), Duration::ZERO);
        for turn in 0..5_000 {
            (now, busy) = (now + START, busy + START);
            let pause = restarts.after(&life(true), now);
            assert!(!pause.refuses && pause.length <= START, "{pause:?}");
            assert!(turn >= 90 || pause.length.is_zero(), "the first ones are not put off: {turn}");
            now += pause.length;
        }
        let most = (now - begin) / 2 + BURST + START;
        assert!(busy <= most, "{busy:?} of {:?}", now - begin);
        // What rests gets its burst back.
        now += 4 * BURST;
        assert_eq!(restarts.after(&life(true), now).length, Duration::ZERO);
    }
}
