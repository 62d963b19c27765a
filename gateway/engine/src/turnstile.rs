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
        let turnstile = &*self.turnstile;
        // Those whose cores these were have gone.
        if turnstile.free.load(Relaxed) >= 0
            && let Some(place) = self.beside.take()
        {
            turnstile.beside.ends(place, self.cores, turnstile.cores);
        }
        self.lost = turnstile.beside.lost();
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
mod tests;
