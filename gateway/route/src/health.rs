//! Whether a replica is fit to be asked: ejection, the way back, and what it said about coming back later.

use crate::explain::Refusal;
use crate::settings::Settings;
use crate::tally::{Blame, Cause, Tally};
use crate::time::{MILLISECOND, Nanos, SECOND};

/// A replica that kept well for this long after an ejection starts again with the shortest one.
const KEPT_WELL: Nanos = 30 * SECOND;
/// The share that a cold or returning replica starts with.
const FIRST_SHARE: f64 = 0.1;
/// A request that cannot be repeated is not the one that tries an ejected replica, until this long after its time.
const CAREFUL: Nanos = 5 * SECOND;
/// For how long a replica is not asked again for what it did not serve. What it stops to serve is known sooner than that.
const AWAY: Nanos = SECOND;

/// Why a replica is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ejection {
    /// It failed: connections, resets, errors, answers that did not come.
    Failures,
    /// Its answer to a golden input was wrong. Only a right one brings it back.
    Wrong,
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Until then nothing is sent; after it one request at a time tries.
    Ejected(Nanos),
    Wrong,
}

/// An ejection after failures, as long as it may turn out that these were the requests' own.
#[derive(Clone, Debug)]
struct Made {
    cause: Cause,
    /// As many failures eject it, as it stood then.
    enough: f64,
    /// Ejections in a row before it.
    times: u32,
    /// The last trial that failed.
    trial: Option<FailedTrial>,
}

/// A trial that failed, and what it changed.
#[derive(Clone, Copy, Debug)]
struct FailedTrial {
    /// The failure.
    number: u64,
    /// From when another could be made, and ejections in a row, before it failed.
    until: Nanos,
    times: u32,
}

/// One replica's health.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    state: State,
    /// Failures since it was last taken back.
    tally: Tally,
    /// While it is ejected for failures: what that would take to be taken back.
    made: Option<Box<Made>>,
    /// Ejections in a row.
    times: u32,
    up_since: Nanos,
    trial: bool,
    /// From when its share grows; `None` once it is whole.
    ramp: Option<Nanos>,
    not_before: Nanos,
    /// Until then it does not serve what was asked of it.
    away: Nanos,
}

impl Health {
    /// A replica that is new: `cold` ones start with a small share.
    pub(crate) fn new(cold: bool, now: Nanos) -> Health {
        Health {
            state: State::Up,
            tally: Tally::new(now),
            made: None,
            times: 0,
            up_since: now,
            trial: false,
            ramp: cold.then_some(now),
            not_before: 0,
            away: 0,
        }
    }

    /// Whether a request may be sent. `draw` is one number from `0.0..1.0` for the whole decision, `careful` a request
    /// that could not be sent again.
    pub(crate) fn admits(&self, slow_start: Nanos, draw: f64, careful: bool, now: Nanos) -> Result<(), Refusal> {
        match self.state {
            State::Wrong => return Err(Refusal::Wrong),
            State::Ejected(until) => {
                let until = if careful { until.saturating_add(CAREFUL) } else { until };
                if now < until || self.trial {
                    return Err(Refusal::Ejected { until });
                }
            }
            State::Up => {}
        }
        if now < self.away {
            return Err(Refusal::NotReady);
        }
        if now < self.not_before {
            return Err(Refusal::RetryAfter { until: self.not_before });
        }
        match self.share(slow_start, now) {
            share if draw >= share => Err(Refusal::Warming { share }),
            _ => Ok(()),
        }
    }

    /// What share of its traffic it gets now.
    fn share(&self, slow_start: Nanos, now: Nanos) -> f64 {
        match self.ramp {
            Some(since) if now < since.saturating_add(slow_start) => {
                let passed = now.saturating_sub(since) as f64 / slow_start as f64;
                FIRST_SHARE + (1.0 - FIRST_SHARE) * passed
            }
            _ => 1.0,
        }
    }

    /// A request is sent. True if it is the one that tries whether the replica is back.
    pub(crate) fn sent(&mut self, now: Nanos) -> bool {
        let trial = matches!(self.state, State::Ejected(until) if now >= until) && !self.trial;
        self.trial |= trial;
        trial
    }

    /// A request that `sent` called a trial ended in whatever way.
    pub(crate) fn trial_over(&mut self) {
        self.trial = false;
    }

    /// It answered.
    pub(crate) fn answered(&mut self, trial: bool, now: Nanos) {
        self.tally.answered();
        match self.state {
            State::Ejected(_) if trial => self.restore(now),
            State::Up if self.times > 0 && now.saturating_sub(self.up_since) > KEPT_WELL => self.times = 0,
            _ => {}
        }
    }

    /// It failed; `weight` says how certainly, from 0 to 1. `jitter` is from `0.0..1.0`. What this gives takes it back.
    pub(crate) fn failed(&mut self, weight: f64, jitter: f64, settings: &Settings, now: Nanos) -> Blame {
        let blame = self.tally.failed(weight, now);
        let fragile = self.times > 0 && self.share(settings.slow_start, now) < 1.0;
        let enough = if fragile { 1.0 } else { settings.failures };
        let times = self.times;
        let ejects = match (self.state, &mut self.made) {
            (State::Up, made) => {
                let ejects = self.tally.reaches(enough);
                if ejects {
                    *made = Some(Box::new(Made { cause: Cause::of(&self.tally), enough, times, trial: None }));
                }
                ejects
            }
            (State::Ejected(until), Some(made)) => {
                made.cause.failed(weight);
                let ejects = self.trial && now >= until && weight >= 0.5;
                if ejects {
                    made.trial = Some(FailedTrial { number: blame.number(), until, times });
                }
                ejects
            }
            (State::Ejected(_) | State::Wrong, _) => false,
        };
        if ejects {
            let (first, longest) = settings.ejection;
            let span = first.saturating_mul(1 << self.times.min(20)).min(longest);
            self.state = State::Ejected(now.saturating_add((span as f64 * (0.8 + 0.2 * jitter)) as Nanos));
            self.times = self.times.saturating_add(1);
            self.trial = false;
        }
        blame
    }

    /// Takes back one failure that `failed` counted: the request itself was to blame. An ejection that what is left would not
    /// have made never was: the replica stands as it stood before, with what share and after what ejections it had.
    pub(crate) fn forgiven(&mut self, blame: Blame) {
        self.tally.forgive(blame);
        let (State::Ejected(_), Some(made)) = (self.state, &mut self.made) else { return };
        made.cause.forgive(blame);
        if !made.cause.reaches(made.enough) {
            (self.state, self.times) = (State::Up, made.times);
            self.made = None;
        } else if let Some(trial) = made.trial.take_if(|trial| blame.is(trial.number)) {
            (self.state, self.times) = (State::Ejected(trial.until), trial.times);
        }
    }

    /// It asked for nothing before `until`.
    pub(crate) fn back_off(&mut self, until: Nanos) {
        self.not_before = self.not_before.max(until);
    }

    /// It does not serve what was asked of it. Whoever follows it hears of that as well, if it stays so, but of nothing
    /// where it was for a moment: so it is tried again, with a small share.
    pub(crate) fn not_here(&mut self, now: Nanos) {
        self.away = now.saturating_add(AWAY);
        self.warm_up(self.away);
    }

    /// A golden answer was wrong. True if that is new.
    pub(crate) fn wrong(&mut self) -> bool {
        let new = self.state != State::Wrong;
        (self.state, self.made) = (State::Wrong, None);
        new
    }

    /// A probe with a real inference was answered, rightly if there was something to compare.
    pub(crate) fn probed_well(&mut self, compared: bool, now: Nanos) {
        match self.state {
            State::Wrong if compared => self.restore(now),
            State::Ejected(until) if now >= until.saturating_sub(200 * MILLISECOND) => self.restore(now),
            _ => {}
        }
    }

    /// Why it is out, if it is.
    pub(crate) fn ejected(&self) -> Option<Ejection> {
        match self.state {
            State::Up => None,
            State::Ejected(_) => Some(Ejection::Failures),
            State::Wrong => Some(Ejection::Wrong),
        }
    }

    /// Whether nothing is to be asked but whether a share of the traffic is due: it is up, whole, and wants no rest.
    pub(crate) fn plain(&self) -> bool {
        self.state == State::Up && self.ramp.is_none() && self.not_before == 0 && self.away == 0
    }

    /// Forgets what is over: a ramp that has come to its end, a rest.
    pub(crate) fn settle(&mut self, slow_start: Nanos, now: Nanos) {
        if self.ramp.is_some() && self.share(slow_start, now) >= 1.0 {
            self.ramp = None;
        }
        if now >= self.not_before {
            self.not_before = 0;
        }
        if now >= self.away {
            self.away = 0;
        }
    }

    /// How far from healthy, for the score: 0 is well.
    pub(crate) fn failing(&self) -> f64 {
        self.tally.failing()
    }

    /// It is ready again after it served nothing.
    pub(crate) fn warm_up(&mut self, now: Nanos) {
        self.ramp = Some(now);
    }

    /// It had left the fleet, and is back: out if it was out. A trial that was under way then tells nothing any more.
    pub(crate) fn come_back(&mut self, cold: bool, now: Nanos) {
        self.trial = false;
        self.ramp = cold.then_some(now);
    }

    fn restore(&mut self, now: Nanos) {
        self.state = State::Up;
        self.up_since = now;
        self.ramp = Some(now);
        self.tally.clear();
        self.made = None;
        self.trial = false;
        self.times = self.times.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = MILLISECOND;

    fn fail(health: &mut Health, now: Nanos) -> Blame {
        health.failed(1.0, 1.0, &Settings::default(), now)
    }

    /// What a request would be told, and the share that it takes part in.
    fn admits(health: &Health, now: Nanos) -> Result<(), Refusal> {
        health.admits(Settings::default().slow_start, 0.999, false, now)
    }

    fn ejected(failures: Nanos) -> (Health, Vec<Blame>) {
        let mut health = Health::new(false, 0);
        let blames = (0..failures).map(|now| fail(&mut health, now)).collect();
        assert_eq!(health.ejected(), Some(Ejection::Failures));
        (health, blames)
    }

    #[test]
    fn an_ejection_that_requests_made_never_was() {
        let (mut health, blames) = ejected(3);
        health.forgiven(blames[1]);
        assert_eq!((health.ejected(), admits(&health, 3)), (None, Ok(())), "its whole share, at once");
        assert_eq!(health.times, 0);
        // Two of them are not forgiven, and count.
        fail(&mut health, 4);
        assert_eq!(health.ejected(), Some(Ejection::Failures));
    }

    #[test]
    fn what_failed_while_it_was_out_has_to_be_forgiven_as_well() {
        let (mut health, blames) = ejected(9);
        for (at, blame) in blames.iter().enumerate() {
            assert_eq!(health.ejected().is_some(), at < 7, "{at} of nine are forgiven");
            health.forgiven(*blame);
        }
        assert!(health.failing() < 1e-9 && admits(&health, 9).is_ok());
    }

    #[test]
    fn failures_of_its_own_keep_it_out() {
        let mut health = Health::new(false, 0);
        let poison = [fail(&mut health, 0), fail(&mut health, 0)];
        (0..3).for_each(|now| _ = fail(&mut health, now));
        poison.into_iter().for_each(|blame| health.forgiven(blame));
        assert_eq!(health.ejected(), Some(Ejection::Failures));
        // Answers of what was under way when it broke change nothing about that.
        let (mut health, blames) = ejected(4);
        (0..50).for_each(|_| health.answered(false, 5));
        health.forgiven(blames[0]);
        assert_eq!(health.ejected(), Some(Ejection::Failures));
    }

    #[test]
    fn an_ejection_is_made_of_what_came_since_the_last() {
        let (mut health, blames) = ejected(3);
        assert!(health.sent(SECOND));
        health.answered(true, SECOND);
        health.trial_over();
        // It is fragile now: one failure is enough, and the old ones are none of this ejection.
        let last = fail(&mut health, SECOND + MS);
        assert_eq!((health.ejected(), health.times), (Some(Ejection::Failures), 2));
        blames.iter().for_each(|blame| health.forgiven(*blame));
        assert_eq!(health.ejected(), Some(Ejection::Failures));
        health.forgiven(last);
        assert_eq!((health.ejected(), health.times), (None, 1));
        // Its share grows on from where it was.
        assert!(matches!(admits(&health, SECOND + 2 * MS), Err(Refusal::Warming { .. })));
        assert!(admits(&health, SECOND + Settings::default().slow_start).is_ok());
    }

    #[test]
    fn a_trial_that_a_request_failed_puts_nothing_off() {
        let (mut health, _) = ejected(3);
        let again = SECOND;
        assert!(health.sent(again));
        let trial = fail(&mut health, again);
        health.trial_over();
        assert!(matches!(admits(&health, again), Err(Refusal::Ejected { .. })));
        health.forgiven(trial);
        assert_eq!((health.ejected(), health.times), (Some(Ejection::Failures), 1));
        assert!(admits(&health, again).is_ok() && health.sent(again), "the next one tries");
    }

    #[test]
    fn a_wrong_answer_is_no_requests_fault() {
        let (mut health, blames) = ejected(3);
        health.wrong();
        blames.into_iter().for_each(|blame| health.forgiven(blame));
        assert_eq!(health.ejected(), Some(Ejection::Wrong));
    }
}
