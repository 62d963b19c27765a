//! From a manifest and its blobs to something that answers: what the child does first, and the server after it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use windrose_engine::{Calibration, EngineError, Engines, Graph, GraphOptions, Isolation, Source, default_tenant};
use windrose_sandbox::{Ages, CallContext, CallError, Grants, Import, ModuleError, ModuleKind, PASSTHROUGH, Sandbox};

use super::deployer::Trust;
use super::folder::AssetFolders;
use super::log::Preparation;
use super::manifest::{GraphEntry, Manifest};
use super::prepare::job::{Binding, TestFiles, engine_label};
use super::prepare::{Host, Job};
use super::store::{Store, StoreError, hex_digest};
use crate::admit::Calls;
use crate::config::{Budget, Ceiling};
use crate::snapshot::Served;

/// Why a version could not be loaded. What a deployment meets names no file of this machine.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The module, a graph or the program made of them.
    #[error("{0}")]
    Model(String),
    /// This machine.
    #[error("{0}")]
    Host(String),
}

/// Weights that several versions may share: loaded once, for as long as one of them is there.
pub type SharedGraph = Arc<OnceCell<Graph>>;

/// A version that is ready, and its hold on the weights.
pub struct Loaded {
    /// For the data plane.
    pub served: Arc<Served>,
    /// Keeps the weights shared.
    pub weights: Vec<SharedGraph>,
    /// What the module imports.
    pub imports: Vec<Import>,
    /// What it was granted under the ceiling.
    pub granted: Grants,
}

/// Graphs by digest and the options of their sessions, for as long as somebody has them.
type Weights = HashMap<(String, String), Weak<OnceCell<Graph>>>;

/// Everything that loading needs.
pub struct Loader {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The engines.
    pub engines: Arc<Engines>,
    /// How both were built, for the child.
    pub host: Host,
    /// The least isolation of a graph.
    pub isolation: Isolation,
    /// The most that a model gets.
    pub ceiling: Ceiling,
    /// What a preparation may use.
    pub budget: Budget,
    /// The gateway's own listeners, which no grant opens.
    pub closed: Vec<SocketAddr>,
    /// The assets' folders.
    pub assets: Arc<AssetFolders>,
    weights: Mutex<Weights>,
}

/// What a [`Loader`] is made of.
pub struct LoaderConfig {
    pub host: Host,
    pub isolation: Isolation,
    pub ceiling: Ceiling,
    pub budget: Budget,
    pub closed: Vec<SocketAddr>,
    pub assets: Arc<AssetFolders>,
}

impl Loader {
    /// Builds sandbox and engines.
    ///
    /// # Errors
    /// When this process cannot have them.
    pub fn new(config: LoaderConfig) -> Result<Loader, LoadError> {
        let sandbox = config.host.sandbox().map_err(|error| LoadError::Model(error.to_string()))?;
        let engines = config.host.engines().map_err(|error| LoadError::Model(error.to_string()))?;
        Ok(Loader {
            sandbox,
            engines: Arc::new(engines),
            host: config.host,
            isolation: config.isolation,
            ceiling: config.ceiling,
            budget: config.budget,
            closed: config.closed,
            assets: config.assets,
            weights: Mutex::default(),
        })
    }

    /// What a module that asks for `wanted` may do.
    pub fn granted(&self, wanted: &Grants, trust: Trust) -> Grants {
        if trust.grants { wanted.within(&self.ceiling.grants, &self.closed) } else { Grants::default() }
    }

    /// How a graph is really loaded: ceilings applied, and `auto` as the configuration and what is here mean it, so that who
    /// names that engine shares its sessions.
    pub fn options(&self, wanted: &GraphOptions, trust: Trust) -> GraphOptions {
        let engine = self.engines.chosen(wanted.engine, wanted.device);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (sessions, threads) = self.ceiling.parallel(wanted, cores);
        GraphOptions {
            engine,
            device: wanted.device,
            sessions: Some(sessions),
            threads: Some(threads),
            queue: wanted.queue,
            isolation: wanted.isolation.max(self.isolation).max(trust.isolation),
            queue_wait_ms: wanted.queue_wait_ms,
            batching: wanted.batching,
            padding: wanted.padding.clone(),
        }
    }

    /// Whether loading this module would have to compile it.
    pub async fn needs_compile(&self, manifest: &Manifest) -> bool {
        let digest = module_digest(manifest).to_string();
        let sandbox = self.sandbox.clone();
        !blocking(move || sandbox.is_cached(&digest)).await.unwrap_or(false)
    }

    /// By graph, the engine that would run it and its version, as a preparation names them; `None` where nothing here
    /// can run one of them.
    pub fn engines_of(&self, manifest: &Manifest, trust: Trust) -> Option<BTreeMap<String, String>> {
        let engine = |graph: &GraphEntry| {
            let engine = self.engines.that_runs(&self.options(&graph.options, trust))?;
            Some(engine_label(&engine.name, &engine.version))
        };
        manifest.graphs.iter().map(|(name, graph)| Some((name.clone(), engine(graph)?))).collect()
    }

    /// Whether every graph would be run by the very engine that it was prepared with.
    pub fn is_as_prepared(&self, manifest: &Manifest, preparation: &Preparation, trust: Trust) -> bool {
        self.engines_of(manifest, trust).is_some_and(|engines| engines == preparation.engines)
    }

    /// Removes compiled modules beside these and the built-in one, and files of preparations that were killed. Returns how
    /// many.
    ///
    /// # Errors
    /// When the cache cannot be listed.
    pub async fn sweep(&self, mut keep: Vec<String>, ages: Ages) -> Result<usize, LoadError> {
        keep.push(BUILT_IN.clone());
        let sandbox = self.sandbox.clone();
        let swept = blocking(move || sandbox.sweep(keep.iter().map(String::as_str), ages)).await?;
        swept.map_err(|error| LoadError::Host(error.to_string()))
    }

    /// What the child is to do for this manifest, whose blobs are here.
    ///
    /// # Errors
    /// When the assets cannot be laid out.
    pub async fn job(&self, manifest: &Manifest, trust: Trust, store: &Store) -> Result<Job, LoadError> {
        let path = |digest: &String| store.blob_path(digest);
        let mut graphs = BTreeMap::new();
        for (name, graph) in &manifest.graphs {
            // What prepares is a child already.
            let options = GraphOptions { isolation: Isolation::Process, ..self.options(&graph.options, trust) };
            graphs.insert(name.clone(), (path(&graph.digest)?, options));
        }
        let test = match &manifest.test {
            Some(test) => Some(TestFiles {
                input: path(&test.input)?,
                output: test.output.as_ref().map(path).transpose()?,
                tolerance: test.tolerance,
                method: test.method.clone(),
                path: test.path.clone(),
            }),
            None => None,
        };
        // A few instances are enough there, and the pool's stacks count as the child's memory.
        let host = Host { instances: self.host.instances.min(4), ..self.host.clone() };
        let module = manifest.module.as_ref().map(path).transpose()?;
        let binding = self.binding(manifest, trust, store).await?;
        Ok(Job { host, budget: self.budget, module, graphs, batching: BTreeMap::new(), binding, test })
    }

    async fn binding(&self, manifest: &Manifest, trust: Trust, store: &Store) -> Result<Binding, LoadError> {
        Ok(Binding {
            label: format!("{}/{}", manifest.name, manifest.version),
            assets: self.asset_folder(manifest, store).await?,
            args: manifest.command.args.clone(),
            env: manifest.command.env.clone().into_iter().collect(),
            limits: manifest.limits.within(&self.ceiling.limits),
            grants: self.granted(&manifest.grants, trust),
            closed: self.closed.clone(),
            weight: manifest.weight,
        })
    }

    async fn asset_folder(&self, manifest: &Manifest, store: &Store) -> Result<Option<PathBuf>, LoadError> {
        if manifest.assets.is_empty() {
            return Ok(None);
        }
        let mut paths = HashMap::new();
        for digest in manifest.assets.values() {
            paths.insert(digest.clone(), store.blob_path(digest)?);
        }
        let (folders, assets) = (self.assets.clone(), manifest.assets.clone());
        let made = blocking(move || folders.folder(&assets, |digest| paths.get(digest).cloned().unwrap_or_default()));
        Ok(Some(made.await?.map_err(|error| LoadError::Model(format!("assets: {error}")))?))
    }

    /// Loads a version whose preparation survived, and found `batching` for its graphs, as far as its deployer is trusted.
    /// The module comes from the cache, the weights from whoever has them.
    ///
    /// # Errors
    /// Says what did not load.
    pub async fn load(
        &self,
        manifest: &Manifest,
        batching: &BTreeMap<String, Calibration>,
        trust: Trust,
        store: &Store,
    ) -> Result<Loaded, LoadError> {
        // Never compiled here: that, and what a module's initialiser does, is the preparation's work.
        let (sandbox, digest) = (self.sandbox.clone(), module_digest(manifest).to_string());
        let module = blocking(move || sandbox.module_from_cache(&digest)).await?;
        let module = module.ok_or_else(|| LoadError::Host("the compiled module could not be cached".into()))?;
        let mut graphs = BTreeMap::new();
        let mut weights = Vec::new();
        for (name, entry) in &manifest.graphs {
            let options = self.options(&entry.options, trust);
            let shared = self.shared(&entry.digest, &options);
            let load = self.load_graph(&entry.digest, &options, store);
            let refused = |error: &dyn Display| LoadError::Model(format!("graph `{name}`: {error}"));
            let graph = shared.get_or_try_init(|| load).await.map_err(|error| refused(&error))?;
            let graph = graph.for_another(&options).map_err(|error| refused(&error))?;
            // Else each job runs alone, as it does before anything is known.
            if let Some(found) = batching.get(name).filter(|found| found.is_of(&graph.info().engine)) {
                graph.set_batching(found.policy(entry.options.batching));
                graph.set_padding(found.padding_refused.is_none());
            }
            graphs.insert(name.clone(), graph);
            weights.push(shared);
        }
        let kind = module.kind();
        let module_digest = module.digest().to_string();
        let imports = module.imports().to_vec();
        let binding = self.binding(manifest, trust, store).await?;
        let program = binding.program(&self.sandbox, module, graphs.clone(), self.engines.clone());
        let program = program.map_err(|error| match error {
            ModuleError::Host(_) => sandbox_failed(&error),
            _ => LoadError::Model(format!("module: {error}")),
        })?;
        let signature = match kind {
            ModuleKind::Model => {
                let context = CallContext {
                    deadline: Instant::now() + binding.limits.wall(),
                    request_id: "load".into(),
                    tenant: default_tenant(),
                };
                let described = program.describe(&context).await.map_err(|error| match error {
                    CallError::Host(_) | CallError::NotLoaded(_) => sandbox_failed(&error),
                    _ => LoadError::Model(format!("the module's `describe` failed: {error}")),
                });
                Some(described?)
            }
            ModuleKind::Http | ModuleKind::Command => None,
        };
        let served = Served {
            manifest: Arc::new(manifest.clone()),
            module_digest,
            kind,
            program,
            graphs: graphs.into_iter().collect(),
            signature,
            calls: Arc::new(Calls::new(binding.limits.concurrency)),
            default_timeout: Duration::from_millis(manifest.timeout.default_ms.min(self.ceiling.limits.wall_ms)),
            max_timeout: Duration::from_millis(manifest.timeout.max_ms.min(self.ceiling.limits.wall_ms)),
            limits: binding.limits,
            metrics: Default::default(),
        };
        Ok(Loaded { served: Arc::new(served), weights, imports, granted: binding.grants })
    }

    async fn load_graph(&self, digest: &str, options: &GraphOptions, store: &Store) -> Result<Graph, LoadError> {
        let (bytes, source) = (store.read_blob(digest).await?, source(store.blob_path(digest)?, digest));
        // Queue and batches are each user's own.
        let (engines, options) = (self.engines.clone(), options.of_sessions());
        let loaded = blocking(move || engines.load_with(bytes, source, &options)).await?;
        loaded.map_err(|error: EngineError| LoadError::Model(error.to_string()))
    }

    /// The one cell for these weights in such sessions, loaded or not.
    fn shared(&self, digest: &str, options: &GraphOptions) -> SharedGraph {
        let key = (digest.to_string(), format!("{:?}", options.of_sessions()));
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        weights.retain(|_, cell| cell.strong_count() > 0);
        match weights.get(&key).and_then(Weak::upgrade) {
            Some(cell) => cell,
            None => {
                let cell = SharedGraph::default();
                weights.insert(key, Arc::downgrade(&cell));
                cell
            }
        }
    }
}

/// An error of the sandbox that is this machine's: what it says may name files here, and is for the log. Who deploys is told
/// that there is more.
fn sandbox_failed(error: &dyn Display) -> LoadError {
    tracing::error!(%error, "a version could not be loaded");
    LoadError::Host("the sandbox failed; the gateway's log says why".into())
}

/// Reads a graph's file when its weights are loaded again, and sees that it is what was deployed.
fn source(path: PathBuf, digest: &str) -> Source {
    let digest = digest.to_string();
    Arc::new(move || {
        let lost = |why: &str| EngineError::NotReady(format!("the graph's file {why}"));
        let bytes = std::fs::read(&path).map_err(|error| lost(&error.to_string()))?;
        if hex_digest(&bytes) == digest { Ok(bytes.into()) } else { Err(lost("is not what was deployed")) }
    })
}

/// The digest of the pass-through module.
static BUILT_IN: LazyLock<String> = LazyLock::new(|| hex_digest(PASSTHROUGH));

/// The digest of a manifest's module; that of the pass-through module where it names none.
pub fn module_digest(manifest: &Manifest) -> &str {
    manifest.module.as_deref().unwrap_or(&BUILT_IN)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LoadError::Model(error.to_string()))
}
