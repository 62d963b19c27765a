//! What tenants, and the models in whose name they call, have used of the cores.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Accounts that are kept without a look at whether their callers are still there.
pub(super) const KEPT: usize = 64;
/// How long it takes until nobody but who has the last runs is said to want any.
const ALONE: Duration = Duration::from_millis(100);
/// Whether several share what they have, or one has it alone: tenants the cores, or models what their tenant has.
#[derive(Debug)]
pub(super) struct Contest {
    begin: Instant,
    /// The number of the one that ran last, 0 before the first.
    last: AtomicU64,
    /// When another ran than the one before, microseconds after the beginning; 0 if none did.
    changed: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Accounts {
    of: HashMap<Caller, Weak<Account>>,
    tenants: HashMap<Arc<str>, Weak<Purse>>,
    /// The next account's number, or the next tenant's.
    next: u64,
    /// How many there may be before those of callers that are gone are looked for.
    most: usize,
}

/// A tenant, and the model in whose name it calls.
type Caller = (Arc<str>, Arc<str>);

/// What one caller has used of the cores, on whatever graph.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(super) number: u64,
    /// The virtual time of its tenant up to which it has used its share, nanoseconds.
    pub(super) used: AtomicU64,
    pub(super) seen: Seen,
    /// Its guests that could go on.
    pub(super) guests: AtomicUsize,
    pub(super) tenant: Arc<Purse>,
}

/// When a caller has asked for a run last, or had one: microseconds after a contest's beginning; 0 if it never did.
#[derive(Debug, Default)]
pub(super) struct Seen(AtomicU64);

impl Seen {
    pub fn now(&self, contest: &Contest) {
        self.0.store(contest.micros(), Relaxed);
    }

    /// As [`Seen::now`]. Whether it has been there of late.
    pub fn again(&self, contest: &Contest) -> bool {
        let now = contest.micros();
        let before = self.0.swap(now, Relaxed);
        before > 0 && now.saturating_sub(before) < ALONE.as_micros() as u64
    }
}

/// What a tenant has used of the cores, in the name of whatever model.
#[derive(Debug, Default)]
pub(super) struct Purse {
    pub(super) number: u64,
    /// The virtual time up to which it has used its share, nanoseconds.
    pub(super) used: AtomicU64,
    /// The virtual time of its models at which its last run started, nanoseconds.
    pub(super) now: AtomicU64,
    pub(super) seen: Seen,
    pub(super) contest: Contest,
}

impl Account {
    /// Who has used the least goes first: of tenants, and of a tenant's models.
    pub fn turn(&self) -> (u64, u64) {
        (self.tenant.used.load(Relaxed), self.used.load(Relaxed))
    }
}

impl Default for Contest {
    fn default() -> Contest {
        Contest { begin: Instant::now(), last: AtomicU64::new(0), changed: AtomicU64::new(0) }
    }
}

impl Contest {
    pub fn ran(&self, number: u64) {
        if self.last.load(Relaxed) == number {
            return;
        }
        if self.last.swap(number, Relaxed) != 0 {
            self.changed.store(self.micros(), Relaxed);
        }
    }

    pub fn is_on(&self) -> bool {
        let changed = self.changed.load(Relaxed);
        changed > 0 && self.micros().saturating_sub(changed) < ALONE.as_micros() as u64
    }

    /// Microseconds since the beginning, never 0.
    fn micros(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }
}

impl Accounts {
    pub fn new() -> Accounts {
        Accounts { of: HashMap::new(), tenants: HashMap::new(), next: 1, most: KEPT }
    }

    /// How many there are, those of callers that are gone among them.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// The account of a caller: the same wherever it calls.
    pub fn account(&mut self, tenant: &Arc<str>, name: &Arc<str>) -> Arc<Account> {
        let caller = (Arc::clone(tenant), Arc::clone(name));
        if let Some(account) = self.of.get(&caller).and_then(Weak::upgrade) {
            return account;
        }
        if self.of.len() >= self.most {
            self.of.retain(|_, account| account.strong_count() > 0);
            self.tenants.retain(|_, purse| purse.strong_count() > 0);
            self.most = KEPT.max(2 * self.of.len());
        }
        let purse = self.tenants.get(tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
            let purse = Arc::new(Purse { number: self.next, ..Purse::default() });
            self.next += 1;
            self.tenants.insert(Arc::clone(tenant), Arc::downgrade(&purse));
            purse
        });
        let account = Arc::new(Account { number: self.next, tenant: purse, ..Account::default() });
        self.next += 1;
        self.of.insert(caller, Arc::downgrade(&account));
        account
    }
}
