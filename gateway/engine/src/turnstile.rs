//! Who may use the machine's cores: a run of an engine takes a permit for each of its threads.
//!
//! While cores are free a permit is one atomic operation. When they are not, runs start in the order of a virtual time
//! that advances for each caller, a tenant in the name of one model, with the engine time that it has used, divided by its
//! weight (start-time fair queueing). A caller that was idle starts at the present, and saves nothing up.
//!
//! A run cannot be interrupted, so a caller that was idle and is within its share does not wait for one to end: it starts
//! at once, on cores that others use. The system shares these for that while, and who is ahead waits the longer afterwards.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed};
use std::sync::atomic::{Ordering::Release, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

/// The cores of one machine.
#[derive(Debug)]
pub(crate) struct Turnstile {
    /// Permits that nobody has; below zero while callers that were behind run beside others.
    free: AtomicI64,
    cores: i64,
    /// The virtual time at which the last run started, nanoseconds.
    now: AtomicU64,
    /// As many as [`Turnstile::waiting`] holds.
    waiters: AtomicUsize,
    /// Ordered by start; those that start at the same time in the order in which they came. At most one for each session.
    waiting: Mutex<VecDeque<Waiter>>,
    accounts: Mutex<Accounts>,
}

#[derive(Debug)]
struct Accounts {
    of: HashMap<Caller, Weak<Account>>,
    /// How many there may be before those of callers that are gone are looked for.
    most: usize,
}

/// A tenant, and the model in whose name it calls.
type Caller = (Arc<str>, Arc<str>);

/// What one caller has used of the cores, on whatever graph.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// The virtual time up to which it has used its share, nanoseconds.
    used: AtomicU64,
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
    /// Permits of one run.
    cores: i64,
    /// Whether it has them now.
    holds: bool,
    /// Whether it had a run with them. They are kept until it is known what the session does next: were they given away
    /// before, then a caller with a session for each core would never be among those who wait when a core is free.
    ran: bool,
}

/// Accounts that are kept without a look at whether their callers are still there.
const ACCOUNTS: usize = 64;

impl Turnstile {
    pub fn new(cores: usize) -> Arc<Turnstile> {
        let cores = i64::try_from(cores.max(1)).unwrap_or(i64::MAX);
        Arc::new(Turnstile {
            free: AtomicI64::new(cores),
            cores,
            now: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            waiting: Mutex::default(),
            accounts: Mutex::new(Accounts { of: HashMap::new(), most: ACCOUNTS }),
        })
    }

    /// The account of a caller: the same wherever it calls.
    pub fn account(&self, tenant: &Arc<str>, name: &Arc<str>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = (Arc::clone(tenant), Arc::clone(name));
        if let Some(account) = accounts.of.get(&caller).and_then(Weak::upgrade) {
            return account;
        }
        if accounts.of.len() >= accounts.most {
            accounts.of.retain(|_, account| account.strong_count() > 0);
            accounts.most = ACCOUNTS.max(2 * accounts.of.len());
        }
        let account = Arc::default();
        accounts.of.insert(caller, Arc::downgrade(&account));
        account
    }

    /// A caller that was idle has something to run. True when it is within its share.
    pub fn returns(&self, account: &Account) -> bool {
        let now = self.now.load(Relaxed);
        account.used.fetch_max(now, Relaxed) <= now
    }

    /// Whether a caller is within its share still.
    pub fn is_behind(&self, account: &Account) -> bool {
        account.used.load(Relaxed) <= self.now.load(Relaxed)
    }

    /// Whether anybody has a core: a run that comes now may have to wait for one, or to share it.
    pub fn is_used(&self) -> bool {
        self.free.load(Relaxed) < self.cores
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

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// A way for one session with so many threads.
    pub fn new(turnstile: &Arc<Turnstile>, threads: usize) -> Gate {
        let cores = i64::try_from(threads.max(1)).unwrap_or(i64::MAX).min(turnstile.cores);
        Gate { turnstile: turnstile.clone(), cores, holds: false, ran: false }
    }

    /// Takes the permits, or keeps those of the run before, if that needs no waiting and passes nobody who waits.
    pub fn try_pass(&mut self) -> bool {
        let turnstile = &*self.turnstile;
        if self.holds && !self.ran {
            return true;
        }
        if turnstile.waiters.load(SeqCst) > 0 || !(self.holds || turnstile.try_take(self.cores, 0)) {
            return false;
        }
        (self.holds, self.ran) = (true, false);
        true
    }

    /// Takes the permits when it is the caller's turn; at once where it may run `beside` others, as long as no more than
    /// twice the cores are taken.
    pub fn pass(&mut self, account: &Account, beside: bool) {
        if self.try_pass() {
            return;
        }
        let turnstile = &*self.turnstile;
        if beside && (self.holds || turnstile.try_take(self.cores, -turnstile.cores)) {
            (self.holds, self.ran) = (true, false);
            return;
        }
        let told = Arc::new(AtomicBool::new(false));
        {
            let mut waiting = turnstile.waiting();
            let (start, cores, thread) = (account.used.load(Relaxed), self.cores, thread::current());
            if self.holds && waiting.front().is_none_or(|first| first.start >= start) {
                self.ran = false;
                return;
            }
            let at = waiting.partition_point(|other| other.start <= start);
            waiting.insert(at, Waiter { start, cores, told: told.clone(), thread });
            turnstile.waiters.fetch_add(1, SeqCst);
            if std::mem::take(&mut self.holds) {
                turnstile.free.fetch_add(self.cores, SeqCst);
            }
            // Permits may have come back before this was counted, too.
            turnstile.hand_on(&mut waiting);
        }
        while !told.load(Acquire) {
            thread::park();
        }
        (self.holds, self.ran) = (true, false);
    }

    /// After a run, charges a caller for its part of it: its own rows of all of them, and the time that the whole run took.
    /// The permits are to be given back, or taken anew.
    pub fn charge(&mut self, account: &Account, time: Duration, part: (usize, usize), weight: u32) {
        let cost = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(self.cores as u64);
        let (own, all) = (part.0 as u128, part.1.max(1) as u128);
        let cost = u64::try_from(u128::from(cost) * own / all / u128::from(weight.max(1))).unwrap_or(u64::MAX);
        let start = account.used.fetch_add(cost, Relaxed);
        self.turnstile.now.fetch_max(start, Relaxed);
        self.ran = true;
    }

    /// Gives the permits back.
    pub fn leave(&mut self) {
        self.ran = false;
        if !std::mem::take(&mut self.holds) {
            return;
        }
        let turnstile = &*self.turnstile;
        turnstile.free.fetch_add(self.cores, SeqCst);
        if turnstile.waiters.load(SeqCst) > 0 {
            turnstile.hand_on(&mut turnstile.waiting());
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn account(turnstile: &Turnstile, name: &str) -> Arc<Account> {
        turnstile.account(&"tenant".into(), &name.into())
    }

    impl Gate {
        /// Ends a run of one row.
        fn ran(&mut self, account: &Account, time: Duration, weight: u32) {
            self.charge(account, time, (1, 1), weight);
            self.leave();
        }
    }

    /// A thread that passes and says its name, as often as it is asked to leave again.
    fn runner(
        mut gate: Gate,
        account: Arc<Account>,
        name: &'static str,
        passed: Sender<&'static str>,
        runs: usize,
    ) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            for _ in 0..runs {
                gate.pass(&account, false);
                let _ = passed.send(name);
                gate.charge(&account, MS, (1, 1), 1);
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
        let mut gates: Vec<Gate> = (0..3).map(|_| Gate::new(&turnstile, 1)).collect();
        assert!(gates[0].try_pass() && gates[1].try_pass() && !gates[2].try_pass());
        assert!(turnstile.is_used());
        gates[0].leave();
        assert!(turnstile.is_used() && gates[2].try_pass());
        drop(gates);
        assert!(!turnstile.is_used());
        assert_eq!(turnstile.free.load(SeqCst), 2);
    }

    #[test]
    fn a_caller_has_one_account_as_long_as_anybody_holds_it() {
        let turnstile = Turnstile::new(1);
        let first = account(&turnstile, "a");
        assert!(Arc::ptr_eq(&first, &account(&turnstile, "a")) && !Arc::ptr_eq(&first, &account(&turnstile, "b")));
        for at in 0..10_000 {
            account(&turnstile, &at.to_string());
        }
        assert!(turnstile.accounts.lock().unwrap().of.len() <= ACCOUNTS, "those of who is gone go");
        assert!(Arc::ptr_eq(&first, &account(&turnstile, "a")));
    }

    #[test]
    fn who_has_used_the_least_for_its_weight_goes_first() {
        let turnstile = Turnstile::new(1);
        let [holding, heavy, light] = ["holding", "heavy", "light"].map(|name| account(&turnstile, name));
        let mut first = Gate::new(&turnstile, 1);
        for (account, weight) in [(&heavy, 4), (&light, 1)] {
            let mut gate = Gate::new(&turnstile, 1);
            gate.pass(account, false);
            gate.ran(account, 8 * MS, weight);
        }
        assert_eq!([&heavy, &light].map(|account| account.used.load(Relaxed)), [2_000_000, 8_000_000]);
        first.pass(&holding, false);
        let (passed, order) = channel();
        let late = runner(Gate::new(&turnstile, 1), light, "light", passed.clone(), 1);
        waiters(&turnstile, 1);
        let early = runner(Gate::new(&turnstile, 1), heavy, "heavy", passed, 1);
        waiters(&turnstile, 2);
        first.leave();
        let order: Vec<&str> = order.iter().collect();
        assert_eq!(order, ["heavy", "light"]);
        late.join().and(early.join()).expect("both");
    }

    /// Two who always have something to run, each with a session for every core.
    #[test]
    fn shares_are_as_the_weights() {
        let turnstile = Turnstile::new(2);
        let callers = [("heavy", 3, 4), ("light", 1, 4), ("slow", 1, 16)];
        let (begun, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let sessions = callers.iter().flat_map(|caller| [*caller; 2]).map(|(name, weight, quarters)| {
            let (turnstile, begun, runs) = (turnstile.clone(), begun.clone(), runs.clone());
            let account = account(&turnstile, name);
            thread::spawn(move || {
                let (mut gate, mut used) = (Gate::new(&turnstile, 1), 0);
                begun.fetch_add(1, SeqCst);
                while begun.load(SeqCst) < 6 {
                    thread::yield_now();
                }
                while runs.fetch_add(1, SeqCst) < 2_000 {
                    gate.pass(&account, false);
                    // The others come to wait meanwhile.
                    thread::sleep(Duration::from_micros(100));
                    gate.charge(&account, MS * quarters / 4, (1, 1), weight);
                    used += quarters;
                }
                (name, used)
            })
        });
        let mut total = HashMap::new();
        for thread in sessions.collect::<Vec<_>>() {
            let (name, used) = thread.join().expect("a session");
            *total.entry(name).or_insert(0.0) += f64::from(used);
        }
        assert!((2.7..3.3).contains(&(total["heavy"] / total["light"])), "{total:?}");
        assert!((0.9..1.1).contains(&(total["slow"] / total["light"])), "{total:?}");
    }

    #[test]
    fn who_was_idle_does_not_wait_for_a_run_to_end() {
        let turnstile = Turnstile::new(1);
        let [flood, calm, third] = ["flood", "calm", "third"].map(|name| account(&turnstile, name));
        let mut flooding = Gate::new(&turnstile, 1);
        assert!(turnstile.returns(&flood));
        for _ in 0..10 {
            flooding.pass(&flood, false);
            flooding.ran(&flood, MS, 1);
        }
        flooding.pass(&flood, false);
        assert!(!turnstile.is_behind(&flood) && turnstile.returns(&calm) && turnstile.is_behind(&calm));
        let mut gate = Gate::new(&turnstile, 1);
        gate.pass(&calm, true);
        assert_eq!(turnstile.free.load(SeqCst), -1, "beside the other");
        let (passed, order): (_, Receiver<&str>) = channel();
        let waits = thread::spawn({
            let mut further = Gate::new(&turnstile, 1);
            move || {
                further.pass(&third, true);
                let _ = passed.send("no more than twice the cores");
            }
        });
        waiters(&turnstile, 1);
        assert!(order.try_recv().is_err());
        flooding.ran(&flood, MS, 1);
        gate.ran(&calm, 2 * MS, 1);
        assert!(!turnstile.is_behind(&calm), "it has had its turn");
        waits.join().expect("it had its turn");
        assert_eq!((order.iter().count(), turnstile.free.load(SeqCst)), (1, 1));
    }

    #[test]
    fn no_permit_is_lost_and_nobody_is_forgotten() {
        let turnstile = Turnstile::new(2);
        let (passed, order) = channel();
        let accounts = ["a", "b", "c"].map(|name| account(&turnstile, name));
        let threads: Vec<_> = (0..8)
            .map(|at| {
                let gate = Gate::new(&turnstile, 1 + at % 3);
                runner(gate, accounts[at % 3].clone(), "passed", passed.clone(), 2_000)
            })
            .collect();
        drop(passed);
        assert_eq!(order.iter().count(), 16_000);
        threads.into_iter().for_each(|thread| thread.join().expect("a runner"));
        assert_eq!((turnstile.free.load(SeqCst), turnstile.waiters.load(SeqCst)), (2, 0));
    }
}
