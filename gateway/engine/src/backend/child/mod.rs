//! Graphs in a process of their own, behind the same seam as the engines: the parent's sessions hand tensors through
//! shared memory to as many sessions in a child, which runs the graph with one of the engines here.
//!
//! One child runs one graph, so that its sessions share the weights. What it says is not believed before it was checked:
//! sizes, types, shapes, and values that not every byte can be; tensors are copied out of the shared memory first, so
//! that the child cannot change them after that. A run that takes too long, and a child that says what cannot be, end
//! the child; it is started again (`restarts`), and those whose runs were in it get their answers from the next
//! (`presence`), but for who has ended it.

mod arena;
mod entry;
mod filter;
mod presence;
mod restarts;
mod session;
mod slots;
mod socket;
mod supervisor;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use entry::main;

use super::{Loaded, Loading, Session};
use crate::process::Program;
use crate::{EngineError, EngineInfo, EnginesConfig, GraphInfo, Isolation, Residency};
use entry::Job;
use session::Remote;
use slots::Slots;
use supervisor::{Handle, Supervisor};

/// How children run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChildConfig {
    /// What a child is: a program whose first act is to call [`main`].
    pub program: Program,
    /// Memory of one child, bytes; the shared memory of its sessions is not counted.
    pub memory: u64,
    /// Shared memory of one session, bytes: what the tensors of one run may take.
    pub tensors: u64,
    /// The longest that one run may take.
    pub run: Duration,
    /// The longest that loading the graph may take.
    pub load: Duration,
    /// Children at the same time.
    pub most: usize,
}

/// Loads graphs into children.
#[derive(Clone)]
pub(crate) struct Children {
    config: ChildConfig,
    engines: EnginesConfig,
    slots: Arc<Slots>,
}

impl Children {
    pub fn new(config: ChildConfig, engines: EnginesConfig) -> Children {
        let slots = Slots::new(config.most);
        Children { config, engines, slots }
    }

    /// Loads a graph with `engine`, which the child has as well. Where there may be no further child, the one of
    /// `others` leaves that is idle and was used least recently. Blocks.
    pub fn load(&self, engine: &EngineInfo, graph: Loading, others: &Residency) -> Result<Loaded, EngineError> {
        let slot = self.slots.take(|| others.evict_process())?;
        let Loading { onnx, model, device, sessions, threads } = graph;
        let provider = if device == crate::Device::Cpu { "CPU" } else { "CUDA" };
        let ChildConfig { memory, tensors, .. } = self.config;
        let (engines, name) = (self.engines.clone(), engine.name.clone());
        let job = Job { engines, engine: name, device, sessions, threads, memory, tensors };
        let supervisor = Supervisor::start(job, &onnx, self.config.clone(), slot)?;
        let mut nodes = supervisor.nodes();
        nodes.retain(|provider, _| engine.providers.contains(provider));
        let info = GraphInfo {
            engine: engine.name.clone(),
            version: engine.version.clone(),
            provider: provider.into(),
            nodes,
            sessions,
            threads,
            isolation: Isolation::Child,
        };
        let handle = Arc::new(Handle(supervisor));
        let outputs: Arc<[_]> = model.spec.outputs.iter().map(|output| output.datatype).collect();
        let session = |index| -> Result<Box<dyn Session>, EngineError> {
            Ok(Box::new(Remote::new(index, Arc::clone(&handle), Arc::clone(&outputs))?))
        };
        Ok(Loaded { info, sessions: (0..sessions).map(session).collect::<Result<_, _>>()? })
    }
}
