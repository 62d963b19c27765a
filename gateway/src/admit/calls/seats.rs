//! How the places of one version are divided among the tenants that call it.
//!
//! Whoever has less than its share finds room as long as there is any; whoever has more leaves some for those that come
//! later, and all of it to those who were refused within their share. Each is under pressure by itself: a flood has its
//! queue kept short, and who calls beside it may have a burst wait.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windrose_engine::default_tenant;

use super::Load;

/// How long a tenant is counted after its last call, and a refusal within its share is remembered.
const RECENT: Duration = Duration::from_secs(1);
/// Of so many places one is left for tenants that have none.
const LEFT_OF: usize = 8;

/// The tenants of one version.
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// Whether anybody but the default tenant has called. Until then there is nothing to divide, and nothing to lock.
    divided: AtomicBool,
    seats: Mutex<Vec<Seat>>,
}

#[derive(Debug)]
struct Seat {
    tenant: Arc<str>,
    /// Its calls in flight.
    calls: usize,
    /// When its last one came.
    last: Instant,
    /// When it was last refused though it had less than its share.
    wanted: Option<Instant>,
    load: Load,
}

/// What a tenant that comes finds.
struct Finds {
    /// Where its seat is.
    at: usize,
    /// The calls that it may have without a look at what the others have, were it not under pressure.
    share: usize,
    /// Whether it has less than its share.
    within: bool,
    has_room: bool,
}

/// A place of one tenant, given back when dropped.
#[derive(Debug)]
pub(super) struct Seated {
    seats: Arc<Seats>,
    tenant: Arc<str>,
}

impl Seats {
    /// Whether a call of a tenant that comes now finds room, where `in_flight` of `most` places are taken and `room` of them
    /// are of use under pressure; `None` where nothing is divided.
    pub fn judge(
        &self,
        tenant: &Arc<str>,
        (in_flight, most): (usize, usize),
        room: impl FnOnce() -> usize,
        now: Instant,
    ) -> Option<bool> {
        if !self.divides(tenant) {
            return None;
        }
        let mut seats = self.lock();
        let Finds { at, share, within, has_room } = find(&mut seats, tenant, (in_flight, most), room, now);
        let seat = &mut seats[at];
        seat.load.observe(seat.calls, share, has_room, now);
        if within && !has_room {
            seat.wanted = Some(now);
        }
        Some(has_room)
    }

    /// As [`Seats::judge`], for a call that is to begin: it is counted where there is room.
    pub fn take(
        self: &Arc<Seats>,
        tenant: &Arc<str>,
        places: (usize, usize),
        room: impl FnOnce() -> usize,
        now: Instant,
    ) -> Option<Option<Seated>> {
        if !self.divides(tenant) {
            return None;
        }
        let mut seats = self.lock();
        let Finds { at, within, has_room, .. } = find(&mut seats, tenant, places, room, now);
        let seat = &mut seats[at];
        if has_room {
            seat.calls += 1;
        } else if within {
            seat.wanted = Some(now);
        }
        Some(has_room.then(|| Seated { seats: self.clone(), tenant: tenant.clone() }))
    }

    /// Whether tenants are told apart.
    pub fn is_divided(&self) -> bool {
        self.divided.load(Relaxed)
    }

    /// Whether any tenant is under pressure.
    pub fn is_pressed(&self) -> bool {
        self.is_divided() && self.lock().iter().any(|seat| seat.load.pressed)
    }

    /// Whether a tenant's calls have seats.
    fn divides(&self, tenant: &str) -> bool {
        if !self.is_divided() {
            if tenant == &*default_tenant() {
                return false;
            }
            self.divided.store(true, Relaxed);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for a tenant's seat, which is made where there is none, and at what it finds there.
fn find(
    seats: &mut Vec<Seat>,
    tenant: &Arc<str>,
    (in_flight, most): (usize, usize),
    room: impl FnOnce() -> usize,
    now: Instant,
) -> Finds {
    seats.retain(|seat| seat.calls > 0 || seat.tenant == *tenant || is_recent(seat.last, now));
    let at = seats.iter().position(|seat| seat.tenant == *tenant).unwrap_or_else(|| {
        let (tenant, load) = (tenant.clone(), Load::default());
        seats.push(Seat { tenant, calls: 0, last: now, wanted: None, load });
        seats.len() - 1
    });
    seats[at].last = now;
    let (seat, tenants) = (&seats[at], seats.len());
    let usable = most - left(most);
    let room = if seat.load.pressed { room().clamp(1, usable) } else { usable };
    let within = seat.calls < room.div_ceil(tenants);
    let others_want = || {
        let mut others = seats.iter().enumerate().filter(|(other, _)| *other != at);
        others.any(|(_, other)| other.wanted.is_some_and(|wanted| is_recent(wanted, now)))
    };
    let has_room = in_flight < most && (within || in_flight < room && !others_want());
    Finds { at, share: usable.div_ceil(tenants), within, has_room }
}

/// Places that are left to those who have less than their share.
fn left(most: usize) -> usize {
    if most > 1 { (most / LEFT_OF).max(1) } else { 0 }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < RECENT
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut seats = self.seats.lock();
        if let Some(seat) = seats.iter_mut().find(|seat| seat.tenant == self.tenant) {
            seat.calls = seat.calls.saturating_sub(1);
        }
    }
}
