//! Those who use a graph: versions of models, in most cases. Its sessions and their queue are common to all of them; what
//! is counted is each one's own.

use std::sync::Arc;
use std::time::Duration;

use crate::Released;
use crate::counts::Counts;
use crate::queue::Waiting;

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct User {
    pub counts: Counts,
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

    /// Counts that it begins.
    pub fn begun(&self) {
        self.parts.iter().for_each(|part| part.user.counts.begun());
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
