//! What runs lose to those that run beside them, on the same cores.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;

/// Adds up what a run that was there all the time would have lost.
#[derive(Debug)]
pub(super) struct Beside(Mutex<Lost>);

#[derive(Debug)]
struct Lost {
    /// Cores of those that run beside others.
    taken: i64,
    /// The part of each run's time that this takes.
    part: f64,
    since: Instant,
    /// Up to `since`.
    lost: Duration,
    /// Where they run, as far as is known.
    places: Vec<usize>,
}

/// The core that a run beside others was given, by its number.
#[derive(Debug)]
pub(super) struct Place(usize);

/// Most of a run's time that others can take: the system gives a tenth to who has the lower priority.
const MOST: f64 = 0.9;

impl Default for Beside {
    fn default() -> Beside {
        Beside(Mutex::new(Lost {
            taken: 0,
            part: 0.0,
            since: Instant::now(),
            lost: Duration::ZERO,
            places: Vec::new(),
        }))
    }
}

impl Beside {
    /// A run begins on this thread that takes some of all `cores` from those that have them. It goes where no other such run
    /// is: the system leaves two that wake up on one core there for some milliseconds, since no core is idle.
    pub fn begins(&self, taken: i64, cores: i64) -> Place {
        let here = rustix::thread::sched_getcpu();
        let (place, allowed) = {
            let mut state = self.lock();
            state.change(taken, cores, Instant::now());
            let allowed = state.places.contains(&here).then(|| rustix::thread::sched_getaffinity(None).ok()).flatten();
            let free = allowed.and_then(|allowed| {
                (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core) && !state.places.contains(core))
            });
            state.places.push(free.unwrap_or(here));
            (free.unwrap_or(here), allowed)
        };
        if let Some(allowed) = allowed.filter(|_| place != here) {
            let mut only = CpuSet::new();
            only.set(place);
            // Told to be on one core it is moved there at once; then it may be anywhere again.
            let _ = rustix::thread::sched_setaffinity(None, &only);
            let _ = rustix::thread::sched_setaffinity(None, &allowed);
        }
        Place(place)
    }

    /// As many more run beside others, who need no core of their own for it.
    pub fn changes(&self, by: i64, cores: i64) {
        self.lock().change(by, cores, Instant::now());
    }

    pub fn ends(&self, place: Place, taken: i64, cores: i64) {
        let mut state = self.lock();
        state.change(-taken, cores, Instant::now());
        if let Some(at) = state.places.iter().position(|core| *core == place.0) {
            state.places.swap_remove(at);
        }
    }

    /// What a run would have lost that has been there from the beginning.
    pub fn lost(&self) -> Duration {
        let state = self.lock();
        if state.taken == 0 { state.lost } else { state.until(Instant::now()) }
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, Lost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lost {
    fn until(&self, now: Instant) -> Duration {
        self.lost + now.saturating_duration_since(self.since).mul_f64(self.part)
    }

    fn change(&mut self, by: i64, cores: i64, now: Instant) {
        self.lost = self.until(now);
        self.taken += by;
        // The others share what is left of the cores, which they filled before.
        self.part = (self.taken as f64 / cores.max(1) as f64).clamp(0.0, MOST);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_beside_others_go_to_cores_of_their_own() {
        let beside = Beside::default();
        let allowed = rustix::thread::sched_getaffinity(None).expect("its cores");
        let places: Vec<Place> = (0..allowed.count()).map(|_| beside.begins(1, 8)).collect();
        let mut cores: Vec<usize> = places.iter().map(|place| place.0).collect();
        cores.sort_unstable();
        cores.dedup();
        assert_eq!(cores.len(), places.len());
        assert!(cores.iter().all(|core| allowed.is_set(*core)));
        assert_eq!(rustix::thread::sched_getaffinity(None).expect("its cores"), allowed, "it may be anywhere");
        let last = beside.begins(1, 8);
        places.into_iter().chain([last]).for_each(|place| beside.ends(place, 1, 8));
        assert!(beside.lock().places.is_empty());
    }

    #[test]
    fn as_much_is_lost_as_others_take_of_the_cores() {
        let Beside(state) = Beside::default();
        let mut state = state.into_inner().expect("no poison");
        let begin = state.since;
        let ms = Duration::from_millis;
        let lost = |state: &Lost, at| state.until(begin + ms(at)).as_secs_f64() * 1e3;
        assert_eq!(lost(&state, 50), 0.0);
        state.change(1, 4, begin + ms(100));
        assert_eq!(lost(&state, 140).round(), 10.0);
        state.change(1, 4, begin + ms(140));
        assert_eq!(lost(&state, 160).round(), 20.0);
        state.change(2, 4, begin + ms(160));
        assert_eq!(lost(&state, 260).round(), 110.0, "never all of it");
        state.change(-4, 4, begin + ms(260));
        assert_eq!(lost(&state, 1_000).round(), 110.0);
    }
}
