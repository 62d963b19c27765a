//! A loaded graph: the handle that callers hold, the queue behind it, and the sessions' worker threads.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::backend::Loaded;
use crate::check::Signature;
use crate::inline::{self, Inline};
use crate::onnx::Model;
use crate::padding::Pads;
use crate::queue::{Answer, Bounds, Queue, Ticket, Waiting};
use crate::turnstile::Turnstile;
use crate::user::User;
use crate::weights::{self, Crew, Residence};
use crate::worker::{self, Shared};
use crate::{BatchPolicy, EngineError, GraphCounts, GraphOptions, GraphSpec, Isolation, Padding, Tensor};

/// What runs a graph, for metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphInfo {
    /// The engine's name: `rten` or `onnxruntime`.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The execution provider: `CPU`, `CUDA`.
    pub provider: String,
    /// Where a GPU was asked for, the graph's nodes by the provider that they were given to when it was loaded: those
    /// that [`GraphInfo::provider`] does not take run on the CPU. Empty where all run there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, usize>,
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
    /// In whose name, and for how large a share.
    pub share: Share,
}

/// A claim to a share of an engine: of a graph's queue, and of the machine's cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The model that calls. Jobs of a tenant's different models may run together, but each model waits in its own lane.
    pub name: Arc<str>,
    /// Its weight against others; at least 1.
    pub weight: u32,
}

impl Default for Share {
    fn default() -> Share {
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
        Share { name: Arc::clone(&NAME), weight: 1 }
    }
}

/// The tenant of who names none.
pub fn default_tenant() -> Arc<str> {
    static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| "default".into());
    Arc::clone(&DEFAULT)
}

impl Default for Job {
    fn default() -> Job {
        Job {
            inputs: Vec::new(),
            outputs: Vec::new(),
            deadline: None,
            tenant: default_tenant(),
            share: Share::default(),
        }
    }
}

/// A loaded graph, as one of its users has it. Cloning shares it; when the last handle of all users goes, its sessions end.
#[derive(Clone)]
pub struct Graph {
    handle: Arc<Handle>,
    user: Arc<User>,
}

/// What a graph is started with.
pub(crate) struct Setup {
    /// How long its first user's part of the queue may become.
    pub bounds: Bounds,
    /// Whether it keeps the inputs of its first job.
    pub keeps_sample: bool,
    /// The cores that its runs share with other graphs'; `None` where they use none.
    pub cores: Option<Arc<Turnstile>>,
    /// How that user's inputs of different lengths may run together.
    pub padding: Option<Padding>,
    /// Where its weights can leave memory.
    pub residence: Option<Residence>,
}

/// What all users of a graph share.
pub(crate) struct Handle {
    signature: Signature,
    pub(crate) info: GraphInfo,
    weight_bytes: u64,
    pub(crate) shared: Arc<Shared>,
    /// Starts its workers.
    pub(crate) crew: Crew,
    /// Where its weights can leave memory.
    pub(crate) residence: Option<Residence>,
}

impl Drop for Handle {
    /// No job can be left: each borrows a handle. The workers end by themselves, and the weights with the last of
    /// them: the thread that drops a graph does not wait for that.
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Graph {
    /// Starts the workers of a graph that an engine has loaded. Each job runs alone until [`Graph::set_batching`].
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(loaded: Loaded, model: &Model, setup: Setup) -> Result<Graph, EngineError> {
        let Loaded { info, sessions } = loaded;
        let Setup { bounds, keeps_sample, cores, padding, residence } = setup;
        let user = Arc::new(user(bounds, padding.as_ref(), &model.spec)?);
        let shared = Arc::new(Shared {
            queue: Queue::new(cores.clone()),
            inline: Inline::default(),
            sample: keeps_sample.then(OnceLock::new),
        });
        let crew = Crew { cores, inline: inline::is_steady(&model.operators) };
        // Those that have started end when no more can be had.
        let mut workers = Vec::new();
        crew.start(sessions, &shared, &info, &mut workers).inspect_err(|_| shared.queue.close())?;
        let (signature, weight_bytes) = (Signature::new(model.spec.clone()), model.weight_bytes);
        let handle = Arc::new(Handle { signature, info, weight_bytes, shared, crew, residence });
        if let Some(residence) = &handle.residence {
            handle.shared.queue.set_residency(residence.residency());
            residence.enter(workers, &handle);
        }
        Ok(Graph { handle, user })
    }

    /// The same sessions for another user, whose jobs wait and run together as these options say, and are counted apart.
    /// Each of them runs alone until [`Graph::set_batching`].
    ///
    /// # Errors
    /// When the options are out of their bounds, or name what the graph does not have.
    pub fn for_another(&self, options: &GraphOptions) -> Result<Graph, EngineError> {
        let handle = Arc::clone(&self.handle);
        let bounds = options.bounds(handle.info.sessions)?;
        let user = user(bounds, options.padding.as_ref(), self.spec())?.beside(&self.user);
        Ok(Graph { handle, user: Arc::new(user) })
    }

    /// What the graph declares.
    pub fn spec(&self) -> &GraphSpec {
        &self.handle.signature.spec
    }

    /// What runs it.
    pub fn info(&self) -> &GraphInfo {
        &self.handle.info
    }

    /// Bytes of all its weights, as the file has them. What an engine adds is not counted: copies in another layout, or
    /// for sessions that share none.
    pub fn weight_bytes(&self) -> u64 {
        self.handle.weight_bytes
    }

    /// Whether the weights are in memory; else the next job waits for them to be loaded again.
    pub fn is_resident(&self) -> bool {
        !self.handle.shared.queue.is_dismissed()
    }

    /// Whether the declaration leaves it open that jobs run together.
    ///
    /// # Errors
    /// Says what rules it out.
    pub fn declared_axis(&self) -> Result<(), &str> {
        self.handle.signature.axis.as_ref().copied().map_err(String::as_str)
    }

    /// Lets this user's jobs run together from now on. Whoever calls this knows that the graph's rows do not change each
    /// other. A graph whose declaration rules it out goes on running each job alone.
    pub fn set_batching(&self, policy: BatchPolicy) {
        if self.handle.signature.axis.is_ok() {
            self.handle.shared.queue.set_policy(&self.user, policy);
        }
    }

    /// Lets this user's jobs of different lengths run together as the options say, or not. Whoever calls this knows that
    /// filling rows up does not change what is left of them.
    pub fn set_padding(&self, on: bool) {
        self.user.set_padded(on);
    }

    /// Whether jobs of different lengths run together.
    pub fn padded(&self) -> bool {
        self.user.pads().is_some()
    }

    /// How the options would have jobs of different lengths run together.
    pub(crate) fn pads(&self) -> Option<&Pads> {
        self.user.asked_pads()
    }

    /// How jobs are gathered.
    pub fn batching(&self) -> BatchPolicy {
        self.user.policy()
    }

    /// The inputs of the first job that was answered, for a graph that [`crate::Engines::load_to_try`] has loaded.
    pub(crate) fn sample(&self) -> Option<&[Tensor]> {
        self.handle.shared.sample.as_ref()?.get().map(Vec::as_slice)
    }

    /// Jobs of all users that wait in the queue now.
    pub fn queued(&self) -> usize {
        self.handle.shared.queue.len()
    }

    /// Those of them that one [`Share::name`] asked for, of all tenants.
    pub fn queued_by(&self, name: &str) -> usize {
        self.handle.shared.queue.of(name)
    }

    /// What was counted so far for this user.
    pub fn counts(&self) -> GraphCounts {
        self.user.counts.read()
    }

    /// Runs of the engine so far, for all users of these sessions: a run that held jobs of several is one.
    pub fn runs(&self) -> u64 {
        self.user.counts.runs()
    }

    /// Names its sessions: users that share them are told the same, and others something else.
    pub fn sessions_id(&self) -> usize {
        Arc::as_ptr(&self.handle).addr()
    }

    /// Runs one job: names, types and shapes are checked against the declaration, then it is queued. A future that is
    /// dropped withdraws its job if that has not started.
    ///
    /// A job with a deadline needs a runtime with its timer enabled: when the deadline passes the job is given up,
    /// though a run that has started goes on to its end. A run that is known to take microseconds may happen within the
    /// poll.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] or [`EngineError::QueueLong`] at once when too much waits; the others as their
    /// documentation says.
    pub async fn compute(&self, job: Job) -> Result<Vec<(String, Tensor)>, EngineError> {
        let Handle { signature, shared, .. } = &*self.handle;
        let (deadline, tenant, share) = (job.deadline, job.tenant.clone(), job.share.clone());
        let job = signature.check(job)?;
        let since = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= since) {
            return Err(EngineError::Deadline);
        }
        let names: Vec<String> =
            job.outputs.iter().filter_map(|&at| Some(signature.spec.outputs.get(at)?.name.clone())).collect();
        let named = |tensors| Ok(names.into_iter().zip(tensors).collect());
        let _use = self.handle.residence.as_ref().map(Residence::begin);
        if let Some(answer) = worker::here(shared, &self.user, &job, since) {
            return named(answer?);
        }
        let (reply, answer) = oneshot::channel();
        let user = Arc::clone(&self.user);
        let ticket = shared.queue.push(Waiting { job, tenant, share, user, deadline, reply, since })?;
        let mut place = Place { graph: self, ticket: Some(ticket) };
        if shared.queue.claims_recall() {
            weights::recall(&self.handle);
        }
        let tensors = wait(answer, deadline).await?;
        place.ticket = None;
        named(tensors)
    }
}

/// A user of a graph that declares `spec`.
fn user(bounds: Bounds, padding: Option<&Padding>, spec: &GraphSpec) -> Result<User, EngineError> {
    let pads = padding.map(|padding| Pads::new(padding, spec)).transpose()?.map(Arc::new);
    Ok(User::new(bounds, pads))
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
    graph: &'a Graph,
    ticket: Option<Ticket>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && self.graph.handle.shared.queue.withdraw(ticket)
        {
            self.graph.user.counts.withdrawn.fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("info", &self.handle.info).finish_non_exhaustive()
    }
}
