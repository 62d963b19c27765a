//! A run that waits for something, such as its process, uses no core: others have its permits meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Turnstile;

/// What lends the permits of one session, in the middle of a run.
#[derive(Debug)]
pub(crate) struct Lender {
    turnstile: Arc<Turnstile>,
    cores: i64,
}

impl Lender {
    pub(super) fn new(turnstile: &Arc<Turnstile>, cores: i64) -> Lender {
        Lender { turnstile: Arc::clone(turnstile), cores }
    }

    /// Lets others have the permits.
    pub fn lends(&self) {
        self.turnstile.free.fetch_add(self.cores, SeqCst);
        self.turnstile.came_back();
    }

    /// Has them again, at once: until a run of those who have got them ends, more are taken than there are.
    pub fn takes_back(&self) {
        self.turnstile.free.fetch_sub(self.cores, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::Gate;
    use super::*;

    #[test]
    fn who_waits_in_a_run_lets_others_run() {
        let turnstile = Turnstile::new(1);
        let (mut waits, mut runs) = (Gate::new(&turnstile, 1), Gate::new(&turnstile, 1));
        let account = turnstile.account(&"tenant".into(), &"other".into());
        assert!(waits.try_pass() && !runs.try_pass());
        let other = thread::spawn(move || {
            runs.pass(&account, false);
            runs
        });
        while turnstile.waiters.load(SeqCst) == 0 {
            thread::yield_now();
        }
        let lender = waits.lender();
        lender.lends();
        let runs = other.join().expect("its turn");
        lender.takes_back();
        assert!(turnstile.is_full());
        drop(runs);
        assert_eq!(turnstile.free.load(SeqCst), 0, "the core is the first one's again");
        drop(waits);
        assert_eq!(turnstile.free.load(SeqCst), 1);
    }
}
