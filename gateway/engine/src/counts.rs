//! What is counted for one user of a graph, by the threads that run it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Released;

/// Sizes of runs that are counted each on its own. A caller chooses sizes, so there is a bound.
const SIZES: usize = 128;

/// What the engine itself counted for one user of a graph since that began to use it. A run that held rows of several
/// users counts for each of them, and its time by their rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Jobs that were answered.
    pub inferences: u64,
    /// Rows of the jobs that were answered; a job of a graph without a batch axis is one.
    pub rows: u64,
    /// Runs of the engine that held rows of these jobs: fewer than the jobs when jobs ran together.
    /// [`crate::Graph::runs`] has those of all users.
    pub executions: u64,
    /// Jobs that failed in the engine.
    pub failures: u64,
    /// Jobs that left the queue without having run.
    pub withdrawn: u64,
    /// Runs of several jobs that failed, so that each was run again alone.
    pub separated: u64,
    /// Why batches ran when they did, in the order of [`Released::ALL`]; only where jobs may run together.
    pub released: [u64; Released::ALL.len()],
    /// Nanoseconds that jobs waited in the queue.
    pub queue_ns: u64,
    /// Nanoseconds of engine time.
    pub compute_ns: u64,
    /// Jobs that ran with others: only theirs are copies of inputs and parts of outputs.
    pub gathered: u64,
    /// Nanoseconds of putting their inputs together.
    pub gather_ns: u64,
    /// Nanoseconds of taking their outputs apart.
    pub scatter_ns: u64,
    /// By rows of the whole run; at most 128 sizes, the first ones seen.
    pub sizes: BTreeMap<usize, SizeCounts>,
}

/// Runs of one size, whosever rows they held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeCounts {
    /// Runs.
    pub executions: u64,
    /// Nanoseconds of engine time.
    pub compute_ns: u64,
    /// Those of them that were of several jobs.
    pub gathered: u64,
    /// Nanoseconds of putting inputs together.
    pub gather_ns: u64,
    /// Nanoseconds of taking outputs apart.
    pub scatter_ns: u64,
}

/// [`GraphCounts`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Runs of the engine, which all users of a graph count together.
    runs: Arc<AtomicU64>,
    inferences: AtomicU64,
    rows: AtomicU64,
    executions: AtomicU64,
    failures: AtomicU64,
    pub withdrawn: AtomicU64,
    separated: AtomicU64,
    released: [AtomicU64; Released::ALL.len()],
    queue_ns: AtomicU64,
    compute_ns: AtomicU64,
    gathered: AtomicU64,
    gather_ns: AtomicU64,
    scatter_ns: AtomicU64,
    /// Locked by a worker once a run, and by who reads: never for long.
    sizes: Mutex<BTreeMap<usize, SizeCounts>>,
}

impl Counts {
    /// The same, where runs of the engine are counted together with another user of the graph.
    pub fn beside(self, other: &Counts) -> Counts {
        Counts { runs: Arc::clone(&other.runs), ..self }
    }

    /// Runs of the engine for all users of the graph.
    pub fn runs(&self) -> u64 {
        self.runs.load(Relaxed)
    }

    pub fn read(&self) -> GraphCounts {
        GraphCounts {
            inferences: self.inferences.load(Relaxed),
            rows: self.rows.load(Relaxed),
            executions: self.executions.load(Relaxed),
            failures: self.failures.load(Relaxed),
            withdrawn: self.withdrawn.load(Relaxed),
            separated: self.separated.load(Relaxed),
            released: std::array::from_fn(|at| self.released[at].load(Relaxed)),
            queue_ns: self.queue_ns.load(Relaxed),
            compute_ns: self.compute_ns.load(Relaxed),
            gathered: self.gathered.load(Relaxed),
            gather_ns: self.gather_ns.load(Relaxed),
            scatter_ns: self.scatter_ns.load(Relaxed),
            sizes: self.sizes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Counts why a batch ran, where it could have been larger.
    pub fn released(&self, reason: Option<Released>) {
        if let Some(reason) = reason {
            self.released[reason as usize].fetch_add(1, Relaxed);
        }
    }

    /// Counts one job's time in the queue.
    pub fn queued(&self, time: Duration) {
        self.queue_ns.fetch_add(nanoseconds(time), Relaxed);
    }

    /// Counts a run of the engine that begins.
    pub fn begun(&self) {
        self.runs.fetch_add(1, Relaxed);
        self.came_along();
    }

    /// Counts rows in a run that begins, and that another user of the graph has counted.
    pub fn came_along(&self) {
        self.executions.fetch_add(1, Relaxed);
    }

    /// Counts how long a run of so many rows took, and how much of that is for the own ones.
    pub fn ended(&self, rows: usize, whole: Duration, own: Duration) {
        self.compute_ns.fetch_add(nanoseconds(own), Relaxed);
        self.of_size(rows, |size| {
            size.executions += 1;
            size.compute_ns += nanoseconds(whole);
        });
    }

    /// Counts what it took to put the inputs of a run together and its outputs apart, and how much of that is for the own
    /// jobs, of which there are so many.
    pub fn copied(&self, rows: usize, whole: [Duration; 2], jobs: u64, own: [Duration; 2]) {
        self.gathered.fetch_add(jobs, Relaxed);
        self.gather_ns.fetch_add(nanoseconds(own[0]), Relaxed);
        self.scatter_ns.fetch_add(nanoseconds(own[1]), Relaxed);
        self.of_size(rows, |size| {
            size.gathered += 1;
            size.gather_ns += nanoseconds(whole[0]);
            size.scatter_ns += nanoseconds(whole[1]);
        });
    }

    /// Counts a run of several jobs that failed, so that each runs alone.
    pub fn separated(&self) {
        self.separated.fetch_add(1, Relaxed);
    }

    /// Counts a job that was run.
    pub fn answered(&self, rows: usize, is_ok: bool) {
        if is_ok {
            self.inferences.fetch_add(1, Relaxed);
            self.rows.fetch_add(rows as u64, Relaxed);
        } else {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    fn of_size(&self, rows: usize, count: impl FnOnce(&mut SizeCounts)) {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if sizes.len() < SIZES || sizes.contains_key(&rows) {
            count(sizes.entry(rows).or_default());
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
