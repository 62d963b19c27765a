//! Who may use the machine's cores: a run of an engine takes a permit for each of its threads.
//!
//! While cores are free a permit is one atomic operation. When they are not, runs start in the order of a virtual time
//! that advances for each graph with the engine time that it has used, divided by its weight (start-time fair queueing).
//! A run cannot be interrupted, so a graph that is behind its share does not wait for one to end: it starts at once, on
//! cores that others use. The system shares these for that while, and who is ahead waits the longer afterwards.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed};
use std::sync::atomic::{Ordering::Release, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// The cores of one machine.
#[derive(Debug)]
pub(crate) struct Turnstile {
    /// Permits that nobody has; below zero while graphs that were behind run beside others.
    free: AtomicI64,
    cores: i64,
    /// The virtual time at which the last run started, nanoseconds.
    now: AtomicU64,
    /// As many as [`Turnstile::waiting`] holds.
    waiters: AtomicUsize,
    /// Ordered by start; those that start at the same time in the order in which they came. At most one for each session.
    waiting: Mutex<VecDeque<Waiter>>,
}

/// A run that waits for its turn.
#[derive(Debug)]
struct Waiter {
    start: u64,
    cores: i64,
    told: Arc<AtomicBool>,
    thread: Thread,
}

/// One session's way through the turnstile.
#[derive(Debug)]
pub(crate) struct Gate {
    turnstile: Arc<Turnstile>,
    /// The virtual time up to which the graph has used its share, nanoseconds; one for all its sessions.
    used: Arc<AtomicU64>,
    /// Permits of one run.
    cores: i64,
    /// Whether it has them now.
    holds: bool,
}

impl Turnstile {
    pub fn new(cores: usize) -> Arc<Turnstile> {
        let cores = i64::try_from(cores.max(1)).unwrap_or(i64::MAX);
        Arc::new(Turnstile {
            free: AtomicI64::new(cores),
            cores,
            now: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            waiting: Mutex::default(),
        })
    }

    /// Takes permits if they are there; with `most` below zero, also some that are not.
    fn try_take(&self, cores: i64, most: i64) -> bool {
        let enough = |free: i64| (free - cores >= most).then_some(free - cores);
        self.free.fetch_update(SeqCst, SeqCst, enough).is_ok()
    }

    /// Gives permits to those who wait, as far as they go.
    fn hand_on(&self, waiting: &mut VecDeque<Waiter>) {
        while let Some(first) = waiting.front() {
            if !self.try_take(first.cores, 0) {
                return;
            }
            if let Some(Waiter { start, told, thread, .. }) = waiting.pop_front() {
                self.waiters.fetch_sub(1, SeqCst);
                self.now.fetch_max(start, Relaxed);
                told.store(true, Release);
                thread.unpark();
            }
        }
    }
}

impl Gate {
    /// A way for one session of a graph whose sessions share `used`.
    pub fn new(turnstile: &Arc<Turnstile>, used: &Arc<AtomicU64>, threads: usize) -> Gate {
        let cores = i64::try_from(threads.max(1)).unwrap_or(i64::MAX).min(turnstile.cores);
        Gate { turnstile: turnstile.clone(), used: used.clone(), cores, holds: false }
    }

    /// Takes the permits if that needs no waiting and passes nobody who waits.
    pub fn try_pass(&mut self) -> bool {
        self.holds = self.holds || (self.turnstile.waiters.load(SeqCst) == 0 && self.turnstile.try_take(self.cores, 0));
        self.holds
    }

    /// Takes the permits when it is this graph's turn.
    pub fn pass(&mut self) {
        if self.try_pass() {
            return;
        }
        let turnstile = &*self.turnstile;
        let told = Arc::new(AtomicBool::new(false));
        {
            let mut waiting = turnstile.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let (used, now) = (self.used.load(Relaxed), turnstile.now.load(Relaxed));
            if used < now && turnstile.try_take(self.cores, -turnstile.cores) {
                self.holds = true;
                return;
            }
            let start = used.max(now);
            let (cores, thread) = (self.cores, thread::current());
            let at = waiting.partition_point(|other| other.start <= start);
            waiting.insert(at, Waiter { start, cores, told: told.clone(), thread });
            turnstile.waiters.fetch_add(1, SeqCst);
            // Permits may have come back before this was counted.
            turnstile.hand_on(&mut waiting);
        }
        while !told.load(Acquire) {
            thread::park();
        }
        self.holds = true;
    }

    /// Gives the permits back after a run that took `time`, or after none, and charges it to the graph.
    pub fn leave(&mut self, time: Duration, weight: u32) {
        if !std::mem::take(&mut self.holds) {
            return;
        }
        let turnstile = &*self.turnstile;
        if !time.is_zero() {
            let cost = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(self.cores as u64);
            let (used, now) = (self.used.load(Relaxed), turnstile.now.load(Relaxed));
            let start = used.max(now);
            // Sessions of one graph may overwrite each other here: what is lost is a run of many.
            self.used.store(start.saturating_add(cost / u64::from(weight.max(1))), Relaxed);
            if start > now {
                turnstile.now.fetch_max(start, Relaxed);
            }
        }
        turnstile.free.fetch_add(self.cores, SeqCst);
        if turnstile.waiters.load(SeqCst) > 0 {
            let mut waiting = turnstile.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            turnstile.hand_on(&mut waiting);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.leave(Duration::ZERO, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn account() -> Arc<AtomicU64> {
        Arc::default()
    }

    /// A thread that passes and says its name, as often as it is asked to leave again.
    fn runner(mut gate: Gate, name: &'static str, passed: Sender<&'static str>, runs: usize) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            for _ in 0..runs {
                gate.pass();
                let _ = passed.send(name);
                gate.leave(MS, 1);
            }
        })
    }

    fn waiters(turnstile: &Turnstile, wanted: usize) {
        while turnstile.waiters.load(SeqCst) != wanted {
            thread::yield_now();
        }
    }

    #[test]
    fn as_many_runs_as_cores() {
        let turnstile = Turnstile::new(2);
        let used = account();
        let mut gates: Vec<Gate> = (0..3).map(|_| Gate::new(&turnstile, &used, 1)).collect();
        assert!(gates[0].try_pass() && gates[1].try_pass() && !gates[2].try_pass());
        gates[0].leave(MS, 1);
        assert!(gates[2].try_pass());
        drop(gates);
        assert_eq!(turnstile.free.load(SeqCst), 2);
    }

    #[test]
    fn who_has_used_the_least_for_its_weight_goes_first() {
        let turnstile = Turnstile::new(1);
        let (holding, heavy, light) = (account(), account(), account());
        let mut first = Gate::new(&turnstile, &holding, 1);
        for (used, weight) in [(&heavy, 4), (&light, 1)] {
            let mut gate = Gate::new(&turnstile, used, 1);
            gate.pass();
            gate.leave(8 * MS, weight);
        }
        assert_eq!([&heavy, &light].map(|used| used.load(Relaxed)), [2_000_000, 8_000_000]);
        first.pass();
        let (passed, order) = channel();
        let late = runner(Gate::new(&turnstile, &light, 1), "light", passed.clone(), 1);
        waiters(&turnstile, 1);
        let early = runner(Gate::new(&turnstile, &heavy, 1), "heavy", passed, 1);
        waiters(&turnstile, 2);
        first.leave(Duration::ZERO, 1);
        let order: Vec<&str> = order.iter().collect();
        assert_eq!(order, ["heavy", "light"]);
        late.join().and(early.join()).expect("both");
    }

    #[test]
    fn who_is_behind_does_not_wait_for_a_run_to_end() {
        let turnstile = Turnstile::new(1);
        let (flood, calm) = (account(), account());
        let mut flooding = Gate::new(&turnstile, &flood, 1);
        for _ in 0..10 {
            flooding.pass();
            flooding.leave(MS, 1);
        }
        flooding.pass();
        let mut gate = Gate::new(&turnstile, &calm, 1);
        gate.pass();
        assert_eq!(turnstile.free.load(SeqCst), -1, "beside the other");
        let mut further = Gate::new(&turnstile, &account(), 1);
        let (passed, order): (_, Receiver<&str>) = channel();
        let waits = thread::spawn(move || {
            further.pass();
            let _ = passed.send("no more than twice the cores");
        });
        waiters(&turnstile, 1);
        assert!(order.try_recv().is_err());
        flooding.leave(MS, 1);
        gate.leave(MS, 1);
        waits.join().expect("it had its turn");
        assert_eq!((order.iter().count(), turnstile.free.load(SeqCst)), (1, 1));
    }

    #[test]
    fn no_permit_is_lost_and_nobody_is_forgotten() {
        let turnstile = Turnstile::new(2);
        let (passed, order) = channel();
        let accounts = [account(), account(), account()];
        let threads: Vec<_> = (0..8)
            .map(|at| {
                let gate = Gate::new(&turnstile, &accounts[at % 3], 1 + at % 3);
                runner(gate, "passed", passed.clone(), 2_000)
            })
            .collect();
        drop(passed);
        assert_eq!(order.iter().count(), 16_000);
        threads.into_iter().for_each(|thread| thread.join().expect("a runner"));
        assert_eq!((turnstile.free.load(SeqCst), turnstile.waiters.load(SeqCst)), (2, 0));
    }
}
