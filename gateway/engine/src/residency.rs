//! What can leave memory and come back: a module's code, a graph's weights. A [`Residency`] keeps what is in memory within
//! a budget: who was used least recently leaves first, and never one that is in use.
//!
//! What is in use stays, even where all of it together is more than the budget: nobody waits for room. [`Residency::trim`]
//! brings the rest back within the budget when uses end.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Something that can leave memory. Its owner brings it back when it is needed.
pub trait Evict: Send + Sync {
    /// When it was used last.
    fn last_use(&self) -> u64;

    /// Leaves memory and drops its [`Held`], unless it is in use. Whether it has left.
    fn evict(&self) -> bool;

    /// Whether it has a process of its own, which ends when it leaves.
    fn has_process(&self) -> bool {
        false
    }
}

/// The bytes of one kind that are in memory, and who they belong to. Cloning shares it.
#[derive(Clone)]
pub struct Residency {
    inner: Arc<Inner>,
}

struct Inner {
    /// Bytes; `None` for no bound.
    budget: Option<u64>,
    bytes: AtomicU64,
    evictions: AtomicU64,
    reloads: AtomicU64,
    /// Who is in memory and can leave it. Held for a look through the list; no I/O happens under it.
    residents: Mutex<Vec<Weak<dyn Evict>>>,
    /// Whether somebody has promised to trim.
    trimming: AtomicBool,
}

/// Bytes that count as being in memory until this is dropped.
pub struct Held {
    inner: Arc<Inner>,
    bytes: u64,
}

/// What a [`Residency`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidencyCounts {
    /// Bytes in memory now.
    pub bytes: u64,
    /// How many there may be; `None` for any number.
    pub budget: Option<u64>,
    /// How often one left memory to make room.
    pub evictions: u64,
    /// How often one came back.
    pub reloads: u64,
}

/// The moment of a last use.
#[derive(Debug, Default)]
pub struct LastUse(AtomicU64);

// === impl Held ===

impl Held {
    /// Where the bytes count.
    pub fn residency(&self) -> Residency {
        Residency { inner: Arc::clone(&self.inner) }
    }
}

// === impl Residency ===

impl fmt::Debug for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Residency").field(&self.counts()).finish()
    }
}

impl Residency {
    /// Nothing is in memory yet. `budget` is in bytes; `None` for no bound.
    pub fn new(budget: Option<u64>) -> Residency {
        let [bytes, evictions, reloads] = [const { AtomicU64::new(0) }; 3];
        let (residents, trimming) = (Mutex::default(), AtomicBool::new(false));
        Residency { inner: Arc::new(Inner { budget, bytes, evictions, reloads, residents, trimming }) }
    }

    /// Counts `bytes` that are about to be loaded, after room was made for them.
    pub fn hold(&self, bytes: u64) -> Held {
        self.inner.bytes.fetch_add(bytes, Relaxed);
        let held = Held { inner: Arc::clone(&self.inner), bytes };
        self.trim();
        held
    }

    /// Lets somebody who is in memory now leave it when room is needed.
    pub fn enter(&self, resident: Weak<dyn Evict>) {
        let mut residents = self.residents();
        residents.retain(|resident| resident.strong_count() > 0);
        residents.push(resident);
    }

    /// Counts one that came back.
    pub fn reloaded(&self) {
        self.inner.reloads.fetch_add(1, Relaxed);
    }

    /// Whether more is in memory than may be.
    pub fn is_over(&self) -> bool {
        self.inner.budget.is_some_and(|budget| self.inner.bytes.load(Relaxed) > budget)
    }

    /// As [`Residency::is_over`], for one caller at a time, who then calls [`Residency::trim`].
    pub fn claims_trim(&self) -> bool {
        if !self.is_over() {
            return false;
        }
        // Either the end of the caller's use is seen by who trims, or the caller sees that it must: see `trim`.
        fence(SeqCst);
        !self.inner.trimming.swap(true, Relaxed)
    }

    /// Evicts until the budget is kept, or nobody is left who is not in use.
    pub fn trim(&self) {
        self.inner.trimming.store(false, Relaxed);
        fence(SeqCst);
        if !self.is_over() {
            return;
        }
        self.evict_while(|_, _| self.is_over());
    }

    /// Evicts the least recently used of those that have a process and are not in use. Whether there was one.
    pub fn evict_process(&self) -> bool {
        self.evict_while(|resident, evicted| evicted == 0 && resident.has_process()) > 0
    }

    /// Evicts those that are `wanted`, when so many have left, the least recently used first; says how many.
    fn evict_while(&self, wanted: impl Fn(&dyn Evict, u64) -> bool) -> u64 {
        let mut evicted = 0;
        let mut residents = self.residents();
        let mut alive: Vec<Arc<dyn Evict>> = residents.iter().filter_map(Weak::upgrade).collect();
        alive.sort_by_key(|resident| resident.last_use());
        let mut left: Vec<Weak<dyn Evict>> = Vec::with_capacity(alive.len());
        for resident in &alive {
            if wanted(&**resident, evicted) && resident.evict() {
                self.inner.evictions.fetch_add(1, Relaxed);
                evicted += 1;
            } else {
                left.push(Arc::downgrade(resident));
            }
        }
        *residents = left;
        drop(residents);
        // Whoever was deleted meanwhile ends here, outside the lock.
        drop(alive);
        evicted
    }

    /// What was counted.
    pub fn counts(&self) -> ResidencyCounts {
        let Inner { budget, bytes, evictions, reloads, .. } = &*self.inner;
        ResidencyCounts {
            bytes: bytes.load(Relaxed),
            budget: *budget,
            evictions: evictions.load(Relaxed),
            reloads: reloads.load(Relaxed),
        }
    }

    /// Nothing panics under it, so a poisoned one is as good.
    fn residents(&self) -> MutexGuard<'_, Vec<Weak<dyn Evict>>> {
        self.inner.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.inner.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

// === impl LastUse ===

impl LastUse {
    /// It is used now.
    pub fn touch(&self) {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        // 584 years fit.
        self.0.store(START.elapsed().as_nanos() as u64, Relaxed);
    }

    /// Nanoseconds since this process first asked.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    /// One that leaves when it is told to, unless it is in use.
    #[derive(Default)]
    struct Resident {
        used: AtomicU64,
        uses: AtomicUsize,
        process: AtomicBool,
        held: Mutex<Option<Held>>,
    }

    impl Resident {
        fn is_here(&self) -> bool {
            self.held.lock().unwrap().is_some()
        }
    }

    impl Evict for Resident {
        fn last_use(&self) -> u64 {
            self.used.load(Relaxed)
        }

        fn evict(&self) -> bool {
            self.uses.load(Relaxed) == 0 && self.held.lock().unwrap().take().is_some()
        }

        fn has_process(&self) -> bool {
            self.process.load(Relaxed)
        }
    }

    fn load(residency: &Residency, resident: &Arc<Resident>, bytes: u64) {
        let held = residency.hold(bytes);
        *resident.held.lock().unwrap() = Some(held);
        let weak: Weak<Resident> = Arc::downgrade(resident);
        residency.enter(weak);
    }

    #[test]
    fn without_a_budget_nobody_leaves() {
        let residency = Residency::new(None);
        let all: Vec<Arc<Resident>> = (0..100).map(|_| Arc::default()).collect();
        all.iter().for_each(|resident| load(&residency, resident, 1 << 40));
        assert!(all.iter().all(|resident| resident.is_here()) && !residency.is_over());
        assert_eq!(residency.counts(), ResidencyCounts { bytes: 100 << 40, ..ResidencyCounts::default() });
    }

    #[test]
    fn who_is_dropped_gives_its_bytes_back() {
        let residency = Residency::new(Some(10));
        let one = Arc::<Resident>::default();
        load(&residency, &one, 7);
        drop(one);
        assert_eq!(residency.counts().bytes, 0);
        let other = Arc::<Resident>::default();
        load(&residency, &other, 10);
        assert!(other.is_here());
        assert_eq!(residency.counts().evictions, 0);
    }

    #[test]
    fn one_process_ends_when_room_is_needed_for_another() {
        let residency = Residency::new(None);
        let all: Vec<Arc<Resident>> = (0..4).map(|_| Arc::default()).collect();
        for (at, resident) in all.iter().enumerate() {
            load(&residency, resident, 1);
            resident.used.store(at as u64, Relaxed);
            resident.process.store(at > 0, Relaxed);
        }
        all[1].uses.store(1, Relaxed);
        let here = || all.iter().map(|one| one.is_here()).collect::<Vec<_>>();
        assert!(residency.evict_process());
        assert_eq!(here(), [true, true, false, true], "the idle one that was used least recently");
        assert!(residency.evict_process() && !residency.evict_process());
        assert_eq!(here(), [true, true, false, false]);
        assert_eq!((residency.counts().evictions, residency.counts().bytes), (2, 2));
    }

    #[test]
    fn what_is_in_use_stays_beyond_the_budget_and_leaves_when_it_is_trimmed_later() {
        let residency = Residency::new(Some(10));
        let (one, two) = (Arc::<Resident>::default(), Arc::<Resident>::default());
        one.uses.store(1, Relaxed);
        load(&residency, &one, 7);
        load(&residency, &two, 7);
        assert!(one.is_here() && two.is_here() && residency.is_over());
        one.uses.store(0, Relaxed);
        assert!(residency.claims_trim() && !residency.claims_trim());
        residency.trim();
        assert!(!residency.is_over() && !residency.claims_trim());
        assert_eq!(residency.counts(), ResidencyCounts { bytes: 7, budget: Some(10), evictions: 1, reloads: 0 });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Use(usize),
        Begin(usize),
        End(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6usize).prop_map(Step::Use),
            1 => (0..6usize).prop_map(Step::Begin),
            1 => (0..6usize).prop_map(Step::End),
        ]
    }

    proptest! {
        /// Against a model: after each step, who is in memory is who was used last, as far as the budget goes.
        #[test]
        fn the_least_recently_used_leave_first_and_never_one_in_use(
            sizes in prop::collection::vec(1..8u64, 6), budget in 1..20u64, steps in prop::collection::vec(step(), 0..60)
        ) {
            let residency = Residency::new(Some(budget));
            let all: Vec<Arc<Resident>> = sizes.iter().map(|_| Arc::default()).collect();
            // Who is in memory, the least recently used first.
            let mut model: Vec<usize> = Vec::new();
            for (now, step) in steps.into_iter().enumerate() {
                let (at, change) = match step {
                    Step::Use(at) => (at, 0),
                    Step::Begin(at) => (at, 1),
                    Step::End(at) => (at, -1),
                };
                let resident = &all[at];
                let uses = resident.uses.load(Relaxed) as isize;
                if uses + change < 0 {
                    continue;
                }
                // As an owner does it: in use from before it is loaded until it is done.
                resident.used.store(now as u64 + 1, Relaxed);
                resident.uses.store(uses as usize + 1, Relaxed);
                model.retain(|one| *one != at);
                model.push(at);
                if !resident.is_here() {
                    load(&residency, resident, sizes[at]);
                }
                resident.uses.store((uses + change) as usize, Relaxed);
                residency.trim();
                let idle = |one: usize| all[one].uses.load(Relaxed) == 0;
                let bytes = |model: &[usize]| model.iter().map(|one| sizes[*one]).sum::<u64>();
                // While it was loaded, it could not leave itself.
                for but in [Some(at), None] {
                    while bytes(&model) > budget {
                        let victim = model.iter().position(|one| Some(*one) != but && idle(*one));
                        let Some(victim) = victim else { break };
                        model.remove(victim);
                    }
                }
                let here: Vec<bool> = all.iter().map(|one| one.is_here()).collect();
                let expected: Vec<bool> = (0..all.len()).map(|one| model.contains(&one)).collect();
                prop_assert_eq!(here, expected);
                prop_assert_eq!(residency.counts().bytes, bytes(&model));
            }
        }
    }

    #[test]
    fn a_use_is_later_than_those_before_it() {
        let (one, two) = (LastUse::default(), LastUse::default());
        one.touch();
        std::thread::sleep(std::time::Duration::from_millis(1));
        two.touch();
        assert!(LastUse::default().get() <= one.get() && one.get() < two.get());
    }
}
