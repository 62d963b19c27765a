//! A loaded graph: the handle that callers hold, the queue behind it, and the sessions' worker threads.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::backend::Loaded;
use crate::check::Signature;
use crate::onnx::Model;
use crate::queue::{Answer, Queue, Ticket, Waiting};
use crate::worker::{self, Counts, Shared};
use crate::{EngineError, GraphSpec, Isolation, Tensor};

/// What runs a graph, for metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphInfo {
    /// The engine's name: `rten` or `onnxruntime`.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The execution provider: `CPU`, `CUDA`.
    pub provider: String,
    /// Sessions, each with a worker thread of its own.
    pub sessions: usize,
    /// Threads inside each session.
    pub threads: usize,
    /// The process that they are in.
    pub isolation: Isolation,
}

/// One call of a graph.
#[derive(Clone, Debug)]
pub struct Job {
    /// Inputs by the graph's names, in any order. A tensor's type may be the carrier of the declared one.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs wanted, in this order; empty for all of them in declaration order.
    pub outputs: Vec<String>,
    /// After this the answer is of no use: the job is not started.
    pub deadline: Option<Instant>,
    /// Whose job it is. Jobs of different tenants never run together, and each tenant gets its share of the engine.
    pub tenant: Arc<str>,
}

/// The tenant of who names none.
pub fn default_tenant() -> Arc<str> {
    static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| "default".into());
    Arc::clone(&DEFAULT)
}

impl Default for Job {
    fn default() -> Job {
        Job { inputs: Vec::new(), outputs: Vec::new(), deadline: None, tenant: default_tenant() }
    }
}

/// What the engine itself counted for one graph since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Jobs that were answered.
    pub inferences: u64,
    /// Runs of the engine: fewer than the jobs when jobs ran together.
    pub executions: u64,
    /// Jobs that failed in the engine.
    pub failures: u64,
    /// Jobs that left the queue without having run.
    pub withdrawn: u64,
    /// Nanoseconds that jobs waited in the queue.
    pub queue_ns: u64,
    /// Nanoseconds of engine time.
    pub compute_ns: u64,
}

/// A loaded graph. Cloning shares it; when the last handle goes, its sessions end.
#[derive(Clone)]
pub struct Graph {
    handle: Arc<Handle>,
}

/// What all clones of a graph share.
struct Handle {
    signature: Signature,
    info: GraphInfo,
    weight_bytes: u64,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    /// No job can be left: each borrows a handle. The workers end by themselves, and the weights with the last of
    /// them: the thread that drops a graph does not wait for that.
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Graph {
    /// Starts the workers of a graph that an engine has loaded, with room for `capacity` waiting jobs.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(loaded: Loaded, model: &Model, capacity: usize) -> Result<Graph, EngineError> {
        let Loaded { info, sessions } = loaded;
        let shared = Arc::new(Shared { queue: Queue::new(capacity), counts: Counts::default() });
        worker::start(sessions, &shared, &info.engine)?;
        let signature = Signature::new(model.spec.clone());
        Ok(Graph { handle: Arc::new(Handle { signature, info, weight_bytes: model.weight_bytes, shared }) })
    }

    /// What the graph declares.
    pub fn spec(&self) -> &GraphSpec {
        &self.handle.signature.spec
    }

    /// What runs it.
    pub fn info(&self) -> &GraphInfo {
        &self.handle.info
    }

    /// Bytes of all its weights, as the file has them. The sessions share them; what an engine adds, such as copies in
    /// another layout, is not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.handle.weight_bytes
    }

    /// Jobs that wait in the queue now.
    pub fn queued(&self) -> usize {
        self.handle.shared.queue.len()
    }

    /// What was counted so far.
    pub fn counts(&self) -> GraphCounts {
        self.handle.shared.counts.read()
    }

    /// Runs one job: names, types and shapes are checked against the declaration, then it is queued. A future that is
    /// dropped withdraws its job if that has not started.
    ///
    /// A job with a deadline needs a runtime with its timer enabled: when the deadline passes the job is given up,
    /// though a run that has started goes on to its end.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] at once when the queue is full; the others as their documentation says.
    pub async fn compute(&self, job: Job) -> Result<Vec<(String, Tensor)>, EngineError> {
        let Handle { signature, shared, .. } = &*self.handle;
        let deadline = job.deadline;
        let job = signature.check(job)?;
        let since = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= since) {
            return Err(EngineError::Deadline);
        }
        let names: Vec<String> =
            job.outputs.iter().filter_map(|&at| Some(signature.spec.outputs.get(at)?.name.clone())).collect();
        let (reply, answer) = oneshot::channel();
        let ticket = shared.queue.push(Waiting { job, deadline, reply, since })?;
        let mut place = Place { shared, ticket: Some(ticket) };
        let tensors = wait(answer, deadline).await?;
        place.ticket = None;
        Ok(names.into_iter().zip(tensors).collect())
    }
}

/// Waits for the answer until the deadline.
async fn wait(answer: oneshot::Receiver<Answer>, deadline: Option<Instant>) -> Answer {
    let answer = match deadline {
        None => answer.await,
        Some(deadline) => match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(answer) => answer,
            Err(_) => return Err(EngineError::Deadline),
        },
    };
    answer.unwrap_or(Err(EngineError::Stopped))
}

/// A job's place in the queue: dropped before the answer came, it takes the job out.
struct Place<'a> {
    shared: &'a Shared,
    ticket: Option<Ticket>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && self.shared.queue.withdraw(ticket)
        {
            self.shared.counts.withdrawn.fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("info", &self.handle.info).finish_non_exhaustive()
    }
}
