//! Who may use the machine's cores: a run of an engine takes a permit for each of its threads.
//!
//! While cores are free a permit is one atomic operation. When they are not, runs start in the order of a virtual time
//! that advances for each tenant with the engine time that it has used, and within a tenant for each model in whose name it
//! calls, divided by the model's weight (hierarchical start-time fair queueing): a tenant that calls ten models has one
//! share. Who comes for the first time in a while starts at the present; who asks now and then has saved up what it could have
//! had in a tenth of a second, and no more.
//!
//! A run cannot be interrupted, so a caller that was idle and is within its share does not wait for one to end: it starts
//! at once, on cores that others use. The system shares these for that while, and who is ahead waits the longer afterwards.
//! Nobody is charged for the time in which others had its core.

mod accounts;
mod beside;
mod caller;
mod lender;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed};
use std::sync::atomic::{Ordering::Release, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

pub(crate) use self::accounts::Account;
use self::accounts::{Accounts, Contest};
use self::beside::{Beside, Place};
pub use self::caller::{Caller, Core, Waits};
use self::lender::Lender;

/// The cores of one machine.
#[derive(Debug)]
pub(crate) struct Turnstile {
    /// Permits that nobody has; below zero while callers that were behind run beside others.
    free: AtomicI64,
    cores: i64,
    /// The virtual time of tenants at which the last run started, nanoseconds.
    now: AtomicU64,
    /// As many as [`Turnstile::waiting`] holds.
    waiters: AtomicUsize,
    /// In the order in which they came. At most one for each session.
    waiting: Mutex<VecDeque<Waiter>>,
    accounts: Mutex<Accounts>,
    contest: Contest,
    beside: Beside,
}

/// A run that waits for its turn.
#[derive(Debug)]
struct Waiter {
    account: Arc<Account>,
    cores: i64,
    who: Who,
}

/// How a run is told that it is its turn.
#[derive(Debug)]
enum Who {
    Thread(Arc<AtomicBool>, Thread),
    Guest(Arc<dyn Waits>),
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
    /// Where it took them beside others, who have them as well.
    beside: Option<Place>,
    /// What runs had lost to others beside them when this one began.
    lost: Duration,
}

/// What a caller that asks now and then may have saved up, nanoseconds of a core for its weight. What a run takes is known when
/// it ends, and until then the present stands still: such a one would be ahead of it after each of its runs, for as long as
/// those of a flood last. Who comes anew has saved nothing: a flood that begins would be before everybody else.
const SAVED: u64 = 100_000_000;
/// How far a tenant may be ahead of the others for the sake of a model that is behind, nanoseconds.
const AHEAD: u64 = 20_000_000;

impl Turnstile {
    pub fn new(cores: usize) -> Arc<Turnstile> {
        let cores = i64::try_from(cores.max(1)).unwrap_or(i64::MAX);
        Arc::new(Turnstile {
            free: AtomicI64::new(cores),
            cores,
            now: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            waiting: Mutex::default(),
            accounts: Mutex::new(Accounts::new()),
            contest: Contest::default(),
            beside: Beside::default(),
        })
    }

    /// The account of a caller: the same wherever it calls.
    pub fn account(&self, tenant: &Arc<str>, name: &Arc<str>) -> Arc<Account> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).account(tenant, name)
    }

    /// A caller that was idle has something to run. True when it is within its share, and its tenant within its own.
    pub fn returns(&self, account: &Account) -> bool {
        let tenant = &account.tenant;
        let least = |now: &AtomicU64, of_late: bool| now.load(Relaxed).saturating_sub(if of_late { SAVED } else { 0 });
        tenant.used.fetch_max(least(&self.now, tenant.seen.again(&self.contest)), Relaxed);
        account.used.fetch_max(least(&tenant.now, account.seen.again(&self.contest)), Relaxed);
        self.is_behind(account)
    }

    /// Whether a caller is within its share still, and its tenant within its own. Who has all alone is not.
    pub fn is_behind(&self, account: &Account) -> bool {
        let tenant = &account.tenant;
        let behind = account.used.load(Relaxed) <= tenant.now.load(Relaxed);
        if !self.contest.is_on() {
            return behind;
        }
        let ahead = tenant.used.load(Relaxed).saturating_sub(self.now.load(Relaxed));
        if behind { ahead <= AHEAD } else { ahead == 0 && !tenant.contest.is_on() }
    }

    /// Whether anybody has a core: a run that comes now may have to wait for one, or to share it.
    pub fn is_used(&self) -> bool {
        self.free.load(Relaxed) < self.cores
    }

    /// Whether a run that comes now has to wait for a core, or to share it.
    pub fn is_full(&self) -> bool {
        self.free.load(Relaxed) <= 0
    }

    /// Takes permits if they are there; with `most` below zero, also some that are not.
    fn try_take(&self, cores: i64, most: i64) -> bool {
        let enough = |free: i64| (free - cores >= most).then_some(free - cores);
        self.free.fetch_update(SeqCst, SeqCst, enough).is_ok()
    }

    /// Gives permits to those who wait, as far as they go. Returns whom to call once nothing is locked.
    fn hand_on(&self, waiting: &mut VecDeque<Waiter>) -> Vec<Arc<dyn Waits>> {
        let mut called = Vec::new();
        // Who comes first of those that have used the same is found first.
        while let Some((at, first)) = waiting.iter().enumerate().min_by_key(|(_, waiter)| waiter.account.turn()) {
            if !self.try_take(first.cores, 0) {
                break;
            }
            let Some(Waiter { account, who, .. }) = waiting.remove(at) else { break };
            self.waiters.fetch_sub(1, SeqCst);
            self.starts(&account, account.turn());
            match who {
                Who::Thread(told, thread) => {
                    told.store(true, Release);
                    thread.unpark();
                }
                Who::Guest(guest) => called.push(guest),
            }
        }
        called
    }

    /// Calls those that a core was given to. What one does not want any more goes on.
    fn call(&self, mut called: Vec<Arc<dyn Waits>>) {
        while let Some(guest) = called.pop() {
            if !guest.called() {
                self.free.fetch_add(1, SeqCst);
                called.extend(self.hand_on(&mut self.waiting()));
            }
        }
    }

    /// Permits were given back.
    fn came_back(&self) {
        if self.waiters.load(SeqCst) > 0 {
            let called = self.hand_on(&mut self.waiting());
            self.call(called);
        }
    }

    /// A caller has used so many nanoseconds of a core.
    fn spend(&self, account: &Account, cost: u64, weight: u32) {
        account.seen.now(&self.contest);
        account.tenant.seen.now(&self.contest);
        let of_tenant = account.tenant.used.fetch_add(cost, Relaxed);
        let of_model = account.used.fetch_add(cost / u64::from(weight.max(1)), Relaxed);
        self.starts(account, (of_tenant, of_model));
        self.contest.ran(account.tenant.number);
        account.tenant.contest.ran(account.number);
    }

    /// The present is when a run starts.
    fn starts(&self, account: &Account, (of_tenant, of_model): (u64, u64)) {
        self.now.fetch_max(of_tenant, Relaxed);
        account.tenant.now.fetch_max(of_model, Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// A way for one session with so many threads.
    pub fn new(turnstile: &Arc<Turnstile>, threads: usize) -> Gate {
        let cores = i64::try_from(threads.max(1)).unwrap_or(i64::MAX).min(turnstile.cores);
        Gate { turnstile: turnstile.clone(), cores, holds: false, ran: false, beside: None, lost: Duration::ZERO }
    }

    /// What lends its permits during a run.
    pub fn lender(&self) -> Lender {
        Lender::new(&self.turnstile, self.cores)
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
        self.begins();
        true
    }

    /// Has its permits, for a run from now on.
    fn begins(&mut self) {
        (self.holds, self.ran) = (true, false);
        self.lost = self.turnstile.beside.lost();
    }

    /// Takes the permits when it is the caller's turn; at once where it may run `beside` others, as long as no more than
    /// twice the cores are taken.
    pub fn pass(&mut self, account: &Arc<Account>, beside: bool) {
        if self.try_pass() {
            return;
        }
        let turnstile = self.turnstile.clone();
        if beside && self.holds {
            self.begins();
            return;
        }
        if beside && turnstile.try_take(self.cores, -turnstile.cores) {
            self.beside = Some(turnstile.beside.begins(self.cores, turnstile.cores));
            self.begins();
            return;
        }
        let told = Arc::new(AtomicBool::new(false));
        let called = {
            let mut waiting = turnstile.waiting();
            let turn = account.turn();
            // Of those that have used the same a guest goes before what is in the queues, which its call may be about.
            let later = |other: &Waiter| match other.who {
                Who::Thread(..) => other.account.turn() >= turn,
                Who::Guest(_) => other.account.turn() > turn,
            };
            if self.holds && waiting.iter().all(later) {
                self.begins();
                return;
            }
            let who = Who::Thread(told.clone(), thread::current());
            waiting.push_back(Waiter { account: account.clone(), cores: self.cores, who });
            turnstile.waiters.fetch_add(1, SeqCst);
            self.gives_back();
            // Permits may have come back before this was counted, too.
            turnstile.hand_on(&mut waiting)
        };
        turnstile.call(called);
        while !told.load(Acquire) {
            thread::park();
        }
        self.begins();
    }

    /// Of the time that a run has taken, that in which it had its cores.
    pub fn used(&self, time: Duration) -> Duration {
        // Those beside have the better priority.
        if self.beside.is_some() {
            time
        } else {
            time.saturating_sub(self.turnstile.beside.lost().saturating_sub(self.lost))
        }
    }

    /// After a run, charges a caller for its part of it: its own rows of all of them, and the time that the whole run has used.
    /// The permits are to be given back, or taken anew.
    pub fn charge(&mut self, account: &Account, time: Duration, part: (usize, usize), weight: u32) {
        let cost = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(self.cores as u64);
        let (own, all) = (part.0 as u128, part.1.max(1) as u128);
        let cost = u64::try_from(u128::from(cost) * own / all).unwrap_or(u64::MAX);
        self.turnstile.spend(account, cost, weight);
        self.ran = true;
    }

    /// Whether there were permits to give back.
    fn gives_back(&mut self) -> bool {
        let turnstile = &*self.turnstile;
        if let Some(place) = self.beside.take() {
            turnstile.beside.ends(place, self.cores, turnstile.cores);
        }
        let held = std::mem::take(&mut self.holds);
        if held {
            turnstile.free.fetch_add(self.cores, SeqCst);
        }
        held
    }

    /// Gives the permits back.
    pub fn leave(&mut self) {
        self.ran = false;
        if !self.gives_back() {
            return;
        }
        self.turnstile.came_back();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

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
        assert!(turnstile.accounts.lock().unwrap().len() <= accounts::KEPT, "those of who is gone go");
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

    /// Callers that always have something to run, each with a session for every core: tenant, model, weight and quarters of
    /// a millisecond that a run takes. Returns what each has used, by tenant and model.
    fn flooded(callers: &[(&'static str, &'static str, u32, u32)]) -> HashMap<(&'static str, &'static str), f64> {
        let turnstile = Turnstile::new(2);
        let all = 2 * callers.len();
        let (begun, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let sessions = callers.iter().flat_map(|caller| [*caller; 2]).map(|(tenant, name, weight, quarters)| {
            let (turnstile, begun, runs) = (turnstile.clone(), begun.clone(), runs.clone());
            let account = turnstile.account(&tenant.into(), &name.into());
            thread::spawn(move || {
                let (mut gate, mut used) = (Gate::new(&turnstile, 1), 0);
                begun.fetch_add(1, SeqCst);
                while begun.load(SeqCst) < all {
                    thread::yield_now();
                }
                while runs.fetch_add(1, SeqCst) < 2_000 {
                    gate.pass(&account, false);
                    // The others come to wait meanwhile.
                    thread::sleep(Duration::from_micros(100));
                    gate.charge(&account, MS * quarters / 4, (1, 1), weight);
                    used += quarters;
                }
                ((tenant, name), used)
            })
        });
        let mut total = HashMap::new();
        for thread in sessions.collect::<Vec<_>>() {
            let (caller, used) = thread.join().expect("a session");
            *total.entry(caller).or_insert(0.0) += f64::from(used);
        }
        total
    }

    #[test]
    fn shares_are_as_the_weights() {
        let used = flooded(&[("t", "heavy", 3, 4), ("t", "light", 1, 4), ("t", "slow", 1, 16)]);
        assert!((2.7..3.3).contains(&(used[&("t", "heavy")] / used[&("t", "light")])), "{used:?}");
        assert!((0.9..1.1).contains(&(used[&("t", "slow")] / used[&("t", "light")])), "{used:?}");
    }

    #[test]
    fn a_tenant_of_many_models_has_one_share() {
        let used = flooded(&[("many", "a", 2, 4), ("many", "b", 1, 8), ("many", "c", 1, 2), ("one", "a", 1, 4)]);
        let many: f64 = ["a", "b", "c"].iter().map(|name| used[&("many", *name)]).sum();
        assert!((0.9..1.1).contains(&(many / used[&("one", "a")])), "{used:?}");
        assert!((1.7..2.3).contains(&(used[&("many", "a")] / used[&("many", "b")])), "{used:?}");
    }

    #[test]
    fn a_tenants_idle_model_is_ahead_with_its_tenant_while_others_want_the_cores() {
        let turnstile = Turnstile::new(1);
        let [loud, calm, other] = [("many", "loud"), ("many", "calm"), ("other", "loud")]
            .map(|(tenant, name)| turnstile.account(&tenant.into(), &name.into()));
        let mut gate = Gate::new(&turnstile, 1);
        let mut run = |account: &Arc<Account>, times: u32| {
            gate.pass(account, false);
            gate.ran(account, times * MS, 1);
        };
        run(&loud, 90);
        assert!(turnstile.returns(&calm), "its tenant has the cores alone");
        run(&other, 1);
        assert!(!turnstile.is_behind(&calm) && turnstile.contest.is_on());
        run(&other, 200);
        run(&other, 1);
        assert!(turnstile.is_behind(&calm), "the other has had more");
        run(&loud, 200);
        assert!(!turnstile.is_behind(&calm));
        while turnstile.contest.is_on() {
            thread::sleep(MS);
        }
        assert!(turnstile.is_behind(&calm), "nobody else has wanted any of late");
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
        assert!(turnstile.is_full());
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
        gate.ran(&calm, 12 * MS, 1);
        assert!(!turnstile.is_behind(&calm), "it has had its turn");
        waits.join().expect("it had its turn");
        assert_eq!((order.iter().count(), turnstile.free.load(SeqCst)), (1, 1));
    }

    #[test]
    fn who_asks_now_and_then_is_within_its_share_between_two_long_runs_of_others() {
        let turnstile = Turnstile::new(2);
        let [flood, calm] = ["flood", "calm"].map(|name| account(&turnstile, name));
        let mut gates = [(); 2].map(|()| Gate::new(&turnstile, 1));
        let mut run = |at: usize, account: &Arc<Account>, time: Duration| {
            gates[at].pass(account, false);
            gates[at].ran(account, time, 1);
        };
        (0..10).for_each(|at| run(at % 2, &flood, 40 * MS));
        // A fifth of the machine: 8 ms of each 20, in which each core does half of a run of the flood.
        for turn in 0..50 {
            // Who comes anew has not had less than others yet.
            assert!(turnstile.returns(&calm) || turn < 4, "turn {turn}");
            run(0, &calm, 8 * MS);
            if turn % 2 == 1 {
                run(1, &flood, 32 * MS);
                run(0, &flood, 32 * MS);
            }
            assert!(!turnstile.is_behind(&flood));
        }
        // And no longer when it wants more than that.
        let within = (0..50)
            .take_while(|_| {
                turnstile.returns(&calm) && {
                    run(0, &calm, 8 * MS);
                    true
                }
            })
            .count();
        assert!((5..20).contains(&within), "{within}");
    }

    #[test]
    fn nobody_is_charged_for_the_time_that_others_had_its_core() {
        let turnstile = Turnstile::new(1);
        let [flood, calm] = ["flood", "calm"].map(|name| account(&turnstile, name));
        let [mut flooding, mut gate] = [(); 2].map(|()| Gate::new(&turnstile, 1));
        flooding.pass(&flood, false);
        gate.pass(&calm, true);
        let begin = Instant::now();
        while begin.elapsed() < 20 * MS {
            thread::yield_now();
        }
        let time = begin.elapsed();
        assert_eq!(gate.used(time), time);
        let used = flooding.used(time);
        assert!(used < time.mul_f64(0.2), "{used:?} of {time:?}");
        gate.leave();
        flooding.leave();
        flooding.pass(&flood, false);
        assert_eq!(flooding.used(time), time, "alone again");
    }

    #[test]
    fn a_tenant_of_one_model_is_measured_against_the_others() {
        let turnstile = Turnstile::new(1);
        let [loud, quiet] = ["loud", "quiet"].map(|name| turnstile.account(&name.into(), &"model".into()));
        let mut gate = Gate::new(&turnstile, 1);
        let mut run = |account: &Arc<Account>, times: u32| {
            turnstile.returns(account);
            gate.pass(account, false);
            gate.ran(account, times * MS, 1);
        };
        run(&loud, 5);
        assert!(!turnstile.is_behind(&loud), "it has the cores alone");
        for _ in 0..3 {
            run(&quiet, 30);
            assert!(!turnstile.is_behind(&quiet));
            (0..3).for_each(|_| run(&loud, 15));
            assert!(turnstile.is_behind(&quiet) && !turnstile.is_behind(&loud));
        }
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
