//! What is counted for one graph, by the threads that run it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Released;

/// Sizes of runs that are counted each on its own. A caller chooses sizes, so there is a bound.
const SIZES: usize = 128;

/// What the engine itself counted for one graph since it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Jobs that were answered.
    pub inferences: u64,
    /// Rows of the jobs that were answered; a job of a graph without a batch axis is one.
    pub rows: u64,
    /// Runs of the engine: fewer than the jobs when jobs ran together.
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
    /// By rows of a run; at most 128 sizes, the first ones seen.
    pub sizes: BTreeMap<usize, SizeCounts>,
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeCounts {
    /// Runs.
    pub executions: u64,
    /// Nanoseconds of engine time.
    pub compute_ns: u64,
    /// Nanoseconds of putting inputs together.
    pub gather_ns: u64,
    /// Nanoseconds of taking outputs apart.
    pub scatter_ns: u64,
}

/// [`GraphCounts`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    inferences: AtomicU64,
    rows: AtomicU64,
    executions: AtomicU64,
    failures: AtomicU64,
    pub withdrawn: AtomicU64,
    pub separated: AtomicU64,
    released: [AtomicU64; Released::ALL.len()],
    queue_ns: AtomicU64,
    compute_ns: AtomicU64,
    /// Locked by a worker once a run, and by who reads: never for long.
    sizes: Mutex<BTreeMap<usize, SizeCounts>>,
}

impl Counts {
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
            sizes: self.sizes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Counts why a batch ran.
    pub fn released(&self, reason: Released) {
        self.released[reason as usize].fetch_add(1, Relaxed);
    }

    /// Counts one job's time in the queue.
    pub fn queued(&self, time: Duration) {
        self.queue_ns.fetch_add(nanoseconds(time), Relaxed);
    }

    /// Counts a run of the engine that begins.
    pub fn begun(&self) {
        self.executions.fetch_add(1, Relaxed);
    }

    /// Counts how long a run took.
    pub fn ended(&self, rows: usize, time: Duration) {
        let time = nanoseconds(time);
        self.compute_ns.fetch_add(time, Relaxed);
        self.of_size(rows, |size| {
            size.executions += 1;
            size.compute_ns += time;
        });
    }

    /// Counts what it took to make one run of several jobs.
    pub fn copied(&self, rows: usize, gather: Duration, scatter: Duration) {
        self.of_size(rows, |size| {
            size.gather_ns += nanoseconds(gather);
            size.scatter_ns += nanoseconds(scatter);
        });
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
