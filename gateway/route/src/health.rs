//! Whether a replica is fit to be asked: ejection, the way back, and what it said about coming back later.

use crate::explain::Refusal;
use crate::settings::Settings;
use crate::time::{MILLISECOND, Nanos, SECOND};

/// What an answer takes off the count of failures.
const FORGIVEN: f64 = 0.1;
/// Failures count half after this long.
const HALF_LIFE: f64 = 5.0 * SECOND as f64;
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

/// One replica's health.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    state: State,
    /// Failures of late, answers and time having taken some off.
    failing: f64,
    failing_at: Nanos,
    /// Failures since the last answer, whatever time they took.
    row: u32,
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
            failing: 0.0,
            failing_at: now,
            row: 0,
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
        self.failing = (self.failing - FORGIVEN).max(0.0);
        self.row = 0;
        match self.state {
            State::Ejected(_) if trial => self.restore(now),
            State::Up if self.times > 0 && now.saturating_sub(self.up_since) > KEPT_WELL => self.times = 0,
            _ => {}
        }
    }

    /// It failed; `weight` says how certainly, from 0 to 1. `jitter` is from `0.0..1.0`. True if this ejected it.
    pub(crate) fn failed(&mut self, weight: f64, jitter: f64, settings: &Settings, now: Nanos) -> bool {
        let passed = now.saturating_sub(self.failing_at) as f64;
        self.failing = self.failing * HALF_LIFE / (HALF_LIFE + passed) + weight;
        self.failing_at = now;
        self.row += u32::from(weight >= 1.0);
        let fragile = self.times > 0 && self.share(settings.slow_start, now) < 1.0;
        let enough = if fragile { 1.0 } else { settings.failures };
        let ejects = match self.state {
            State::Up => self.failing >= enough || f64::from(self.row) >= enough,
            State::Ejected(until) => self.trial && now >= until && weight >= 0.5,
            State::Wrong => false,
        };
        if ejects {
            let (first, longest) = settings.ejection;
            let span = first.saturating_mul(1 << self.times.min(20)).min(longest);
            self.state = State::Ejected(now.saturating_add((span as f64 * (0.8 + 0.2 * jitter)) as Nanos));
            self.times = self.times.saturating_add(1);
            (self.failing, self.row) = (0.0, 0);
            self.trial = false;
        }
        ejects
    }

    /// Takes back what `failed` counted for one failure: the request itself was to blame.
    pub(crate) fn forgiven(&mut self, weight: f64) {
        self.failing = (self.failing - weight).max(0.0);
        self.row = self.row.saturating_sub(u32::from(weight >= 1.0));
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
        self.state = State::Wrong;
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
        self.failing
    }

    /// It is ready again after it served nothing.
    pub(crate) fn warm_up(&mut self, now: Nanos) {
        self.ramp = Some(now);
    }

    fn restore(&mut self, now: Nanos) {
        self.state = State::Up;
        self.up_since = now;
        self.ramp = Some(now);
        (self.failing, self.row) = (0.0, 0);
        self.trial = false;
        self.times = self.times.max(1);
    }
}
