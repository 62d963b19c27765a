//! Initialise once: what a component's own initialiser leaves in its memory is where every instance starts.
//!
//! A component that exports `windrose:model/initialize` is run here once, alone, in an instance that can reach nothing:
//! no network, no assets, no arguments and no environment; clocks stand at zero, the seeds of hash tables are fixed so
//! that every machine makes the same snapshot, and secure random numbers are refused, since all instances would share
//! them. The memory and the globals that it leaves behind are written into the component, which is then compiled like
//! any other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::Store;
use wasmtime::component::{Component, Instance, Lift, Linker, WasmList};
use wasmtime_wasi::{Deterministic, HostMonotonicClock, HostWallClock, WasiCtxBuilder};
use wasmtime_wizer::{ComponentContext, ComponentInstanceState, Wizer};
use windrose_engine::{Engines, EnginesConfig, OnnxRuntimeLibrary, default_tenant};

use crate::cache::hex;
use crate::code::Compiled;
use crate::engine::Tasks;
use crate::module::Runtime;
use crate::program::Outcome;
use crate::state::State;
use crate::{CallContext, CallError, Grants, Limits, Module, ModuleError, Program, ProgramConfig, Sandbox};
use crate::{engine, imports, module};

/// How snapshots are made, as a part of the name under which they are cached: another way makes them anew.
pub(crate) const METHOD: &str = "initialised, 1";

/// Memory beyond the model's own that reading the result takes: a page for each memory of the component.
const ROOM: u64 = 1 << 20;
/// No component that has been initialised is larger, bytes.
const LARGEST: usize = 256 << 20;

/// A component after its initialiser has run.
pub struct Initialised {
    /// sha256 of the component as it was deployed, hex.
    pub(crate) digest: String,
    /// The component with what the initialiser left behind.
    pub(crate) wasm: Vec<u8>,
}

impl Sandbox {
    /// Whether a component exports an initialiser.
    pub fn has_initialiser(wasm: &[u8]) -> bool {
        imports::initialiser(wasm).is_some()
    }

    /// Runs a component's initialiser within `limits`, alone and with nothing in reach. Blocks while it compiles, and
    /// trusts the component no more than any call does; reading what is left behind is a parser's work over bytes from
    /// outside, so this belongs into a process that may be lost.
    ///
    /// # Errors
    /// [`ModuleError::Initialiser`] when it fails, when it leaves handles open, or when the component is of a kind that
    /// cannot start from a snapshot.
    pub async fn initialise(&self, wasm: &[u8], limits: &Limits) -> Result<Initialised, ModuleError> {
        imports::check(wasm)?;
        let name = imports::initialiser(wasm);
        let name = name.ok_or_else(|| ModuleError::Initialiser("the component exports none".into()))?;
        let mut wizer = Wizer::new();
        wizer.keep_init_func(true);
        let unsuitable =
            |e: wasmtime::Error| ModuleError::Initialiser(format!("this component cannot have one: {e:#}"));
        let (parts, instrumented) = wizer.instrument_component(wasm).map_err(unsuitable)?;
        let digest = hex(&Sha256::digest(wasm));
        let program = self.alone(digest.clone(), &instrumented, limits)?;
        let run = Run { wizer: &wizer, parts: &parts, name: &name };
        let wasm = run.snapshot(&program, limits).await.map_err(|error| match error {
            CallError::Host(text) => ModuleError::Host(text),
            CallError::Failed(text) => ModuleError::Initialiser(text),
            other => ModuleError::Initialiser(other.to_string()),
        })?;
        if wasm.len() > LARGEST {
            let message = format!("it leaves {} bytes behind, and {LARGEST} are the most", wasm.len());
            return Err(ModuleError::Initialiser(message));
        }
        Ok(Initialised { digest, wasm })
    }

    /// A program in a sandbox of its own, without a graph, an asset or a grant.
    fn alone(&self, digest: String, instrumented: &[u8], limits: &Limits) -> Result<Program, ModuleError> {
        let host = |e: wasmtime::Error| ModuleError::Host(format!("{e:#}"));
        let engine = engine::unpooled()?;
        let component = Component::from_binary(&engine, instrumented)
            .map_err(|e| ModuleError::Invalid(format!("with what reads its memory: {e:#}")))?;
        let mut linker = module::link(&engine, Tasks::Told).map_err(host)?;
        deny_random(&mut linker, &component).map_err(host)?;
        let sandbox = Sandbox::with_runtime(Runtime { engine, linker }, None, 0, (u64::MAX, None))?;
        let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
        let engines = Engines::new(config).map_err(|e| ModuleError::Host(e.to_string()))?;
        let memory = limits.memory.min(self.inner.memory).saturating_add(ROOM);
        let config = ProgramConfig {
            module: Module { inner: Compiled::new(&sandbox.inner, digest, (component, None))? },
            label: "initialiser".into(),
            weight: 1,
            graphs: BTreeMap::new(),
            assets: None,
            args: Vec::new(),
            env: Vec::new(),
            limits: Limits { memory, ..limits.clone() },
            grants: Grants::default(),
            engines: Arc::new(engines),
            closed: Vec::new(),
        };
        Program::initialising(&sandbox, config)
    }
}

/// Secure random numbers would be the same in every instance: who asks for some is told.
fn deny_random(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<()> {
    let about = component.component_type();
    linker.allow_shadowing(true);
    for (name, _) in about.imports(component.engine()).filter(|(name, _)| name.starts_with("wasi:random/random@")) {
        let mut random = linker.instance(name)?;
        for function in ["get-random-bytes", "get-random-u64"] {
            random.func_new(function, |_, _, _, _| {
                wasmtime::bail!("it asks for secure random numbers, which every instance would share")
            })?;
        }
    }
    Ok(())
}

/// What an initialiser sees of the world: time stands still, and the seeds of hash tables are the module's own.
pub(crate) fn freeze(builder: &mut WasiCtxBuilder, digest: &str) {
    let seed = Sha256::digest(digest);
    let (low, high) = seed.split_at(16);
    let insecure = low.iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
    builder
        .wall_clock(Stopped)
        .monotonic_clock(Stopped)
        .insecure_random(Deterministic::new(high.to_vec()))
        .insecure_random_seed(insecure);
}

/// A clock at zero.
struct Stopped;

impl HostWallClock for Stopped {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Stopped {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

/// One run of an initialiser.
struct Run<'a> {
    wizer: &'a Wizer,
    parts: &'a ComponentContext<'a>,
    /// The interface that the component exports.
    name: &'a str,
}

impl Run<'_> {
    /// Runs it, and returns the component with what it left behind.
    async fn snapshot(&self, program: &Program, limits: &Limits) -> Result<Vec<u8>, CallError> {
        let program = &program.inner;
        let deadline = Instant::now() + limits.wall();
        let context = CallContext { deadline, request_id: "initialiser".into(), tenant: default_tenant() };
        let call = program.call(&context, async |store, code| {
            let instance = program.sandbox.plain.linker.instantiate_async(&mut *store, &code.component).await?;
            self.initialise(store, &instance).await?;
            // What the host knows of a handle is not in the module's memory.
            if !store.data().table.is_empty() {
                let message = "it leaves handles open (streams, tensors, files), which no other instance has";
                return Err(CallError::Failed(message.into()).into());
            }
            store.set_hostcall_fuel(usize::MAX);
            let mut reader = Reader { store, instance, memories: HashMap::new(), failed: None };
            let wasm = self.wizer.snapshot_component(self.parts, &mut reader).await?;
            match reader.failed {
                Some(error) => Err(error.into()),
                None => Ok(wasm),
            }
        });
        call.await
    }

    async fn initialise(&self, store: &mut Store<State>, instance: &Instance) -> Result<(), Outcome> {
        let interface = instance.get_export_index(&mut *store, None, self.name);
        let function = interface
            .and_then(|at| instance.get_export_index(&mut *store, Some(&at), "initialize"))
            .ok_or_else(|| CallError::Failed(format!("the component exports {} without `initialize`", self.name)))?;
        let function = instance.get_typed_func::<(), (Result<(), String>,)>(&mut *store, function)?;
        let (outcome,) = function.call_async(&mut *store, ()).await?;
        outcome.map_err(|message| CallError::Failed(message).into())
    }
}

/// Reads globals and memories through the functions that the instrumented component exports. The first failure is
/// kept; what is read after it is not used.
struct Reader<'a> {
    store: &'a mut Store<State>,
    instance: Instance,
    /// By the function that returns them: they are asked for twice, and reading one changes it.
    memories: HashMap<String, Vec<u8>>,
    failed: Option<wasmtime::Error>,
}

impl Reader<'_> {
    /// Calls a function, and hands its result to `take`; a default where that fails.
    async fn read<R: Lift + Send + Sync + 'static, T: Default>(
        &mut self,
        (instance, function): (&str, &str),
        take: impl FnOnce(&Store<State>, R) -> T,
    ) -> T {
        match self.call::<R>(instance, function).await {
            Ok(value) => take(self.store, value),
            Err(error) => {
                self.failed.get_or_insert(error);
                T::default()
            }
        }
    }

    async fn call<R: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> wasmtime::Result<R> {
        let missing = || wasmtime::format_err!("the instrumented component lacks `{function}`");
        let interface = self.instance.get_export_index(&mut *self.store, None, instance).ok_or_else(missing)?;
        let index = self.instance.get_export_index(&mut *self.store, Some(&interface), function);
        let typed = self.instance.get_typed_func::<(), (R,)>(&mut *self.store, index.ok_or_else(missing)?)?;
        let (value,) = typed.call_async(&mut *self.store, ()).await?;
        Ok(value)
    }
}

impl ComponentInstanceState for Reader<'_> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, function: &str, contents: impl FnOnce(&[u8]) + Send) {
        if !self.memories.contains_key(function) {
            let copy = |store: &Store<State>, bytes: WasmList<u8>| bytes.as_le_slice(store).to_vec();
            let memory = self.read((instance, function), copy).await;
            self.memories.insert(function.to_owned(), memory);
        }
        contents(self.memories.get(function).map_or(&[], Vec::as_slice));
    }

    async fn call_func_ret_s32(&mut self, instance: &str, function: &str) -> i32 {
        self.read((instance, function), |_, value: i32| value).await
    }

    async fn call_func_ret_s64(&mut self, instance: &str, function: &str) -> i64 {
        self.read((instance, function), |_, value: i64| value).await
    }

    async fn call_func_ret_f32(&mut self, instance: &str, function: &str) -> u32 {
        self.read((instance, function), |_, value: f32| value.to_bits()).await
    }

    async fn call_func_ret_f64(&mut self, instance: &str, function: &str) -> u64 {
        self.read((instance, function), |_, value: f64| value.to_bits()).await
    }
}
