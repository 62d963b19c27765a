//! What the server tells the child, and what the child tells the server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use windrose_engine::backend::child::ChildConfig;
use windrose_engine::process;
use windrose_engine::{
    Calibration, EngineChoice, EngineError, Engines, EnginesConfig, Graph, GraphInfo, GraphOptions, GraphSpec,
};
use windrose_sandbox::{
    Grants, Import, Limits, Module, ModuleError, ModuleKind, Program, ProgramConfig, Sandbox, SandboxConfig,
};

use crate::config::{Budget, Config, MemoryConfig};
use crate::control::log::Preparation;

/// What server and child build in the same way, so that what one compiled the other can load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// The compiled modules.
    pub cache: PathBuf,
    /// The key that authenticates them, outside the cache.
    pub cache_key: PathBuf,
    /// Instances at the same time.
    pub instances: u32,
    /// The most linear memory of an instance, bytes.
    pub memory: u64,
    /// What may stay in memory.
    pub budgets: MemoryConfig,
    /// Where ONNX Runtime's library is.
    pub engines: EnginesConfig,
    /// What `auto` means, to graphs and to modules that load some.
    pub engine: EngineChoice,
    /// How graphs run in children.
    pub children: ChildConfig,
}

impl Host {
    /// As the configuration says.
    pub fn new(config: &Config) -> Host {
        let children = ChildConfig {
            program: process::Program::this("engine"),
            memory: config.children.memory,
            tensors: config.ceiling.limits.tensor_memory,
            run: config.children.run,
            load: config.prepare.wall,
            most: config.children.most,
        };
        Host {
            cache: config.dir.join("cache"),
            cache_key: config.dir.join("cache.key"),
            instances: config.instances,
            memory: config.ceiling.limits.memory,
            budgets: config.memory,
            engines: config.engines.clone(),
            engine: config.engine,
            children,
        }
    }

    /// The sandbox of this process.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    pub fn sandbox(&self) -> Result<Sandbox, ModuleError> {
        Sandbox::new(SandboxConfig {
            cache: Some(self.cache.clone()),
            cache_key: Some(self.cache_key.clone()),
            instances: self.instances,
            memory: self.memory,
            modules: Some(self.budgets.modules),
        })
    }

    /// The engines of this process.
    ///
    /// # Errors
    /// As [`Engines::new`].
    pub fn engines(&self) -> Result<Engines, EngineError> {
        let engines = Engines::new(self.engines.clone())?.with_auto(self.engine);
        Ok(engines.with_children(self.children.clone()).with_weights(self.budgets.weights))
    }
}

/// Everything of one model that does not depend on the process that runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Binding {
    /// Name and version, for logs.
    pub label: String,
    /// The folder of its assets.
    pub assets: Option<PathBuf>,
    /// Arguments of a command.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// What a call may use, ceiling included.
    pub limits: Limits,
    /// What was granted, ceiling included.
    pub grants: Grants,
    /// Addresses that no grant opens.
    pub closed: Vec<SocketAddr>,
    /// The model's share of the machine.
    pub weight: u32,
}

impl Binding {
    /// The module bound to its graphs.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub fn program(
        &self,
        sandbox: &Sandbox,
        module: Module,
        graphs: BTreeMap<String, Graph>,
        engines: Arc<Engines>,
    ) -> Result<Program, ModuleError> {
        let config = ProgramConfig {
            module,
            label: self.label.clone(),
            graphs,
            assets: self.assets.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            limits: self.limits.clone(),
            grants: self.grants.clone(),
            engines,
            closed: self.closed.clone(),
            weight: self.weight,
        };
        Program::new(sandbox, config)
    }
}

/// One preparation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// How to build sandbox and engines.
    pub host: Host,
    /// What the child may use.
    pub budget: Budget,
    /// The component's file; without one, the built-in pass-through module.
    pub module: Option<PathBuf>,
    /// The graphs' files and options.
    pub graphs: BTreeMap<String, (PathBuf, GraphOptions)>,
    /// What is known already about rows that run together, by graph: it is not tried again.
    pub batching: BTreeMap<String, Calibration>,
    /// The rest of the model.
    pub binding: Binding,
    /// The self-test.
    pub test: Option<TestFiles>,
}

/// The self-test's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestFiles {
    /// What is sent.
    pub input: PathBuf,
    /// What must come back.
    pub output: Option<PathBuf>,
    /// The largest relative difference of a number.
    pub tolerance: f64,
    /// Method of the request to an http component, where it is named.
    pub method: Option<String>,
    /// Its path and query, where they are named.
    pub path: Option<String>,
}

/// Progress of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// `wait`, `initialise`, `compile`, `graph NAME`, `describe`, `test`, `batching`, `load`, `publish`.
    pub stage: String,
    /// Whether it started or ended.
    pub status: Status,
    /// How long it took, milliseconds, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Started,
    Done,
}

/// What survived, as the child saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// sha256 of the module.
    pub module_digest: String,
    /// What it is served as.
    pub kind: ModuleKind,
    /// What it imports.
    pub imports: Vec<Import>,
    /// Inputs and outputs of a module of the world `model`.
    pub signature: Option<GraphSpec>,
    /// The graphs.
    pub graphs: BTreeMap<String, GraphReport>,
    /// Milliseconds by stage.
    pub timings_ms: BTreeMap<String, u64>,
    /// What stopped nothing.
    pub warnings: Vec<String>,
}

impl From<Prepared> for Preparation {
    fn from(prepared: Prepared) -> Preparation {
        let Prepared { graphs, timings_ms, warnings, .. } = prepared;
        let engine = |info: &GraphInfo| engine_label(&info.engine, &info.version);
        let engines = graphs.iter().map(|(name, graph)| (name.clone(), engine(&graph.info))).collect();
        let batching = graphs.into_iter().map(|(name, graph)| (name, graph.batching)).collect();
        Preparation { timings_ms, warnings, batching, engines }
    }
}

/// An engine as a preparation names it.
pub fn engine_label(name: &str, version: &str) -> String {
    format!("{name} {version}")
}

/// One loaded graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GraphReport {
    /// What runs it.
    pub info: GraphInfo,
    /// What it declares.
    pub spec: GraphSpec,
    /// What running several rows together has shown.
    pub batching: Calibration,
}

/// One line from the child.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A stage started or ended.
    Event(Event),
    /// It worked.
    Done(Box<Prepared>),
    /// It was refused; the message is for the person who deploys.
    Refused(String),
    /// This machine is at fault.
    Host(String),
    /// For the server's log alone: more about what comes next.
    Log(String),
}
