//! How many calls of one version are in flight, and how many may be.
//!
//! Up to `limits.concurrency` calls are admitted: a burst waits in the graph's queue rather than being sent away. A model
//! that is asked for more than it can do has that queue full all the time, and every answer is late by the whole of it,
//! though a short queue would keep the engine as busy. So where calls have been refused for a while, no more are admitted
//! than the queue works off soon, until the pressure is gone. It is the idea of controlled delay in routers (RFC 8289): a
//! queue that stands is of no use.
//!
//! Where tenants are known, the places are divided among those that call ([`seats`]).

mod seats;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::seats::{Seated, Seats};
use crate::config::tenants::PROBER;

/// How long a queue stands before it is no burst.
const STANDS: Duration = Duration::from_millis(100);
/// Calls under pressure, for each that does not wait: an answer takes about as many times as long as it would alone.
const PER_SERVING: usize = 3;
/// The share of calls that is refused when pressure begins, and when it ends. The first is what leaves a model with a
/// single client too many alone, the second that of a model with nine tenths of its work and room for [`PER_SERVING`].
const BEGINS: f32 = 0.05;
const ENDS: f32 = 0.03;
/// How much one call moves that share.
const STEP: f32 = 1.0 / 128.0;

/// The calls of one version.
#[derive(Debug)]
pub struct Calls {
    permits: Arc<Semaphore>,
    most: usize,
    /// Whether [`Calls::load`] says anything, so that a model at rest asks no lock.
    watched: AtomicBool,
    load: Mutex<Load>,
    seats: Arc<Seats>,
    /// Golden tests have a place of their own: none is to take a client's.
    probes: Arc<Semaphore>,
}

/// The place of one call, given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _seat: Option<Seated>,
}

/// What the calls of late have met.
#[derive(Debug, Default)]
struct Load {
    /// When the last one came.
    last: Option<Instant>,
    /// Since when at least half of the calls were in flight.
    busy_since: Option<Instant>,
    /// The share that was refused.
    refused: f32,
    pressed: bool,
}

impl Calls {
    /// At most `most` at the same time.
    pub fn new(most: u32) -> Calls {
        let most = most as usize;
        let (watched, load, seats) = (AtomicBool::new(false), Mutex::default(), Arc::default());
        let [permits, probes] = [most, 1].map(|places| Arc::new(Semaphore::new(places)));
        Calls { permits, most, watched, load, seats, probes }
    }

    /// Those in flight.
    pub fn in_flight(&self) -> usize {
        self.most.saturating_sub(self.free())
    }

    /// Those that could begin, were there no pressure.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Whether fewer calls are admitted than could be, because more have been refused.
    pub fn is_pressed(&self) -> bool {
        self.is_pressed_together() || self.seats.is_pressed()
    }

    /// As [`Calls::is_pressed`], where tenants are not told apart.
    fn is_pressed_together(&self) -> bool {
        self.watched.load(Relaxed) && self.load.lock().unwrap_or_else(PoisonError::into_inner).pressed
    }

    /// Whether a call of a tenant that comes now finds room. `serving` says how many of those in flight do not wait for an
    /// engine.
    pub fn has_room(&self, tenant: &Arc<str>, serving: impl Fn(usize) -> usize) -> bool {
        if **tenant == *PROBER {
            return self.probes.available_permits() > 0;
        }
        let in_flight = self.in_flight();
        if in_flight * 2 < self.most && !self.watched.load(Relaxed) && !self.seats.is_divided() {
            return true;
        }
        self.judge(tenant, in_flight, Instant::now(), serving)
    }

    /// Takes a call's place; `None` where there is no room any more.
    pub fn enter(&self, tenant: &Arc<str>, serving: impl Fn(usize) -> usize) -> Option<Place> {
        if **tenant == *PROBER {
            return Some(Place { _permit: self.probes.clone().try_acquire_owned().ok()?, _seat: None });
        }
        let (in_flight, now) = (self.in_flight(), Instant::now());
        let seat = self.seats.take(tenant, (in_flight, self.most), || room(in_flight, &serving), now);
        let has_room = match &seat {
            Some(seat) => seat.is_some(),
            None => !self.is_pressed_together() || in_flight < room(in_flight, &serving),
        };
        let permit = if has_room { self.permits.clone().try_acquire_owned().ok()? } else { return None };
        Some(Place { _permit: permit, _seat: seat.flatten() })
    }

    fn judge(&self, tenant: &Arc<str>, in_flight: usize, now: Instant, serving: impl Fn(usize) -> usize) -> bool {
        if let Some(has_room) = self.seats.judge(tenant, (in_flight, self.most), || room(in_flight, &serving), now) {
            return has_room;
        }
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = if load.pressed { room(in_flight, serving).min(self.most) } else { self.most };
        let has_room = in_flight < bound;
        load.observe(in_flight, self.most, has_room, now);
        self.watched.store(load.busy_since.is_some(), Relaxed);
        has_room
    }
}

/// Calls that may be in flight under pressure.
fn room(in_flight: usize, serving: impl Fn(usize) -> usize) -> usize {
    serving(in_flight).max(1).saturating_mul(PER_SERVING)
}

impl Load {
    /// Learns from a call that found `in_flight` of `most` calls, and room or not.
    fn observe(&mut self, in_flight: usize, most: usize, has_room: bool, now: Instant) {
        let rested = in_flight == 0 && self.last.is_some_and(|last| now.saturating_duration_since(last) >= STANDS);
        self.last = Some(now);
        let is_busy = in_flight * 2 >= most;
        if rested || !is_busy && !self.pressed {
            *self = Load { last: self.last, ..Load::default() };
            return;
        }
        let since = *self.busy_since.get_or_insert(now);
        self.refused += (f32::from(u8::from(!has_room)) - self.refused) * STEP;
        if self.pressed {
            self.pressed = self.refused > ENDS;
            // What comes next is watched anew.
            self.busy_since = Some(if self.pressed { since } else { now });
        } else {
            self.pressed = self.refused > BEGINS && now.saturating_duration_since(since) >= STANDS;
        }
    }
}

#[cfg(test)]
mod tests;
