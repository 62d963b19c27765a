//! Weights that can leave memory: a graph's sessions end with their workers, and are loaded again for the next job.
//!
//! The queue stays: a job that comes meanwhile waits in it like any other, within its deadline and the queue's bounds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::backend::{Loaded, Session};
use crate::graph::Handle;
use crate::inline::Seat;
use crate::queue::Post;
use crate::residency::{Evict, Held, LastUse, Residency};
use crate::turnstile::{Gate, Turnstile};
use crate::worker::{self, Shared};
use crate::{EngineError, GraphInfo, Isolation};

/// Where a graph's file comes from when its weights are loaded again: the very bytes that were loaded first. Blocks.
pub type Source = Arc<dyn Fn() -> Result<Bytes, EngineError> + Send + Sync>;

/// Loads the sessions again.
pub(crate) type Reload = Box<dyn Fn() -> Result<Loaded, EngineError> + Send + Sync>;

/// What every generation of a graph's workers is started with.
pub(crate) struct Crew {
    /// The cores that runs share with other graphs'; `None` where they use none.
    pub cores: Option<Arc<Turnstile>>,
    /// Whether callers may run short jobs on their own threads.
    pub inline: bool,
}

/// What a graph has whose weights can leave memory.
pub(crate) struct Residence {
    residency: Residency,
    /// Bytes of the file, which is what counts.
    bytes: u64,
    reload: Reload,
    used: LastUse,
    /// Calls of `compute` that have begun and not ended.
    uses: AtomicUsize,
    /// Locked by who loads or evicts.
    place: Mutex<Place>,
}

struct Place {
    /// While the weights are in memory.
    held: Option<Held>,
    /// The last generation of workers.
    workers: Vec<JoinHandle<()>>,
}

/// A call of `compute`: until it is dropped the weights stay.
pub(crate) struct Use<'a>(&'a Residence);

// === impl Crew ===

impl Crew {
    /// Starts a worker for each session, and lets callers beside them where they may be. Where no more can be had, `workers`
    /// has those that started.
    pub fn start(
        &self,
        sessions: Vec<Box<dyn Session>>,
        shared: &Arc<Shared>,
        info: &GraphInfo,
        workers: &mut Vec<JoinHandle<()>>,
    ) -> Result<(), EngineError> {
        let gate = || self.cores.as_ref().map(|cores| Gate::new(cores, info.threads));
        let beside = sessions.iter().filter(|_| self.inline).filter_map(|session| session.beside());
        shared.inline.set(beside.map(|session| Seat { session, gate: gate() }).collect());
        // As many: of two requests of one caller that come at once, neither is to wait for a run of somebody else's to end.
        let prompt = sessions.iter().filter(|_| self.cores.is_some());
        let prompt: Vec<_> = prompt.filter_map(|session| Some((session.another()?, Post::Prompt))).collect();
        let regular = sessions.into_iter().map(|session| (session, Post::Regular));
        worker::start(regular.chain(prompt).collect(), shared, &info.engine, gate, workers)
    }
}

// === impl Residence ===

impl Residence {
    /// The residence of weights that are in memory, and `reload` loads again.
    pub fn new(residency: Residency, (bytes, held): (u64, Held), reload: Reload) -> Residence {
        let (used, uses) = (LastUse::default(), AtomicUsize::new(0));
        used.touch();
        let place = Mutex::new(Place { held: Some(held), workers: Vec::new() });
        Residence { residency, bytes, reload, used, uses, place }
    }

    /// Lets the weights leave, with the workers that have them.
    pub fn enter(&self, workers: Vec<JoinHandle<()>>, graph: &Arc<Handle>) {
        self.place().workers = workers;
        self.may_leave(graph);
    }

    /// Whose budget they count in.
    pub fn residency(&self) -> Residency {
        self.residency.clone()
    }

    fn may_leave(&self, graph: &Arc<Handle>) {
        let resident: Weak<Handle> = Arc::downgrade(graph);
        self.residency.enter(resident);
    }

    /// Begins a call.
    pub fn begin(&self) -> Use<'_> {
        self.used.touch();
        self.uses.fetch_add(1, SeqCst);
        Use(self)
    }

    fn trim(&self) {
        if self.residency.claims_trim() {
            self.residency.trim();
        }
    }

    /// A panic of the engine that loads is caught, so a poisoned lock is as good.
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, SeqCst);
        // What was in use when room was wanted makes it now.
        self.0.trim();
    }
}

/// Brings the weights of a graph back, for a caller that has claimed it, on a thread of its own.
pub(crate) fn recall(graph: &Arc<Handle>) {
    let graph_there = Arc::clone(graph);
    let started = thread::Builder::new().name("weights".into()).spawn(move || reload(&graph_there));
    if let Err(error) = started {
        abandon(graph, &EngineError::NotReady(format!("no thread to load the weights: {error}")), || ());
    }
}

fn reload(graph: &Arc<Handle>) {
    let Some(residence) = &graph.residence else { return };
    let mut place = residence.place();
    // Until the last of them has gone, the weights are there.
    for worker in place.workers.drain(..) {
        let _ = worker.join();
    }
    let held = residence.residency.hold(residence.bytes);
    let loaded = catch_unwind(AssertUnwindSafe(&residence.reload));
    let loaded = loaded.unwrap_or_else(|_| Err(EngineError::Failed("the engine panicked while it loaded".into())));
    let started = loaded.and_then(|loaded| {
        // Before the first job that waits is answered.
        residence.residency.reloaded();
        graph.shared.queue.recalled();
        graph.crew.start(loaded.sessions, &graph.shared, &graph.info, &mut place.workers)
    });
    match started {
        Ok(()) => {
            place.held = Some(held);
            drop(place);
            residence.may_leave(graph);
            // Whoever wanted it may have gone meanwhile.
            residence.trim();
        }
        Err(error) => {
            // Of several workers some may have started: the weights count until they have gone.
            let gone = || {
                graph.shared.inline.set(Vec::new());
                for worker in place.workers.drain(..) {
                    let _ = worker.join();
                }
                drop((place, held));
            };
            abandon(graph, &EngineError::NotReady(format!("the weights cannot be loaded: {error}")), gone);
        }
    }
}

fn abandon(graph: &Handle, error: &EngineError, gone: impl FnOnce()) {
    tracing::error!(%error, "a graph's weights did not come back");
    graph.shared.queue.abandon(error, gone);
}

impl Evict for Handle {
    fn last_use(&self) -> u64 {
        self.residence.as_ref().map_or(u64::MAX, |residence| residence.used.get())
    }

    fn evict(&self) -> bool {
        let Some(residence) = &self.residence else { return false };
        // Where somebody loads it, it is wanted.
        let Ok(mut place) = residence.place.try_lock() else { return false };
        let idle = || residence.uses.load(SeqCst) == 0;
        if place.held.is_none() || !self.shared.queue.dismiss(idle) {
            return false;
        }
        self.shared.inline.set(Vec::new());
        // The workers drop their sessions on their own threads, a moment later.
        place.held = None;
        true
    }

    fn has_process(&self) -> bool {
        self.info.isolation == Isolation::Child
    }
}
