//! The bounded queue between callers and the workers of one graph.
//!
//! What gathers jobs into batches takes its place in [`Queue::take`]: it is the only way from jobs to a worker.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::check::Checked;
use crate::{EngineError, Tensor};

/// What a caller gets back: outputs in the order asked for.
pub(crate) type Answer = Result<Vec<Tensor>, EngineError>;

/// A job that waits for a worker.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub job: Checked,
    pub deadline: Option<Instant>,
    /// Where its answer goes; closed when its caller has gone.
    pub reply: oneshot::Sender<Answer>,
    /// When it was queued.
    pub since: Instant,
}

/// Names a job in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// First in, first out, with a fixed capacity.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Signalled when a job comes while a worker is parked, and when the queue closes.
    wake: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State {
    /// In the order of their tickets.
    waiting: VecDeque<(Ticket, Waiting)>,
    /// The next ticket's number.
    next: u64,
    /// Workers that wait in [`Queue::take`] and were not signalled.
    parked: usize,
    open: bool,
}

impl Queue {
    pub fn new(capacity: usize) -> Queue {
        let waiting = VecDeque::with_capacity(capacity.min(64));
        let state = Mutex::new(State { waiting, next: 0, parked: 0, open: true });
        Queue { state, wake: Condvar::new(), capacity }
    }

    /// Queues a job, or refuses it at once.
    pub fn push(&self, waiting: Waiting) -> Result<Ticket, EngineError> {
        let mut state = self.lock();
        if !state.open {
            return Err(EngineError::Stopped);
        }
        if state.waiting.len() >= self.capacity {
            return Err(EngineError::QueueFull);
        }
        let ticket = Ticket(state.next);
        state.next += 1;
        state.waiting.push_back((ticket, waiting));
        let wake = state.parked > 0;
        if wake {
            state.parked -= 1;
        }
        drop(state);
        // After the lock is free, so that the worker does not wake up to wait for it.
        if wake {
            self.wake.notify_one();
        }
        Ok(ticket)
    }

    /// Takes a job out again. False when a worker has it already.
    pub fn withdraw(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        match state.waiting.binary_search_by_key(&ticket.0, |(t, _)| t.0) {
            Ok(at) => state.waiting.remove(at).is_some(),
            Err(_) => false,
        }
    }

    /// The next job, for a worker; waits for one. `None` when the queue is closed and empty.
    pub fn take(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if let Some((_, waiting)) = state.waiting.pop_front() {
                return Some(waiting);
            }
            if !state.open {
                return None;
            }
            state.parked += 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            // A wake-up that nobody asked for leaves this worker counted: `push` then signals once in vain.
        }
    }

    /// Refuses further jobs and lets the workers go when none is left.
    pub fn close(&self) {
        self.lock().open = false;
        self.wake.notify_all();
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
