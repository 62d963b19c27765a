//! Which engines this process has, and loading a graph with one of them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::child::{ChildConfig, Children};
use crate::backend::{Engine, Loaded, Loading};
use crate::graph::Setup;
use crate::queue::Bounds;
use crate::turnstile::{Caller, Turnstile};
use crate::weights::{Residence, Source};
use crate::{Batching, EngineError, Graph, Padding, Residency, Share, onnx, priority};

/// Most sessions of one graph, and most threads of one session.
const MAX_THREADS: usize = 1_024;
/// Most jobs that may wait for one graph.
const MAX_QUEUE: usize = 1 << 20;

/// How long a job may be expected to wait where the options do not say, milliseconds.
const WAIT_MS: u64 = 1_000;

/// Which engine a graph asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// ONNX Runtime where its library is found, else rten; or what [`Engines::with_auto`] says.
    #[default]
    Auto,
    Rten,
    Onnxruntime,
}

/// Where a graph runs. What was asked for is used or refused, never replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    #[default]
    Cpu,
    /// Any GPU that an engine here has a provider for.
    Gpu,
    /// ONNX Runtime's CUDA provider.
    Cuda,
}

/// Which process a graph runs in. The later is the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// This one: the fastest way, and what a graph does to its engine it does to this process. A graph whose run may trap
    /// gets a child instead.
    #[default]
    Process,
    /// A child with limits, which is ended when a run takes too long, and started again when it has ended.
    Child,
}

/// How to load one graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphOptions {
    /// The engine.
    pub engine: EngineChoice,
    /// The device.
    pub device: Device,
    /// Sessions, each with its own thread; the machine's cores when not given.
    pub sessions: Option<usize>,
    /// Threads inside each session; 1 when not given.
    pub threads: Option<usize>,
    /// Jobs that may wait; 16 a session, at least 64, when not given.
    pub queue: Option<usize>,
    /// The process.
    pub isolation: Isolation,
    /// How long a job may be expected to wait, milliseconds; further ones are refused at once. 1,000 when neither this nor
    /// `queue` is given.
    pub queue_wait_ms: Option<u64>,
    /// How jobs are to run together; [`Graph::set_batching`] puts it into force.
    pub batching: Batching,
    /// How inputs of different lengths may run together; [`Graph::set_padding`] puts it into force.
    pub padding: Option<Padding>,
}

impl GraphOptions {
    /// As far as sessions depend on them: graphs of one file whose options agree in this can share theirs
    /// ([`Graph::for_another`]).
    pub fn of_sessions(&self) -> GraphOptions {
        let GraphOptions { engine, device, sessions, threads, isolation, .. } = *self;
        GraphOptions { engine, device, sessions, threads, isolation, ..GraphOptions::default() }
    }

    /// How long a user's part of the queue before so many sessions may become.
    pub(crate) fn bounds(&self, sessions: usize) -> Result<Bounds, EngineError> {
        let jobs = bounded(self.queue, (16 * sessions).max(64), MAX_QUEUE, "queue")?;
        // Who names a number of jobs means that number.
        let wait = self.queue_wait_ms.or(self.queue.is_none().then_some(WAIT_MS)).map(Duration::from_millis);
        Ok(Bounds { jobs, wait, workers: sessions })
    }
}

/// Where the ONNX Runtime library is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnnxRuntimeLibrary {
    /// Look where the system and `make onnxruntime` put it.
    #[default]
    Search,
    /// This file or nothing: a library that does not load is an error.
    Path(PathBuf),
    /// Do not use it.
    Off,
}

/// What the process may use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EnginesConfig {
    /// ONNX Runtime's library.
    pub onnxruntime: OnnxRuntimeLibrary,
    /// Further folders that [`OnnxRuntimeLibrary::Search`] looks into, before the system's.
    pub search: Vec<PathBuf>,
}

/// An engine of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    /// `rten` or `onnxruntime`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The execution providers that it has here.
    pub providers: Vec<String>,
}

/// What a graph is loaded for.
enum Purpose {
    Serve,
    /// Its weights may leave memory and are loaded again from here.
    ServeFrom(Source),
    /// To find out what it needs.
    Try,
}

/// The engines of this process.
pub struct Engines {
    /// The preferred one first.
    engines: Vec<Arc<dyn Engine>>,
    /// What [`Engines::available`] lends, in the same order.
    infos: Vec<EngineInfo>,
    /// What the engines were found with, for children to find the same.
    config: EnginesConfig,
    /// What [`EngineChoice::Auto`] means here.
    auto: EngineChoice,
    /// What starts children, where this process may.
    children: Option<Children>,
    /// What the runs of all graphs share.
    cores: Arc<Turnstile>,
    /// The weights that can leave memory.
    weights: Residency,
    /// Whether this process may end without harm.
    expendable: bool,
}

impl Engines {
    /// Finds and initialises the engines.
    ///
    /// A process has one ONNX Runtime library: the first that was initialised. Asking for another later is an error.
    ///
    /// # Errors
    /// When a library that was named does not load or is too old.
    pub fn new(config: EnginesConfig) -> Result<Engines, EngineError> {
        let engines: Vec<Arc<dyn Engine>> = [onnxruntime(&config)?, rten()].into_iter().flatten().collect();
        let infos = engines.iter().map(|engine| engine.info().clone()).collect();
        let cores = Turnstile::new(available_parallelism().map_or(1, usize::from));
        let (auto, weights) = (EngineChoice::Auto, Residency::new(None));
        Ok(Engines { engines, infos, config, auto, children: None, cores, weights, expendable: false })
    }

    /// Who calls in the name of a model, for what else than a run it uses the cores.
    pub fn caller(&self, tenant: &Arc<str>, share: &Share) -> Caller {
        Caller::new(&self.cores, tenant, &share.name, share.weight)
    }

    /// Lets [`EngineChoice::Auto`] mean this engine, whoever asks for it.
    pub fn with_auto(self, auto: EngineChoice) -> Engines {
        Engines { auto, ..self }
    }

    /// Keeps the weights of graphs that can be loaded again within a budget: bytes of their files, as often as an
    /// engine holds them.
    pub fn with_weights(self, budget: Option<u64>) -> Engines {
        Engines { weights: Residency::new(budget), ..self }
    }

    /// Lets graphs be loaded with [`Isolation::Child`]. Where there may be no further child, an idle graph that can be
    /// loaded again makes room.
    pub fn with_children(self, config: ChildConfig) -> Engines {
        let children = Some(Children::new(config, self.config.clone()));
        Engines { children, ..self }
    }

    /// For a process that may end without harm, being a child already: graphs run in it as asked, those whose run may
    /// trap included.
    pub fn expendable(self) -> Engines {
        Engines { expendable: true, ..self }
    }

    /// The weights of graphs that can be loaded again.
    pub fn weights(&self) -> &Residency {
        &self.weights
    }

    /// What is here, the preferred one first.
    pub fn available(&self) -> &[EngineInfo] {
        &self.infos
    }

    /// Reads `onnx` with the bounded reader, then loads it into its sessions. Blocks; for seconds where the graph is
    /// large.
    ///
    /// # Errors
    /// When the reader or the engine refuses the graph, or the engine or device is not here.
    pub fn load(&self, onnx: Bytes, options: &GraphOptions) -> Result<Graph, EngineError> {
        self.load_as(onnx, options, Purpose::Serve)
    }

    /// As [`Engines::load`], for a graph whose weights may leave memory when others need the room: its next job waits until
    /// they were loaded again from `source`.
    ///
    /// # Errors
    /// As [`Engines::load`].
    pub fn load_with(&self, onnx: Bytes, source: Source, options: &GraphOptions) -> Result<Graph, EngineError> {
        self.load_as(onnx, options, Purpose::ServeFrom(source))
    }

    /// As [`Engines::load`], for [`crate::calibrate`]: the graph keeps the inputs of the first job that it answers.
    ///
    /// # Errors
    /// As [`Engines::load`].
    pub fn load_to_try(&self, onnx: Bytes, options: &GraphOptions) -> Result<Graph, EngineError> {
        self.load_as(onnx, options, Purpose::Try)
    }

    fn load_as(&self, onnx: Bytes, options: &GraphOptions, purpose: Purpose) -> Result<Graph, EngineError> {
        let engine = self.choose(options)?;
        let model = Arc::new(onnx::read(&onnx)?);
        let threads = bounded(options.threads, 1, MAX_THREADS, "threads")?;
        let cores = available_parallelism().map_or(1, usize::from);
        // A device runs one graph at a time; more sessions on it would hold more copies of the weights.
        let sessions = if options.device == Device::Cpu { (cores / threads).max(1) } else { 1 };
        let sessions = bounded(options.sessions, sessions, MAX_THREADS, "sessions")?;
        let bounds = options.bounds(sessions)?;
        let isolation = self.isolation(options.isolation, engine.as_ref(), &model);
        let copies = engine.copies(options.device, sessions, threads);
        let (children, device, weights) = (self.children.clone(), options.device, self.weights.clone());
        let (engine, read) = (Arc::clone(engine), Arc::clone(&model));
        let load = move |onnx: Bytes| -> Result<Loaded, EngineError> {
            let children = children.as_ref();
            let loading = Loading { onnx, model: Arc::clone(&read), device, sessions, threads };
            match isolation {
                // The threads that the engine starts are as those that give it work.
                Isolation::Process if device == Device::Cpu => priority::lowered(|| engine.load(loading))
                    .unwrap_or_else(|_| Err(EngineError::Failed("the engine panicked while it loaded".into()))),
                Isolation::Process => engine.load(loading),
                Isolation::Child => {
                    let none = || EngineError::Unavailable("no process for graphs can be started here".into());
                    children.ok_or_else(none)?.load(engine.info(), loading, &weights)
                }
            }
        };
        let keeps_sample = matches!(purpose, Purpose::Try);
        let (loaded, residence) = match purpose {
            Purpose::Serve | Purpose::Try => (load(onnx)?, None),
            Purpose::ServeFrom(source) => {
                let bytes = (onnx.len() as u64).saturating_mul(copies as u64);
                let held = self.weights.hold(bytes);
                let loaded = load(onnx)?;
                let reload = Box::new(move || load(source()?));
                (loaded, Some(Residence::new(self.weights.clone(), (bytes, held), reload)))
            }
        };
        // A run on another device waits for it, and uses next to none of a core.
        let cores = (options.device == Device::Cpu).then(|| Arc::clone(&self.cores));
        let setup = Setup { bounds, keeps_sample, cores, padding: options.padding.clone(), residence };
        Graph::start(loaded, &model, setup)
    }

    /// Where a graph runs that is to run in `wanted`: one whose run may trap in native code never runs where others do,
    /// whoever asked for that.
    fn isolation(&self, wanted: Isolation, engine: &dyn Engine, model: &onnx::Model) -> Isolation {
        let traps = engine.traps() && !self.expendable;
        match &model.may_trap {
            Some(node) if traps && wanted == Isolation::Process => {
                tracing::info!(node, "a graph gets a process of its own: it divides integers, which may end a process");
                Isolation::Child
            }
            _ => wanted,
        }
    }

    /// What `auto` means here, on this device; any other choice is itself. It stays `auto` where nothing here can run it.
    pub fn chosen(&self, choice: EngineChoice, device: Device) -> EngineChoice {
        let options = GraphOptions { engine: choice, device, ..GraphOptions::default() };
        match self.that_runs(&options).map(|engine| &*engine.name) {
            Some("rten") => EngineChoice::Rten,
            Some("onnxruntime") => EngineChoice::Onnxruntime,
            _ => choice,
        }
    }

    /// The engine that runs a graph with these options; `None` where nothing here can.
    pub fn that_runs(&self, options: &GraphOptions) -> Option<&EngineInfo> {
        self.choose(options).ok().map(|engine| engine.info())
    }

    /// The engine with a name.
    pub(crate) fn named(&self, name: &str) -> Option<&dyn Engine> {
        self.find(name).map(Arc::as_ref)
    }

    fn find(&self, name: &str) -> Option<&Arc<dyn Engine>> {
        self.engines.iter().find(|e| e.info().name == name)
    }

    /// The engine for a choice and a device.
    fn choose(&self, options: &GraphOptions) -> Result<&Arc<dyn Engine>, EngineError> {
        let named = |name: &str| self.find(name);
        let missing = |what: &str| EngineError::Unavailable(format!("{what} is not here"));
        let choice = if options.engine == EngineChoice::Auto { self.auto } else { options.engine };
        match (choice, options.device) {
            (EngineChoice::Rten, Device::Cpu) => named("rten").ok_or_else(|| missing("the engine rten")),
            (EngineChoice::Rten, _) => Err(EngineError::Unavailable(
                "rten runs on the CPU only: a GPU needs ONNX Runtime with its CUDA provider".into(),
            )),
            (EngineChoice::Onnxruntime, _) => named("onnxruntime").ok_or_else(|| missing("ONNX Runtime's library")),
            (EngineChoice::Auto, Device::Cpu) => self.engines.first().ok_or_else(|| missing("any engine")),
            (EngineChoice::Auto, _) => {
                named("onnxruntime").ok_or_else(|| missing("a GPU needs ONNX Runtime, whose library"))
            }
        }
    }
}

/// ONNX Runtime, where it is found.
#[cfg(feature = "onnxruntime")]
fn onnxruntime(config: &EnginesConfig) -> Result<Option<Arc<dyn Engine>>, EngineError> {
    Ok(crate::backend::onnxruntime::find(config)?.map(|engine| Arc::new(engine) as Arc<dyn Engine>))
}

/// What a build without the backend says to who asks for it.
#[cfg(not(feature = "onnxruntime"))]
fn onnxruntime(config: &EnginesConfig) -> Result<Option<Arc<dyn Engine>>, EngineError> {
    match &config.onnxruntime {
        OnnxRuntimeLibrary::Path(_) => Err(EngineError::Unavailable("this build has no ONNX Runtime backend".into())),
        OnnxRuntimeLibrary::Search | OnnxRuntimeLibrary::Off => Ok(None),
    }
}

/// rten, where it is built in.
fn rten() -> Option<Arc<dyn Engine>> {
    #[cfg(feature = "rten")]
    let engine = Some(Arc::new(crate::backend::rten::Rten::new()) as Arc<dyn Engine>);
    #[cfg(not(feature = "rten"))]
    let engine = None;
    engine
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").field("available", &self.infos).finish_non_exhaustive()
    }
}

/// A setting within its bounds, or its default.
fn bounded(given: Option<usize>, default: usize, most: usize, what: &str) -> Result<usize, EngineError> {
    match given {
        None => Ok(default.min(most)),
        Some(n) if (1..=most).contains(&n) => Ok(n),
        Some(n) => Err(EngineError::InvalidInput(format!("{what} must be from 1 to {most}, not {n}"))),
    }
}
