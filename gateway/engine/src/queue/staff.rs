//! Queues whose workers can be dismissed while nothing waits, and called back when something does.

use std::sync::MutexGuard;
use std::sync::atomic::{
    AtomicU8,
    Ordering::{Relaxed, SeqCst},
};

use super::{Queue, State};
use crate::{EngineError, Residency};

/// Whether there are workers. They are dismissed under the queue's lock, so that whoever queues a job knows.
#[derive(Debug, Default)]
pub(super) struct Staff(AtomicU8);

const HERE: u8 = 0;
const DISMISSED: u8 = 1;
/// Somebody has undertaken to bring them back.
const COMING: u8 = 2;

impl Queue {
    /// Whose budget the workers' weights count in: it is asked again when a run has ended that kept them from being dismissed.
    pub fn set_residency(&self, residency: Residency) {
        let _ = self.residency.set(residency);
    }

    /// Sends the workers away if no job waits, none runs, whose caller may have gone, and `idle` says that none is under way.
    pub fn dismiss(&self, idle: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        if state.lanes.jobs() > 0 || !idle() {
            return false;
        }
        if state.running > 0 {
            state.refused = true;
            return false;
        }
        let dismissed = self.staff.0.compare_exchange(HERE, DISMISSED, SeqCst, SeqCst).is_ok();
        if dismissed {
            self.send_away(state);
        }
        dismissed
    }

    /// Wakes the workers that wait, to find that they were dismissed.
    fn send_away(&self, mut state: MutexGuard<'_, State>) {
        (state.parked, state.resting) = (0, 0);
        drop(state);
        self.wake.notify_all();
        self.prompt.notify_all();
        // One that gathers waits for company of a job that was withdrawn.
        self.enough.notify_all();
    }

    /// Whether the workers were dismissed and are not back.
    pub fn is_dismissed(&self) -> bool {
        self.staff.0.load(SeqCst) != HERE
    }

    /// Whether the workers were dismissed and nobody else brings them back: the caller does, with [`Queue::recalled`] or
    /// [`Queue::abandon`] in the end.
    pub fn claims_recall(&self) -> bool {
        self.is_dismissed() && self.staff.0.compare_exchange(DISMISSED, COMING, SeqCst, SeqCst).is_ok()
    }

    /// New workers may take jobs.
    pub fn recalled(&self) {
        self.staff.0.store(HERE, SeqCst);
    }

    /// Nobody comes, or not enough, who go again: whoever waits is told why, once `gone` has seen to what that leaves. The next
    /// job calls again.
    pub fn abandon(&self, why: &EngineError, gone: impl FnOnce()) {
        let mut state = self.lock();
        self.staff.0.store(DISMISSED, SeqCst);
        let waiting = state.lanes.drain();
        self.send_away(state);
        gone();
        for waiting in waiting {
            waiting.user.counts.withdrawn.fetch_add(1, Relaxed);
            let _ = waiting.reply.send(Err(why.clone()));
        }
    }
}
