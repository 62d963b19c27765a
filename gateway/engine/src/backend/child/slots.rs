//! How many children there may be at the same time.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::EngineError;

/// How long a child may take to end whose graph has left memory.
const LEAVING: Duration = Duration::from_secs(10);

/// The children that may be.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    count: Mutex<Count>,
    /// Signalled when one is free.
    free: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    taken: usize,
    /// Those of them whose children are about to end.
    leaving: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    leaving: AtomicBool,
}

impl Slots {
    pub fn new(most: usize) -> Arc<Slots> {
        Arc::new(Slots { most, count: Mutex::default(), free: Condvar::new() })
    }

    /// Takes one. Where none is left, `make_room` has an idle child end, if there is one, and that is waited for.
    pub fn take(self: &Arc<Slots>, make_room: impl FnOnce() -> bool) -> Result<Slot, EngineError> {
        let mut count = self.lock();
        if count.taken >= self.most {
            drop(count);
            let has_room = make_room();
            count = self.lock();
            if has_room || count.leaving > 0 {
                let full = |count: &mut Count| count.taken >= self.most;
                let waited = self.free.wait_timeout_while(count, LEAVING, full);
                count = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if count.taken >= self.most {
            let most = self.most;
            return Err(EngineError::NotReady(format!("all of the {most} processes for graphs are in use")));
        }
        count.taken += 1;
        Ok(Slot { slots: Arc::clone(self), leaving: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Its child is about to end: who needs a slot waits for this one.
    pub fn leaves(&self) {
        if !self.leaving.swap(true, Relaxed) {
            self.slots.lock().leaving += 1;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut count = self.slots.lock();
        count.taken -= 1;
        count.leaving -= usize::from(*self.leaving.get_mut());
        drop(count);
        self.slots.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody_idle() -> bool {
        false
    }

    #[test]
    fn children_are_counted() {
        let slots = Slots::new(2);
        let both = [(); 2].map(|()| slots.take(|| panic!("there is room")).expect("a slot"));
        assert!(matches!(slots.take(nobody_idle), Err(EngineError::NotReady(_))), "all are in use");
        drop(both);
        assert!(slots.take(nobody_idle).is_ok());
    }

    #[test]
    fn a_slot_that_is_made_or_will_be_free_is_waited_for() {
        let slots = Slots::new(1);
        let (mut held, mut ending) = (Some(slots.take(nobody_idle).expect("a slot")), None);
        // As the thread does it that waits for the child's end.
        let ends = |slot: Slot| std::thread::spawn(move || drop(slot));
        let evict = || {
            ending = held.take().map(ends);
            true
        };
        let next = slots.take(evict).expect("the idle one's");
        assert!(ending.expect("it was asked to end").join().is_ok());
        next.leaves();
        next.leaves();
        let deleted = ends(next);
        let last = slots.take(nobody_idle).expect("the deleted one's");
        assert!(deleted.join().is_ok() && slots.lock().leaving == 0);
        drop(last);
        assert_eq!(slots.lock().taken, 0);
    }
}
