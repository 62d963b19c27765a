//! The seam behind which every engine stands.

pub mod child;
#[cfg(feature = "onnxruntime")]
pub(crate) mod onnxruntime;
#[cfg(feature = "rten")]
pub(crate) mod rten;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::onnx::Model;
use crate::{Device, EngineError, EngineInfo, GraphInfo, Tensor};

/// One engine that can load graphs.
pub trait Engine: Send + Sync {
    /// What it is: `rten` or `onnxruntime`, and what it has here.
    fn info(&self) -> &EngineInfo;

    /// Whether a run that divides integers may end the process: whether it is native code that leaves that to the CPU.
    fn traps(&self) -> bool {
        false
    }

    /// How many copies of a graph's weights so many sessions of so many threads hold.
    fn copies(&self, device: Device, sessions: usize, threads: usize) -> usize {
        let _ = (device, sessions, threads);
        1
    }

    /// Loads a graph into its sessions, which share its weights where the engine can. Blocks.
    ///
    /// # Errors
    /// When the engine refuses the graph, or the device is not here.
    fn load(&self, graph: Loading) -> Result<Loaded, EngineError>;
}

/// A graph that has passed the bounded reader, and how to load it.
#[derive(Clone, Debug)]
pub struct Loading {
    /// The file.
    pub onnx: Bytes,
    /// What the reader found in it.
    pub model: Arc<Model>,
    /// Where it runs.
    pub device: Device,
    /// How many sessions; at least one.
    pub sessions: usize,
    /// Threads in each; at least one.
    pub threads: usize,
}

/// A graph in an engine.
pub struct Loaded {
    /// What runs it.
    pub info: GraphInfo,
    /// Each goes to a worker thread of its own.
    pub sessions: Vec<Box<dyn Session>>,
}

/// What one worker thread runs a graph with.
pub trait Session: Send {
    /// Runs it once. Inputs are in declaration order with the declared types, checked by the caller; `outputs` are
    /// positions in the declaration, each once, and so the answer is.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a value that the engine cannot hold, [`EngineError::InvalidGraph`] where an output is
    /// of another type than declared, else [`EngineError::Failed`].
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, EngineError>;

    /// Calls `work` with this session where its runs are cheapest, and returns when `work` does: an engine with a
    /// thread pool of its own calls it on one of that pool's threads, so that no run has to change threads.
    fn serve(&mut self, work: &mut Work<'_>);

    /// Ends the runs that follow after `most`, or only when they take longer than any may. True where that is earlier.
    /// An engine that cannot end a run does nothing.
    fn limit(&mut self, most: Option<Duration>) -> bool {
        let _ = most;
        false
    }

    /// Until when somebody waits for the runs that follow: none of them waits longer for a process to run in. `None` for
    /// as long as that takes.
    fn wanted(&mut self, until: Option<Instant>) {
        let _ = until;
    }

    /// Says that the runs that follow may end their process, or no longer that: others' are kept out of it meanwhile.
    fn suspect(&mut self, may_end_it: bool) {
        let _ = may_end_it;
    }

    /// Tells `told` from now on when a run begins to wait for a process to run in (true), and when that is over
    /// (false).
    fn on_waits(&mut self, told: Box<Told>) {
        let _ = told;
    }

    /// How long the runs since this was last called have waited for a process to run in. It says nothing of what a run
    /// takes.
    fn waited(&mut self) -> Duration {
        Duration::ZERO
    }

    /// Whether a run would begin now, or wait for no longer than its process takes to start.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// Another way to what this session runs, for a run on whatever thread, beside this one's; none where runs need a
    /// thread or a process of their own.
    fn beside(&self) -> Option<Box<dyn Session>> {
        None
    }

    /// Another session on the same weights, for a worker of its own; none where that would hold them twice.
    fn another(&self) -> Option<Box<dyn Session>> {
        self.beside()
    }
}

/// Who is told of waits.
pub type Told = dyn Fn(bool) + Send;

/// A worker's loop.
pub type Work<'a> = dyn FnMut(&mut dyn Session) + Send + 'a;
