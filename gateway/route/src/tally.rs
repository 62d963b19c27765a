//! Failures of late, each of which can be taken back: what a replica failed at may turn out to be the request's fault.

use crate::time::{Nanos, SECOND};

/// What an answer takes off the count of failures.
const OUTWEIGHED: f64 = 0.1;
/// Failures count half after this long.
const HALF_LIFE: f64 = 5.0 * SECOND as f64;

/// One failure that was counted. Whoever has it can take it back, so that nothing is kept of each where they are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blame {
    number: u64,
    weight: f64,
    /// `Tally::left` when it was counted.
    left: f64,
    /// What came before it was an answer.
    after_answer: bool,
}

/// The failures of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// How many were ever counted: the number of the last.
    count: u64,
    /// What they come to, time and answers having taken some off.
    failing: f64,
    counted_at: Nanos,
    /// The logarithm of what time and answers have left of a failure of the very beginning. What they have left of a later one
    /// is what this has fallen by since.
    left: f64,
    /// Failures up to this number count for nothing any more.
    gone: u64,
    /// Failures since the last answer, whatever time they took.
    row: u32,
    /// The number of the last one before those.
    row_after: u64,
    /// It has answered since it last failed, whatever was taken back.
    well: bool,
}

/// What an ejection was made of: failures as they counted when it began, and those that followed. Neither time nor answers
/// of before take anything off, but only that a request was to blame.
#[derive(Clone, Debug)]
pub(crate) struct Cause(Tally);

// === impl Tally ===

impl Tally {
    pub(crate) fn new(now: Nanos) -> Tally {
        Tally { count: 0, failing: 0.0, counted_at: now, left: 0.0, gone: 0, row: 0, row_after: 0, well: false }
    }

    /// It failed; `weight` says how certainly, from 0 to 1.
    pub(crate) fn failed(&mut self, weight: f64, now: Nanos) -> Blame {
        let passed = now.saturating_sub(self.counted_at) as f64;
        let kept = HALF_LIFE / (HALF_LIFE + passed);
        self.left += kept.ln();
        self.failing *= kept;
        self.counted_at = now;
        self.count += 1;
        self.add(weight);
        Blame { number: self.count, weight, left: self.left, after_answer: std::mem::take(&mut self.well) }
    }

    /// It answered.
    pub(crate) fn answered(&mut self) {
        let rest = self.failing - OUTWEIGHED;
        if rest > 0.0 {
            self.left += (rest / self.failing).ln();
            self.failing = rest;
        } else {
            (self.failing, self.gone) = (0.0, self.count);
        }
        (self.row, self.row_after) = (0, self.count);
        self.well = true;
    }

    /// Takes back as much of a failure as still counts.
    pub(crate) fn forgive(&mut self, blame: Blame) {
        if blame.number > self.gone {
            self.take(blame.weight * (self.left - blame.left).exp());
        }
        if blame.number > self.row_after {
            self.row = self.row.saturating_sub(row(blame.weight));
        }
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        (self.failing, self.gone) = (0.0, self.count);
        (self.row, self.row_after) = (0, self.count);
    }

    /// What the failures come to: 0 is well.
    pub(crate) fn failing(&self) -> f64 {
        self.failing
    }

    /// Whether they are as many as that, of late or in a row.
    pub(crate) fn reaches(&self, enough: f64) -> bool {
        self.failing >= enough || f64::from(self.row) >= enough
    }

    fn add(&mut self, weight: f64) {
        self.failing += weight;
        self.row += row(weight);
    }

    fn take(&mut self, counts: f64) {
        self.failing = (self.failing - counts).max(0.0);
    }
}

/// What a failure of that weight adds to those in a row.
fn row(weight: f64) -> u32 {
    u32::from(weight >= 1.0)
}

// === impl Cause ===

impl Cause {
    /// Of an ejection that these failures make now.
    pub(crate) fn of(tally: &Tally) -> Cause {
        Cause(tally.clone())
    }

    /// It failed again, while it was out.
    pub(crate) fn failed(&mut self, weight: f64) {
        self.0.add(weight);
    }

    /// Takes a failure out of it.
    pub(crate) fn forgive(&mut self, blame: Blame) {
        if blame.number > self.0.count {
            self.0.take(blame.weight);
            self.0.row = self.0.row.saturating_sub(row(blame.weight));
        } else {
            self.0.forgive(blame);
        }
    }

    /// Whether what is left of it is as much as that.
    pub(crate) fn reaches(&self, enough: f64) -> bool {
        self.0.reaches(enough)
    }
}

impl Blame {
    /// Whether the replica had answered just before.
    pub(crate) fn follows_an_answer(&self) -> bool {
        self.after_answer
    }

    /// Whether it is this failure of its replica.
    pub(crate) fn is(&self, number: u64) -> bool {
        self.number == number
    }

    /// The failure's number at its replica.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::MILLISECOND;

    /// What happens to a replica, some time after what happened before.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Failure(f64),
        Answer,
    }

    fn step() -> impl Strategy<Value = (Step, Nanos)> {
        let step = prop_oneof![prop::sample::select(vec![1.0, 1.0, 0.3]).prop_map(Step::Failure), Just(Step::Answer),];
        (step, 0..4_000 * MILLISECOND)
    }

    proptest! {
        #[test]
        fn what_is_taken_back_is_what_it_still_counts_and_no_more(
            steps in prop::collection::vec(step(), 1..60),
            forgiven in prop::collection::vec(any::<bool>(), 60),
        ) {
            let (mut tally, mut now, mut blames) = (Tally::new(0), 0, Vec::new());
            // Each failure by itself: its number, what it counts by now, and whether it is one of those in a row.
            let mut each: Vec<(u64, f64, bool)> = Vec::new();
            for (step, after) in steps {
                now += after;
                match step {
                    Step::Failure(weight) => {
                        let passed = now.saturating_sub(tally.counted_at) as f64;
                        each.iter_mut().for_each(|one| one.1 *= HALF_LIFE / (HALF_LIFE + passed));
                        blames.push(tally.failed(weight, now));
                        each.push((blames.len() as u64, weight, weight >= 1.0));
                    }
                    Step::Answer => {
                        let all: f64 = each.iter().map(|one| one.1).sum();
                        let share = if all > OUTWEIGHED { 1.0 - OUTWEIGHED / all } else { 0.0 };
                        each.iter_mut().for_each(|one| (one.1, one.2) = (one.1 * share, false));
                        tally.answered();
                    }
                }
            }
            for (blame, _) in blames.iter().zip(&forgiven).filter(|(_, forgiven)| **forgiven) {
                tally.forgive(*blame);
                each.retain(|one| !blame.is(one.0));
            }
            let failing: f64 = each.iter().map(|one| one.1).sum();
            prop_assert!((tally.failing() - failing).abs() < 1e-6, "{} and {failing}", tally.failing());
            prop_assert_eq!(tally.row as usize, each.iter().filter(|one| one.2).count());
        }
    }

    #[test]
    fn a_cause_knows_no_time_and_no_answers() {
        let mut tally = Tally::new(0);
        let blames = [0, 1, 2].map(|at| tally.failed(1.0, at));
        let mut cause = Cause::of(&tally);
        (0..100).for_each(|_| tally.answered());
        let later = tally.failed(1.0, 60 * SECOND);
        cause.failed(1.0);
        assert!(cause.reaches(3.9) && !tally.reaches(1.1));
        cause.forgive(blames[0]);
        assert!(cause.reaches(3.0), "the one that followed stands in for it");
        cause.forgive(later);
        assert!(!cause.reaches(3.0) && cause.reaches(2.0));
    }
}
