//! Cores for what is no run of a graph and has no thread of its own: guests that compute for long.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::{Account, Turnstile, Waiter, Who};

/// Who calls, for such work. It shares the cores with runs of graphs, in the same order, and is charged as they are.
#[derive(Clone, Debug)]
pub struct Caller {
    turnstile: Arc<Turnstile>,
    account: Arc<Account>,
    weight: u32,
}

/// A core that a caller has for a while; [`Caller::end`] gives it back.
#[derive(Debug)]
#[must_use = "a core that is not given back is lost to all"]
pub struct Core {
    /// Whether others have it as well.
    beside: bool,
}

/// Something that waits for a core.
pub trait Waits: fmt::Debug + Send + Sync {
    /// It has one now. False if it wants none any more.
    fn called(self: Arc<Self>) -> bool;
}

impl Core {
    /// What [`Waits::called`] is called for.
    pub fn own() -> Core {
        Core { beside: false }
    }
}

impl Caller {
    pub(crate) fn new(turnstile: &Arc<Turnstile>, tenant: &Arc<str>, name: &Arc<str>, weight: u32) -> Caller {
        Caller { account: turnstile.account(tenant, name), turnstile: turnstile.clone(), weight }
    }

    /// One of its guests can go on.
    pub fn returns(&self) {
        self.turnstile.returns(&self.account);
        self.account.guests.fetch_add(1, Relaxed);
    }

    /// One of its guests waits for something else now, or has ended.
    pub fn rests(&self) {
        self.account.guests.fetch_sub(1, Relaxed);
    }

    /// A core, if one is free and nobody waits; or one that others use, where the caller is within its share and has no other
    /// guest that could go on.
    pub fn begin(&self) -> Option<Core> {
        let turnstile = &*self.turnstile;
        if turnstile.waiters.load(SeqCst) == 0 && turnstile.try_take(1, 0) {
            return Some(Core { beside: false });
        }
        let calm = self.account.guests.load(Relaxed) <= 1;
        let beside = calm && turnstile.is_behind(&self.account) && turnstile.try_take(1, -turnstile.cores);
        beside.then(|| {
            turnstile.beside.changes(1, turnstile.cores);
            Core { beside: true }
        })
    }

    /// Calls `guest` when it is this caller's turn.
    pub fn wait(&self, guest: Arc<dyn Waits>) {
        let turnstile = &*self.turnstile;
        let called = {
            let mut waiting = turnstile.waiting();
            waiting.push_back(Waiter { account: self.account.clone(), cores: 1, who: Who::Guest(guest) });
            turnstile.waiters.fetch_add(1, SeqCst);
            // One may have come back before this was counted.
            turnstile.hand_on(&mut waiting)
        };
        turnstile.call(called);
    }

    /// Takes out who waits no more.
    pub fn forget<T: Waits>(&self, guest: &Arc<T>) {
        let mut waiting = self.turnstile.waiting();
        let is =
            |who: &Who| matches!(who, Who::Guest(other) if std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(guest)));
        if let Some(at) = waiting.iter().position(|waiter| is(&waiter.who)) {
            waiting.remove(at);
            self.turnstile.waiters.fetch_sub(1, SeqCst);
        }
    }

    /// Gives a core back that was used for this time.
    pub fn end(&self, core: Core, time: Duration) {
        let turnstile = &*self.turnstile;
        if core.beside {
            turnstile.beside.changes(-1, turnstile.cores);
        }
        if !time.is_zero() {
            let cost = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            turnstile.spend(&self.account, cost, self.weight);
        }
        turnstile.free.fetch_add(1, SeqCst);
        turnstile.came_back();
    }
}
