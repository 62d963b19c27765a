//! Those who use a graph: versions of models, in most cases. Its sessions, and the queue before them, are common to all of
//! them. How a user's jobs wait there and run together is its own, and so is what is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::counts::Counts;
use crate::padding::Pads;
use crate::queue::{Bounds, Waiting};
use crate::{BatchPolicy, Released};

/// One of them.
#[derive(Debug)]
pub(crate) struct User {
    pub counts: Counts,
    /// How many of its jobs may wait, and how long.
    pub bounds: Bounds,
    /// How its jobs of different lengths could run together.
    pads: Option<Arc<Pads>>,
    /// Whether they do.
    padded: AtomicBool,
    /// Its [`BatchPolicy`]. Whoever reads it while it changes may see a part of each, which harms nobody.
    max_rows: AtomicUsize,
    delay_ns: AtomicU64,
}

impl User {
    /// One whose jobs run alone, as yet.
    pub fn new(bounds: Bounds, pads: Option<Arc<Pads>>) -> User {
        let (counts, padded, delay_ns) = (Counts::default(), AtomicBool::new(false), AtomicU64::new(0));
        User { counts, bounds, pads, padded, max_rows: AtomicUsize::new(BatchPolicy::OFF.max_rows), delay_ns }
    }

    /// The same, as one more user of the graph that the other one uses.
    pub fn beside(self, other: &User) -> User {
        User { counts: self.counts.beside(&other.counts), ..self }
    }

    /// What runs alone waits for nobody, whatever the delay.
    pub fn set_policy(&self, policy: BatchPolicy) {
        let delay = if policy.max_rows > 1 { policy.delay } else { Duration::ZERO };
        self.max_rows.store(policy.max_rows.max(1), Relaxed);
        self.delay_ns.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn policy(&self) -> BatchPolicy {
        let delay = Duration::from_nanos(self.delay_ns.load(Relaxed));
        BatchPolicy { max_rows: self.max_rows.load(Relaxed), delay }
    }

    pub fn set_padded(&self, on: bool) {
        self.padded.store(on, Relaxed);
    }

    /// How its jobs of different lengths run together, where they do.
    pub fn pads(&self) -> Option<&Arc<Pads>> {
        self.pads.as_ref().filter(|_| self.padded.load(Relaxed))
    }

    /// How they could.
    pub fn asked_pads(&self) -> Option<&Pads> {
        self.pads.as_deref()
    }

    /// Whether jobs of another user may come along in a batch of this one's: both batch, and fill rows up alike.
    pub fn mixes_with(&self, other: &User) -> bool {
        std::ptr::eq(self, other)
            || (self.policy().max_rows > 1 && other.policy().max_rows > 1 && self.pads() == other.pads())
    }
}

/// What one user has in a run.
#[derive(Debug)]
pub(crate) struct Part {
    user: Arc<User>,
    jobs: u64,
    rows: usize,
}

/// A run, by whose jobs are in it. It counts once for each of them, and its time by their rows.
#[derive(Debug)]
pub(crate) struct Parts {
    parts: Vec<Part>,
    rows: usize,
}

impl Parts {
    /// Those of the jobs of a batch.
    pub fn of(jobs: &[Waiting]) -> Parts {
        let mut parts: Vec<Part> = Vec::with_capacity(1);
        for Waiting { user, job, .. } in jobs {
            let rows = job.rows.unwrap_or(1);
            // Jobs of one user come one after the other.
            match parts.iter_mut().rev().find(|part| Arc::ptr_eq(&part.user, user)) {
                Some(part) => {
                    part.jobs += 1;
                    part.rows += rows;
                }
                None => parts.push(Part { user: Arc::clone(user), jobs: 1, rows }),
            }
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Parts { parts, rows }
    }

    /// Counts why it runs now.
    pub fn released(&self, reason: Option<Released>) {
        self.parts.iter().for_each(|part| part.user.counts.released(reason));
    }

    /// Counts that it begins: for each of them, and once for the engine.
    pub fn begun(&self) {
        let mut all = self.parts.iter().map(|part| &part.user.counts);
        if let Some(first) = all.next() {
            first.begun();
        }
        all.for_each(Counts::came_along);
    }

    /// Counts how long it took.
    pub fn ended(&self, time: Duration) {
        self.parts.iter().for_each(|part| part.user.counts.ended(self.rows, time, part.share(self.rows, time)));
    }

    /// Counts what it took to make one run of several jobs.
    pub fn copied(&self, gather: Duration, scatter: Duration) {
        for part in &self.parts {
            let own = [gather, scatter].map(|time| part.share(self.rows, time));
            part.user.counts.copied(self.rows, [gather, scatter], part.jobs, own);
        }
    }

    /// Counts that its jobs run one by one.
    pub fn separated(&self) {
        self.parts.iter().for_each(|part| part.user.counts.separated());
    }
}

impl Part {
    fn share(&self, rows: usize, time: Duration) -> Duration {
        time.mul_f64(self.rows as f64 / rows.max(1) as f64)
    }
}
