//! What a decision reads of each replica, side by side in memory: a fleet may have a thousand.

use crate::replica::{Load, Nature};
use crate::router::Slot;
use crate::time::{Nanos, SECOND};

/// What lies above a replica's floor is forgotten to a quarter after this long without an answer, so that it is tried again.
const FORGET: f32 = SECOND as f32;
/// How many inferences a replica is thought to run at the same time that did not say.
const PARALLEL: f64 = 4.0;
/// How many turns one request more adds to what is expected, at most.
const STEEP: f64 = 4.0;
/// A report about load counts for this long.
const FRESH: Nanos = 2 * SECOND;

/// One replica, as of the last change of its [`Slot`]. Spans are in ns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hot {
    pub(crate) generation: u32,
    pub(crate) jurisdiction: u32,
    /// The place is taken.
    pub(crate) there: bool,
    /// Nothing is against it but what a decision looks at itself: the law, a full limit, the request.
    pub(crate) plain: bool,
    pub(crate) full: bool,
    pub(crate) withdraws: bool,
    /// It is ejected.
    pub(crate) out: bool,
    /// It has not answered yet.
    cold: bool,
    /// The quickest answer of late; the distance before the first.
    floor: f32,
    /// What answers took beyond that, in the company that the replica has now.
    above: f32,
    /// What its own report says that an answer takes.
    reported: f32,
    /// One, and more while it fails.
    failing: f32,
    updated: Nanos,
    reported_until: Nanos,
}

/// What policies other than the fastest read of a replica.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) weight: u32,
    /// It is this gateway itself.
    pub(crate) local: bool,
    /// The 99th percentile of its answers; 0 where it is not known.
    pub(crate) p99: Nanos,
    /// The price of a request but for its answer's bytes, and of one byte.
    request: f64,
    byte: f64,
}

impl Terms {
    /// Reads a slot; `service` is what a request takes of an engine where the replica did not say.
    pub(crate) fn of(slot: &Slot, service: Nanos) -> Terms {
        let Some(replica) = &slot.replica else { return Terms::default() };
        let engine = slot.load.map_or(0, |(load, _)| load.engine_time);
        let price = &replica.site.price;
        Terms {
            weight: replica.weight,
            local: replica.nature == Nature::Local,
            p99: slot.history.p99().unwrap_or(0),
            request: price.of(if engine > 0 { engine } else { service }, 0),
            byte: price.gigabyte * 1e-9,
        }
    }

    /// What a request costs there whose answer is of so many bytes.
    pub(crate) fn price(&self, bytes: f64) -> f64 {
        self.request + self.byte * bytes
    }
}

impl Hot {
    /// How long an answer is expected to take, in ns. `service` is what replicas take beyond the network.
    #[inline]
    pub(crate) fn score(&self, service: f32, now: Nanos) -> f32 {
        let above = if self.cold {
            service + self.above
        } else {
            let kept = FORGET / (FORGET + now.saturating_sub(self.updated) as f32);
            self.above * kept * kept
        };
        (self.floor + above).max(self.reported(now)) * self.failing
    }

    /// How long an answer is expected to take if it is well again. What it took while it was not says nothing about that,
    /// and would keep it from being tried for longer than it was told to stay away.
    #[inline]
    pub(crate) fn score_when_back(&self, now: Nanos) -> f32 {
        self.floor.max(self.reported(now))
    }

    #[inline]
    fn reported(&self, now: Nanos) -> f32 {
        if now < self.reported_until { self.reported } else { 0.0 }
    }

    /// Reads a slot; `service` is what a request takes of an engine where the replica did not say.
    pub(crate) fn of(slot: &Slot, service: f64) -> Hot {
        let Some(replica) = &slot.replica else {
            return Hot { generation: slot.generation, ..Hot::default() };
        };
        let distance = replica.distance as f64;
        let known = slot.history.known();
        let turn = turn(slot, service);
        let (floor, above) = match known {
            Some((average, floor, beside, _)) => (floor, company(slot, (average - floor).max(0.0), beside, turn)),
            None => (distance, turn * f64::from(slot.in_flight)),
        };
        Hot {
            generation: slot.generation,
            jurisdiction: slot.jurisdiction,
            there: true,
            plain: slot.unfit.is_none() && slot.health.plain() && slot.shares.is_empty(),
            full: !slot.limit.admits(slot.in_flight),
            out: slot.health.ejected().is_some(),
            withdraws: replica.nature.withdraws(),
            cold: known.is_none(),
            floor: floor as f32,
            above: above as f32,
            reported: slot.load.map_or(0.0, |(load, _)| reported(distance, load)) as f32,
            failing: 1.0 + slot.health.failing() as f32,
            updated: known.map_or(0, |known| known.3),
            reported_until: slot.load.map_or(0, |(_, at)| at.saturating_add(FRESH)),
        }
    }
}

/// How long one request more makes the next one wait.
fn turn(slot: &Slot, service: f64) -> f64 {
    let load = slot.load.map(|(load, _)| load).unwrap_or_default();
    let engine = if load.engine_time > 0 { load.engine_time as f64 } else { service };
    engine / if load.parallel > 0 { f64::from(load.parallel) } else { PARALLEL }
}

/// What lies above the quickest answers comes of company, usually of `beside` others, and grows with it; but by no more
/// than some turns for each request that is there beyond that, or a replica that had little to do would seem to drown when
/// the traffic of another moves to it.
fn company(slot: &Slot, above: f64, beside: f64, turn: f64) -> f64 {
    let in_flight = f64::from(slot.in_flight);
    let grown = above * (in_flight + 1.0) / (beside + 1.0);
    grown.min(above + STEEP * turn * (in_flight - beside).max(0.0))
}

/// What an answer takes after what a replica reported.
fn reported(distance: f64, load: Load) -> f64 {
    let engine = load.engine_time as f64;
    distance + engine + engine * f64::from(load.queued) / f64::from(load.parallel.max(1))
}
