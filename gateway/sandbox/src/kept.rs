//! Instances of a program that answer more than one request, where its module asked for that.
//!
//! Between two requests an instance waits in its program's [`Kept`], for the next request of the same tenant. It takes the
//! guest's memory with it and nothing else: every request gets a watch, limits and a log of its own, and an instance that
//! still holds a tensor, or an error, of a request does not wait. Neither does one whose call ended in any other way than
//! with an answer: what a trap, a limit or a caller who left has cut short is dropped with its store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::Store;

use crate::code::InUse;
use crate::module::Parts;
use crate::nn::Model;
use crate::program::Inner;
use crate::state::State;
use crate::ticker::Registration;
use crate::{CallContext, ModuleError, ModuleKind};

/// How long an instance waits for its next request. Until then it has its memory, its slot of the pool and the module's code.
const IDLE: Duration = Duration::from_secs(10);

/// An instance of the world `model`, made by the first request that it answers.
pub(crate) struct Instance {
    pub(crate) store: Store<State>,
    pub(crate) guest: Option<Guest>,
    /// Requests that it has answered.
    answered: u32,
}

/// What is called in a store.
pub(crate) struct Guest {
    pub(crate) model: Model,
    /// Stays in memory as long as the instance.
    _code: InUse,
}

/// The instances of one program that wait. It belongs to the program's handles and not to what its calls share: a store
/// holds that.
pub(crate) struct Kept {
    parts: Arc<Parts>,
    /// Requests that an instance may answer.
    most: u32,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Who has waited longest is first.
    instances: VecDeque<(Instant, Instance)>,
    /// Whether a task looks for those that have waited too long.
    is_swept: bool,
}

// === impl Instance ===

impl Guest {
    pub(crate) fn new(model: Model, code: InUse) -> Guest {
        Guest { model, _code: code }
    }
}

// === impl Kept ===

impl Kept {
    /// For a program. Nothing waits yet.
    ///
    /// # Errors
    /// When its instances must not be used again, and may.
    pub(crate) fn new(program: &Inner) -> Result<Arc<Kept>, ModuleError> {
        let most = program.limits.reuse;
        let refused = match program.module.kind() {
            _ if most <= 1 => None,
            ModuleKind::Http => Some("a `wasi:http` component goes on after the head of its answer"),
            ModuleKind::Command => Some("a command ends with its answer"),
            ModuleKind::Model if program.grants.acts_outside() => {
                Some("what it has open on the network belongs to one request")
            }
            ModuleKind::Model => None,
        };
        match refused {
            Some(why) => Err(ModuleError::Reuse(why)),
            None => Ok(Arc::new(Kept { parts: program.sandbox.clone(), most, waiting: Mutex::default() })),
        }
    }

    /// An instance for a request: the one that has just answered for this tenant, or a fresh one.
    pub(crate) fn begin(&self, program: &Arc<Inner>, call: &Registration, context: &CallContext) -> Instance {
        match self.take(&context.tenant) {
            Some(mut instance) => {
                State::again(&mut instance.store, call, context);
                instance
            }
            None => Instance { store: State::store(program, call, context, None), guest: None, answered: 0 },
        }
    }

    fn take(&self, tenant: &str) -> Option<Instance> {
        if self.most <= 1 {
            return None;
        }
        let mut waiting = self.waiting();
        let at = waiting.instances.iter().rposition(|(_, instance)| *instance.store.data().tenant == *tenant)?;
        let (_, instance) = waiting.instances.remove(at)?;
        drop(waiting);
        self.parts.waiting.give_back(1);
        Some(instance)
    }

    /// Lets an instance that has answered wait for its next request, unless it has answered enough.
    pub(crate) fn end(self: &Arc<Kept>, mut instance: Instance) {
        instance.answered += 1;
        if instance.answered >= self.most || !instance.store.data_mut().may_wait() {
            return;
        }
        // Dropped when nothing is locked.
        let mut left = None;
        let mut waiting = self.waiting();
        if !self.parts.waiting.take() {
            // Where all programs together have as many as may be, the program's own oldest makes room.
            left = waiting.instances.pop_front();
            if left.is_none() {
                return;
            }
        }
        waiting.instances.push_back((Instant::now(), instance));
        if !std::mem::replace(&mut waiting.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
        drop(waiting);
        drop(left);
    }

    /// Drops what has waited too long; when the next one will have.
    fn expire(&self) -> Option<Instant> {
        let mut waiting = self.waiting();
        let now = Instant::now();
        let expired = waiting.instances.iter().take_while(|(since, _)| *since + IDLE <= now).count();
        let expired: Vec<_> = waiting.instances.drain(..expired).collect();
        let next = waiting.instances.front().map(|(since, _)| *since + IDLE);
        waiting.is_swept = next.is_some();
        drop(waiting);
        self.leave(expired.into());
        next
    }

    /// Drops instances that waited.
    fn leave(&self, instances: VecDeque<(Instant, Instance)>) {
        self.parts.waiting.give_back(instances.len());
        drop(instances);
    }

    /// Nothing panics under it, so a poisoned one is as good.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let instances = std::mem::take(&mut self.waiting().instances);
        self.leave(instances);
    }
}

/// Looks for instances that have waited too long, for as long as any wait.
async fn sweep(kept: Weak<Kept>) {
    let mut next = Instant::now() + IDLE;
    loop {
        tokio::time::sleep_until(next).await;
        match kept.upgrade().and_then(|kept| kept.expire()) {
            Some(later) => next = later,
            None => return,
        }
    }
}
