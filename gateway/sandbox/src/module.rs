//! From bytes to a compiled module, through a cache that only this host's key can fill.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};
use windrose_engine::Residency;

use crate::cache::{Ages, Artifact, Cache, Form, PrivateCopy, hex};
use crate::code::{Compiled, Refills};
use crate::engine::Tasks;
use crate::files::Bound;
use crate::initialise::Initialised;
use crate::names::Names;
use crate::state::State;
use crate::ticker::Ticker;
use crate::{Grants, ModuleError, engine, files, imports, nn, sockets, words};

/// What a component can be served as, by what it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleKind {
    /// World `windrose:model/model`.
    Model,
    /// A `wasi:http` component, 0.2 or 0.3.
    Http,
    /// A `wasi:cli` command.
    Command,
}

/// How the host meets one import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportStatus {
    /// Works: `wasi:nn`, clocks, random numbers, the model's own assets.
    Provided,
    /// Linked to an implementation that denies, until it is granted.
    Denied,
}

/// One interface that a component imports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// For example `wasi:nn/tensor@0.2.0-rc-2024-10-28`.
    pub name: String,
    /// How it is met when nothing is granted.
    pub status: ImportStatus,
}

/// One such part of all instances may wait to be used again: the others are for whoever comes.
const WAITING: u32 = 4;

/// How to build a [`Sandbox`].
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Where compiled modules are cached; `None` for no cache.
    pub cache: Option<PathBuf>,
    /// The 32-byte key that authenticates cache entries; made, owner-only, when the file is not there. Must not lie in
    /// the cache folder.
    pub cache_key: Option<PathBuf>,
    /// Instances at the same time, over all models, of which a quarter may wait to be used again; those of modules that know
    /// tasks are counted apart. One is enough for the process that prepares a model under limits on its memory: it reserves
    /// address space for no more, and what it compiles serves any other process.
    pub instances: u32,
    /// The most linear memory that any model may ask for, bytes.
    pub memory: u64,
    /// Compiled code that may be in memory, bytes as the cache has it; `None` for any amount. Beyond it, modules that are in
    /// the cache and not in use leave memory, and come back with their next call.
    pub modules: Option<u64>,
}

/// The process's sandbox: a wasmtime engine with its pool for nearly all modules, another where one asks for it, one ticker.
/// Cloning shares it.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) inner: Arc<Parts>,
}

/// An engine, and what its modules may import.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<State>,
}

impl Runtime {
    fn new(tasks: Tasks, instances: u32, memory: u64) -> Result<Runtime, ModuleError> {
        let engine = engine::engine(tasks, instances, memory)?;
        let linker = link(&engine, tasks).map_err(|e| ModuleError::Host(format!("{e:#}")))?;
        Ok(Runtime { engine, linker })
    }
}

pub(crate) struct Parts {
    /// For modules that know nothing of tasks.
    pub(crate) plain: Runtime,
    /// For the others; made when the first of them comes, by one thread.
    with_tasks: OnceLock<Runtime>,
    making: Mutex<()>,
    /// Instances at the same time.
    instances: u32,
    pub(crate) ticker: Ticker,
    /// Files and sockets of all guests.
    pub(crate) files: Bound,
    /// Names that guests look up at a time.
    pub(crate) names: Arc<Semaphore>,
    cache: Option<Cache>,
    /// Modules that were loaded from the cache, by digest, for as long as a program has them: models that name the same
    /// module share its code.
    loaded: Mutex<HashMap<String, Weak<Compiled>>>,
    /// The most linear memory of a model, bytes.
    pub(crate) memory: u64,
    /// The code that is in memory.
    pub(crate) modules: Residency,
    /// What brings code back.
    pub(crate) refills: Refills,
    /// Instances that wait to be used again.
    pub(crate) waiting: Bound,
}

impl Parts {
    /// Held for a look-up only; nothing panics under it, so a poisoned one is as good.
    fn loaded(&self) -> MutexGuard<'_, HashMap<String, Weak<Compiled>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What modules of a kind run in.
    fn runtime(&self, tasks: Tasks) -> Result<&Runtime, ModuleError> {
        if tasks == Tasks::Untold {
            return Ok(&self.plain);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = self.with_tasks.get() {
            return Ok(runtime);
        }
        let runtime = Runtime::new(tasks, self.instances, self.memory)?;
        self.ticker.add(&runtime.engine);
        Ok(self.with_tasks.get_or_init(|| runtime))
    }

    /// What a component was compiled for.
    pub(crate) fn runtime_of(&self, component: &Component) -> &Runtime {
        let with_tasks = self.with_tasks.get().filter(|runtime| Engine::same(&runtime.engine, component.engine()));
        with_tasks.unwrap_or(&self.plain)
    }

    /// The form of a module that calls start from: the initialised one where there is one.
    pub(crate) fn artifact(&self, digest: &str) -> Option<(Tasks, Artifact)> {
        let cache = self.cache.as_ref()?;
        let forms = [Form::Initialised, Form::Plain].into_iter();
        let mut all = forms.flat_map(|form| [(Tasks::Untold, form), (Tasks::Told, form)]);
        all.find_map(|(tasks, form)| Some((tasks, cache.get(&self.plain.engine, tasks, digest, form)?)))
    }

    /// Loads an artifact of the cache.
    pub(crate) fn load(
        &self,
        (tasks, artifact): (Tasks, Artifact),
    ) -> wasmtime::Result<(Component, Option<PrivateCopy>)> {
        let engine = &self.runtime(tasks)?.engine;
        match artifact {
            Artifact::Entry(entry) => Ok((deserialize(engine, Artifact::of(&entry))?, None)),
            Artifact::Copied(copy) => match map(engine, &copy) {
                Ok(component) => Ok((component, Some(copy))),
                // Code cannot be mapped from every disk.
                Err(error) => {
                    let component = deserialize(engine, &copy.read()?)?;
                    if let Some(cache) = &self.cache {
                        cache.without_copies(&format_args!("{error:#}"));
                    }
                    Ok((component, None))
                }
            },
        }
    }
}

#[expect(unsafe_code, reason = "a precompiled module is native code")]
fn deserialize(engine: &Engine, artifact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: these very bytes were authenticated with a key that only this host's user can read, so they are what
    // `Component::serialize` returned here, for an engine of the same compiler settings.
    unsafe { Component::deserialize(engine, artifact) }
}

/// Loads a private copy, which stays in the file until it is used.
#[expect(unsafe_code, reason = "a precompiled module is native code")]
pub(crate) fn map(engine: &Engine, copy: &PrivateCopy) -> wasmtime::Result<Component> {
    // SAFETY: as above; the bytes were authenticated in this very file, which has no name, and which nobody has open for
    // writing, so that they stay what they are.
    unsafe { Component::deserialize_file(engine, copy.path()) }
}

/// What the pool holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolMetrics {
    /// Instances that are running, or wait to be used again.
    pub instances: u64,
    /// Their linear memories.
    pub memories: usize,
    /// Slots that keep pages for the next instance.
    pub warm_slots: u32,
    /// Bytes of those pages.
    pub warm_bytes: usize,
}

impl Sandbox {
    /// Makes the engine and starts its ticker.
    ///
    /// # Errors
    /// When the pool cannot be reserved or the key is readable by others.
    pub fn new(config: SandboxConfig) -> Result<Sandbox, ModuleError> {
        let cache = match (&config.cache, &config.cache_key) {
            (Some(folder), Some(key)) => Some(Cache::open(folder, key)?),
            (Some(_), None) => return Err(ModuleError::Host("a cache of compiled modules needs a key".into())),
            (None, _) => None,
        };
        let instances = config.instances.max(1);
        let plain = Runtime::new(Tasks::Untold, instances, config.memory)?;
        Sandbox::with_runtime(plain, cache, instances, (config.memory, config.modules))
    }

    /// A sandbox around an engine, for so many instances, for models of so much linear memory, with a budget for code.
    pub(crate) fn with_runtime(
        plain: Runtime,
        cache: Option<Cache>,
        instances: u32,
        (memory, modules): (u64, Option<u64>),
    ) -> Result<Sandbox, ModuleError> {
        let ticker = Ticker::new(&plain.engine).map_err(|e| ModuleError::Host(format!("the ticker: {e}")))?;
        let (loaded, modules, refills) = (Mutex::default(), Residency::new(modules), Refills::default());
        let (files, names) = (Bound::of_process(), Names::of_process());
        let parts = Parts {
            plain,
            with_tasks: OnceLock::new(),
            making: Mutex::default(),
            instances,
            ticker,
            files,
            names,
            cache,
            loaded,
            memory,
            modules,
            refills,
            waiting: Bound::new((instances / WAITING) as usize),
        };
        Ok(Sandbox { inner: Arc::new(parts) })
    }

    /// The compiled module of a component: from the cache where it is there and authentic, else compiled and cached.
    /// Blocks, for seconds where the module is large. An initialiser that it exports is not run: see
    /// [`Sandbox::initialise`].
    ///
    /// # Errors
    /// As [`ModuleError`] says.
    pub fn module(&self, wasm: &[u8]) -> Result<Module, ModuleError> {
        let digest = hex(&Sha256::digest(wasm));
        if let Some(module) = self.module_from_cache(&digest) {
            return Ok(module);
        }
        imports::check(wasm)?;
        self.compile(digest, wasm, Form::Plain)
    }

    /// The compiled module of a component that has been initialised. Its digest is that of the component as it was
    /// deployed. Blocks.
    ///
    /// # Errors
    /// As [`ModuleError`] says.
    pub fn initialised(&self, initialised: Initialised) -> Result<Module, ModuleError> {
        self.compile(initialised.digest, &initialised.wasm, Form::Initialised)
    }

    fn compile(&self, digest: String, wasm: &[u8], form: Form) -> Result<Module, ModuleError> {
        let parts = &self.inner;
        let (tasks, component) = self.translate(wasm)?;
        let compiled = Compiled::new(parts, digest, (component, None))?;
        if let Some(cache) = &parts.cache {
            let artifact = compiled.serialize()?;
            match cache.put(&parts.plain.engine, tasks, compiled.digest(), form, &artifact) {
                Ok(()) => compiled.may_leave(parts),
                Err(error) => tracing::warn!(digest = compiled.digest(), %error, "a compiled module was not cached"),
            }
        }
        Ok(Module { inner: compiled })
    }

    /// Compiles a component for the engine that costs it the least. It is the same one each time: the cache has one entry of
    /// a module.
    fn translate(&self, wasm: &[u8]) -> Result<(Tasks, Component), ModuleError> {
        let tasks = if imports::knows_tasks(wasm) { Tasks::Told } else { Tasks::Untold };
        let engine = &self.inner.runtime(tasks)?.engine;
        let component = Component::from_binary(engine, wasm).map_err(|e| ModuleError::Invalid(format!("{e:#}")))?;
        Ok((tasks, component))
    }

    /// Whether [`Sandbox::module_from_cache`] would find a component with this sha256 (hex).
    pub fn is_cached(&self, digest: &str) -> bool {
        self.shared(digest).is_some() || self.inner.artifact(digest).is_some()
    }

    /// A module that was loaded before and that somebody still has. One whose code has left memory is as good only while
    /// the cache or its private copy has it.
    fn shared(&self, digest: &str) -> Option<Module> {
        let module = self.inner.loaded().get(digest).and_then(Weak::upgrade).map(|inner| Module { inner })?;
        (module.is_resident() || module.inner.has_copy() || self.inner.artifact(digest).is_some()).then_some(module)
    }

    /// The compiled module of the component with this sha256 (hex), if it is loaded already or the cache has an authentic
    /// one. Never compiles: what another process has compiled under its own limits is taken from here.
    pub fn module_from_cache(&self, digest: &str) -> Option<Module> {
        if let Some(module) = self.shared(digest) {
            return Some(module);
        }
        let parts = &self.inner;
        let artifact = parts.artifact(digest)?;
        let loaded = parts.load(artifact).map_err(|e| format!("{e:#}"));
        let loaded = loaded.and_then(|code| Compiled::new(parts, digest.to_owned(), code).map_err(|e| e.to_string()));
        match loaded {
            Ok(compiled) => {
                compiled.may_leave(parts);
                let mut loaded = parts.loaded();
                loaded.retain(|_, module| module.strong_count() > 0);
                loaded.insert(digest.to_owned(), Arc::downgrade(&compiled));
                Some(Module { inner: compiled })
            }
            Err(error) => {
                tracing::warn!(digest, error, "a compiled module does not load and is compiled again");
                None
            }
        }
    }

    /// Removes from the cache what is old enough, but for the modules with these sha256 (hex): what an earlier version of this
    /// program compiled, and files that were never finished, go as well. Blocks. Returns how many files.
    ///
    /// # Errors
    /// When the cache cannot be listed; a file that cannot be removed stays for the next time.
    pub fn sweep<'a>(&self, keep: impl Iterator<Item = &'a str>, ages: Ages) -> std::io::Result<usize> {
        let parts = &self.inner;
        parts.cache.as_ref().map_or(Ok(0), |cache| cache.sweep(&parts.plain.engine, keep, ages))
    }

    /// What the pool of instances holds.
    pub fn pool(&self) -> PoolMetrics {
        let runtimes = [Some(&self.inner.plain), self.inner.with_tasks.get()].into_iter().flatten();
        let metrics = runtimes.filter_map(|runtime| runtime.engine.pooling_allocator_metrics());
        metrics.fold(PoolMetrics::default(), |all, m| PoolMetrics {
            instances: all.instances + m.component_instances(),
            memories: all.memories + m.memories(),
            warm_slots: all.warm_slots + m.unused_warm_memories(),
            warm_bytes: all.warm_bytes + m.unused_memory_bytes_resident(),
        })
    }

    /// Waits for a call to find that the cache has lost a module whose code had left memory; returns its digest. Once the
    /// cache has it again, so have calls.
    pub async fn lost(&self) -> String {
        self.inner.refills.lost().await
    }

    /// The compiled code that is in memory.
    pub fn modules(&self) -> &Residency {
        &self.inner.modules
    }
}

/// Everything that any module may import; what a call is not granted denies when it is called.
pub(crate) fn link(engine: &Engine, tasks: Tasks) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    sockets::link(&mut linker)?;
    files::link(&mut linker)?;
    words::link(&mut linker)?;
    if tasks == Tasks::Told {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        sockets::link_3(&mut linker)?;
        files::link_3(&mut linker)?;
        words::link_3(&mut linker)?;
    }
    nn::link(&mut linker)?;
    Ok(linker)
}

/// A compiled component. Cloning shares it.
#[derive(Clone)]
pub struct Module {
    pub(crate) inner: Arc<Compiled>,
}

impl Module {
    /// What it can be served as.
    pub fn kind(&self) -> ModuleKind {
        self.inner.kind()
    }

    /// sha256 of the component's bytes, lower-case hex.
    pub fn digest(&self) -> &str {
        self.inner.digest()
    }

    /// What it imports, in its own order, and how each is met when nothing is granted.
    pub fn imports(&self) -> &[Import] {
        self.inner.imports()
    }

    /// Whether its code is in memory; else its next call waits for it to come from the cache.
    pub fn is_resident(&self) -> bool {
        self.inner.is_resident()
    }

    /// What it imports, and how each is met under `grants`.
    pub fn imports_under(&self, grants: &Grants) -> Vec<Import> {
        imports::statuses(self.inner.imports().iter().map(|import| import.name.as_str()), grants)
    }
}
