//! How many calls of one version are in flight, and how many may be.
//!
//! Up to `limits.concurrency` calls are in flight: a burst waits in the graph's queue rather than being sent away. Where they
//! end so soon that a place will be free in a moment, more wait for one ([`Load::outside`]). A model
//! that is asked for more than it can do has that queue full all the time, and every answer is late by the whole of it,
//! though a short queue would keep the engine as busy. So where calls have been refused for a while, no more are admitted
//! than the queue works off soon, until the pressure is gone. It is the idea of controlled delay in routers (RFC 8289): a
//! queue that stands is of no use.
//!
//! Where tenants are known, the places are divided among those that call ([`seats`]), and nobody waits for one.

mod seats;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::seats::{Seated, Seats};
use crate::config::tenants::PROBER;

/// How long a call waits for a place, by what ended of late.
const SOON: Duration = Duration::from_millis(50);
/// Calls that wait at the begin of a burst, when nothing is known, for each that may be in flight.
const FIRST: usize = 8;
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
    permits: Semaphore,
    most: usize,
    /// Whether [`Calls::load`] says anything, so that a model at rest asks no lock.
    watched: AtomicBool,
    load: Mutex<Load>,
    /// Calls that ever came for a place, but for those that went without, and those that have given theirs back.
    came: AtomicUsize,
    ended: AtomicUsize,
    seats: Arc<Seats>,
    /// Golden tests have a place of their own: none is to take a client's.
    probes: Semaphore,
}

/// The place of one call, given back when dropped.
#[derive(Debug)]
pub struct Place {
    calls: Arc<Calls>,
    is_golden: bool,
    _seat: Option<Seated>,
}

/// How many calls there are.
#[derive(Clone, Copy, Debug)]
struct Count {
    /// Those that have a place, or are about to wake up with one.
    in_flight: usize,
    /// Those that wait for one.
    outside: usize,
    /// Those that ever ended.
    ended: usize,
}

/// A call that waits for a place. Dropped without one, it never came.
struct Outside<'a>(Option<&'a AtomicUsize>);

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
    /// From when on calls that end are counted, and how many had ended before.
    counted: Option<(Instant, usize)>,
    /// How many end within [`SOON`], as such spans of late say; `None` until there was one.
    ends: Option<usize>,
}

impl Calls {
    /// At most `most` at the same time.
    pub fn new(most: u32) -> Calls {
        let most = most as usize;
        let [permits, probes] = [most, 1].map(Semaphore::new);
        let (watched, load, came, ended, seats) = Default::default();
        Calls { permits, most, watched, load, came, ended, seats, probes }
    }

    /// Those in flight, and those that wait to be.
    pub fn here(&self) -> usize {
        let Count { in_flight, outside, .. } = self.count();
        in_flight + outside
    }

    /// Those that could begin, were there no pressure.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Those that wait for a place.
    pub fn outside(&self) -> usize {
        self.count().outside
    }

    /// Whether fewer calls are admitted than could be, because more have been refused.
    pub fn is_pressed(&self) -> bool {
        self.is_pressed_together() || self.seats.is_pressed()
    }

    /// As [`Calls::is_pressed`], where tenants are not told apart.
    fn is_pressed_together(&self) -> bool {
        self.watched.load(Relaxed) && self.load().pressed
    }

    /// Whether a call of a tenant that comes now is to go on. `serving` says how many of those in flight do not wait for an
    /// engine.
    pub fn has_room(&self, tenant: &Arc<str>, serving: impl Fn(usize) -> usize) -> bool {
        if **tenant == *PROBER {
            return self.probes.available_permits() > 0;
        }
        let count = self.count();
        if count.in_flight * 2 < self.most && !self.watched.load(Relaxed) && !self.seats.is_divided() {
            return true;
        }
        self.judge(tenant, count, Instant::now(), serving)
    }

    /// Takes a call's place, or waits for one until a time; `None` where there is no room any more.
    pub async fn enter(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        serving: impl Fn(usize) -> usize,
        until: Instant,
    ) -> Option<Place> {
        match self.try_enter(tenant, &serving) {
            // In a box of its own, which most calls do not need.
            None if self.may_wait(tenant) => Box::pin(self.wait(until)).await,
            None => {
                // It was asked for its body, as if there had been room.
                self.refuse(tenant);
                None
            }
            place => place,
        }
    }

    fn try_enter(self: &Arc<Self>, tenant: &Arc<str>, serving: impl Fn(usize) -> usize) -> Option<Place> {
        if **tenant == *PROBER {
            self.probes.try_acquire().ok()?.forget();
            return Some(Place { calls: self.clone(), is_golden: true, _seat: None });
        }
        let (Count { in_flight, .. }, now) = (self.count(), Instant::now());
        let seat = self.seats.take(tenant, (in_flight, self.most), || room(in_flight, &serving), now);
        let has_room = match &seat {
            Some(seat) => seat.is_some(),
            None => !self.is_pressed_together() || in_flight < room(in_flight, &serving),
        };
        if !has_room {
            return None;
        }
        self.permits.try_acquire().ok()?.forget();
        self.came.fetch_add(1, Relaxed);
        Some(Place { calls: self.clone(), is_golden: false, _seat: seat.flatten() })
    }

    /// Whether a call that found no place may wait for one.
    fn may_wait(&self, tenant: &Arc<str>) -> bool {
        if !self.is_together(tenant) {
            return false;
        }
        let (count, load) = (self.count(), self.load());
        !load.pressed && count.outside < load.outside(self.most)
    }

    /// Counts a call that was refused after it had been let in.
    fn refuse(&self, tenant: &Arc<str>) {
        if self.is_together(tenant) {
            self.load().learn(true);
        }
    }

    /// Whether a call is one of those that are not told apart.
    fn is_together(&self, tenant: &Arc<str>) -> bool {
        **tenant != *PROBER && !self.seats.is_divided()
    }

    /// Waits for a place, in the order in which calls came.
    async fn wait(self: &Arc<Self>, until: Instant) -> Option<Place> {
        self.came.fetch_add(1, Relaxed);
        let mut outside = Outside(Some(&self.came));
        // Longer than the queue should take: the machine may have paused.
        let longest = until.saturating_duration_since(Instant::now()).min(STANDS);
        let permit = timeout(longest, self.permits.acquire()).await;
        let Ok(Ok(permit)) = permit else {
            // Who would not wait that long says nothing about the model.
            if longest == STANDS {
                self.load().learn(true);
            }
            return None;
        };
        permit.forget();
        outside.0 = None;
        Some(Place { calls: self.clone(), is_golden: false, _seat: None })
    }

    fn count(&self) -> Count {
        let (in_flight, ended) = (self.most.saturating_sub(self.free()), self.ended.load(Relaxed));
        // What comes or ends in this moment may be in one of them only.
        let here = self.came.load(Relaxed).wrapping_sub(ended).cast_signed().max(0).cast_unsigned();
        Count { in_flight, outside: here.saturating_sub(in_flight), ended }
    }

    fn judge(&self, tenant: &Arc<str>, count: Count, now: Instant, serving: impl Fn(usize) -> usize) -> bool {
        let Count { in_flight, outside, ended } = count;
        if let Some(has_room) = self.seats.judge(tenant, (in_flight, self.most), || room(in_flight, &serving), now) {
            return has_room;
        }
        let mut load = self.load();
        load.count(in_flight, ended, now);
        let has_room = match load.pressed {
            true => in_flight < room(in_flight, serving).min(self.most),
            false => in_flight < self.most || outside < load.outside(self.most),
        };
        load.observe(in_flight, self.most, has_room, now);
        self.watched.store(load.busy_since.is_some(), Relaxed);
        has_room
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls that may be in flight under pressure.
fn room(in_flight: usize, serving: impl Fn(usize) -> usize) -> usize {
    serving(in_flight).max(1).saturating_mul(PER_SERVING)
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_golden {
            self.calls.probes.add_permits(1);
            return;
        }
        self.calls.ended.fetch_add(1, Relaxed);
        self.calls.permits.add_permits(1);
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        if let Some(came) = self.0 {
            came.fetch_sub(1, Relaxed);
        }
    }
}

impl Load {
    /// How many calls may wait for a place: as many as end soon. A burst that has just begun says nothing of that yet.
    fn outside(&self, most: usize) -> usize {
        self.ends.unwrap_or(most.saturating_mul(FIRST))
    }

    /// Learns how many calls have ended until now, while there were any. It forgets slowly: the machine may have paused, or the
    /// first calls of a burst have opened their connections. What waits in vain does so for a moment only.
    fn count(&mut self, in_flight: usize, ended: usize, now: Instant) {
        if in_flight == 0 {
            self.counted = None;
        }
        let &mut (since, before) = self.counted.get_or_insert((now, ended));
        let span = now.saturating_duration_since(since);
        if span < SOON {
            return;
        }
        let share = SOON.as_secs_f64() / span.as_secs_f64();
        let ends = (ended.saturating_sub(before) as f64 * share) as usize;
        self.ends = Some(ends.max(self.ends.unwrap_or(0) / 8 * 7));
        self.counted = Some((now, ended));
    }

    /// Learns whether one more call was refused.
    fn learn(&mut self, is_refused: bool) {
        self.refused += (f32::from(u8::from(is_refused)) - self.refused) * STEP;
    }

    /// Learns from a call that found `in_flight` of `most` calls, and room or not.
    fn observe(&mut self, in_flight: usize, most: usize, has_room: bool, now: Instant) {
        let rested = in_flight == 0 && self.last.is_some_and(|last| now.saturating_duration_since(last) >= STANDS);
        self.last = Some(now);
        let is_busy = in_flight * 2 >= most;
        if rested || !is_busy && !self.pressed {
            *self = Load { last: self.last, ends: self.ends, ..Load::default() };
            return;
        }
        let since = *self.busy_since.get_or_insert(now);
        self.learn(!has_room);
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
