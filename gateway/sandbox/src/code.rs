//! The code of a module: in memory while it is called and as long as the budget allows, else in the cache on disk.
//!
//! What is known about a module outlives its code. A call takes the code with [`Compiled::in_use`] and holds it to its end;
//! where it has left memory, the first such call brings it back and the others wait for that one.

use std::sync::{Arc, OnceLock, Weak};
use std::thread::available_parallelism;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, mpsc};
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as CommandPre3;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use windrose_engine::{Evict, Held, LastUse, Residency};

use crate::cache::PrivateCopy;
use crate::module::Parts;
use crate::nn::ModelPre;
use crate::state::State;
use crate::{CallError, Grants, Import, ModuleError, ModuleKind, imports, module};

/// A compiled component: what it is, and its code where that is in memory.
pub(crate) struct Compiled {
    digest: String,
    /// What it was compiled for.
    engine: Engine,
    kind: ModuleKind,
    /// The version of the WASI world that it exports: 2 or 3.
    wasi: u8,
    imports: Vec<Import>,
    /// Bytes of its code, as the cache has it.
    bytes: u64,
    code: ArcSwapOption<Code>,
    /// Where its code comes back from without being authenticated again, where it is large.
    copy: OnceLock<PrivateCopy>,
    used: LastUse,
    /// Held by who brings the code back or takes it out, so that one does.
    moving: Arc<AsyncMutex<()>>,
}

/// The code of a component.
pub(crate) struct Code {
    pub(crate) entry: Entry,
    pub(crate) component: Component,
    held: Held,
}

/// What each call of a module starts from.
pub(crate) enum Entry {
    Model(ModelPre<State>),
    Http2(ProxyPre<State>),
    Http3(ServicePre<State>),
    Command2(CommandPre<State>),
    Command3(CommandPre3<State>),
}

/// Code that somebody uses: it does not leave memory before this is dropped. There is no other way to hold it, so that
/// whoever kept it from leaving sees to it that it leaves after all.
pub(crate) struct InUse {
    code: Arc<Code>,
    /// Dropped after the code.
    _after: Trim,
}

/// Makes the room that was wanted while code was in use.
struct Trim(Residency);

/// What all modules that come back share.
pub(crate) struct Refills {
    /// How many may at the same time: each reads, authenticates and links as fast as a core can.
    permits: Arc<Semaphore>,
    /// The digests of those that did not.
    lost: (mpsc::Sender<String>, AsyncMutex<mpsc::Receiver<String>>),
}

/// Modules that did not come back and wait for somebody to be told; further ones are found by their next call.
const LOST: usize = 64;

// === impl Compiled ===

impl Compiled {
    /// Finds out what a component is, and prepares its instances.
    pub(crate) fn new(
        parts: &Parts,
        digest: String,
        (component, copy): (Component, Option<PrivateCopy>),
    ) -> Result<Arc<Compiled>, ModuleError> {
        let about = component.component_type();
        let engine = component.engine().clone();
        let exports: Vec<&str> = about.exports(&engine).map(|(name, _)| name).collect();
        let (kind, wasi) = imports::kind(&exports)?;
        let imported: Vec<String> = about.imports(&engine).map(|(name, _)| name.to_owned()).collect();
        let imports = imports::statuses(imported.iter().map(String::as_str), &Grants::default());
        let image = component.image_range();
        let bytes = (image.end as usize - image.start as usize) as u64;
        let code = Code::new(parts, (kind, wasi), component, parts.modules.hold(bytes))?;
        let (used, moving) = (LastUse::default(), Arc::default());
        used.touch();
        let code = ArcSwapOption::from_pointee(code);
        let copy = copy.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Arc::new(Compiled { digest, engine, kind, wasi, imports, bytes, code, copy, used, moving }))
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn kind(&self) -> ModuleKind {
        self.kind
    }

    pub(crate) fn imports(&self) -> &[Import] {
        &self.imports
    }

    pub(crate) fn is_resident(&self) -> bool {
        self.resident().is_some()
    }

    /// Whether its code comes back whatever becomes of the cache.
    pub(crate) fn has_copy(&self) -> bool {
        self.copy.get().is_some()
    }

    /// What the cache keeps of it.
    pub(crate) fn serialize(&self) -> Result<Vec<u8>, ModuleError> {
        let code = self.resident();
        let code = code.ok_or_else(|| ModuleError::Host("a module that was just compiled has no code".into()))?;
        code.component.serialize().map_err(|e| ModuleError::Host(format!("{e:#}")))
    }

    /// The code, where it is in memory.
    fn resident(&self) -> Option<InUse> {
        self.code.load_full().map(InUse::from)
    }

    /// Lets the code leave memory: the cache has it.
    pub(crate) fn may_leave(self: &Arc<Compiled>, parts: &Parts) {
        let resident: Weak<Compiled> = Arc::downgrade(self);
        parts.modules.enter(resident);
    }

    /// The code, for a call; waits for it to come back where it has left memory. Whoever stops waiting stops nobody else.
    pub(crate) async fn in_use(self: &Arc<Compiled>, parts: &Arc<Parts>) -> Result<InUse, CallError> {
        self.used.touch();
        if let Some(code) = self.resident() {
            return Ok(code);
        }
        let moving = Arc::clone(&self.moving).lock_owned().await;
        if let Some(code) = self.resident() {
            return Ok(code);
        }
        let permit = Arc::clone(&parts.refills.permits).acquire_owned().await;
        let (this, with) = (Arc::clone(self), Arc::clone(parts));
        let refilled = tokio::task::spawn_blocking(move || {
            let code = this.refill(&with, moving);
            drop(permit);
            code
        });
        let code = refilled.await.map_err(|e| CallError::NotLoaded(e.to_string()))?;
        code.map_err(|error| {
            tracing::error!(digest = self.digest, %error, "a module's code did not come back from the cache");
            let _ = parts.refills.lost.0.try_send(self.digest.clone());
            CallError::NotLoaded(error.to_string())
        })
    }

    /// Brings the code back. Blocks.
    fn refill(self: &Arc<Compiled>, parts: &Parts, _moving: OwnedMutexGuard<()>) -> Result<InUse, ModuleError> {
        let held = parts.modules.hold(self.bytes);
        let unloaded = |e: wasmtime::Error| ModuleError::Host(format!("{e:#}"));
        let component = match self.copy.get() {
            Some(copy) => module::map(&self.engine, copy).map_err(unloaded)?,
            None => {
                let artifact = parts.artifact(&self.digest);
                let artifact = artifact.ok_or_else(|| ModuleError::Host("the cache has it no longer".into()))?;
                let (component, copy) = parts.load(artifact).map_err(unloaded)?;
                // Who moves is one.
                let _ = copy.map(|copy| self.copy.set(copy));
                component
            }
        };
        let code = Arc::new(Code::new(parts, (self.kind, self.wasi), component, held)?);
        self.code.store(Some(Arc::clone(&code)));
        parts.modules.reloaded();
        self.may_leave(parts);
        Ok(code.into())
    }
}

impl Evict for Compiled {
    fn last_use(&self) -> u64 {
        self.used.get()
    }

    fn evict(&self) -> bool {
        // Where it is moving, a call waits for it.
        let Ok(_moving) = self.moving.try_lock() else { return false };
        // One is the slot's and one is this function's.
        if self.code.load_full().is_none_or(|code| Arc::strong_count(&code) > 2) {
            return false;
        }
        // From here on no call can take it, so that what is counted now is true.
        match self.code.swap(None).map(Arc::try_unwrap) {
            Some(Ok(_unused)) => true,
            // A call took it in between. Those that find none wait for the lock and look again.
            Some(Err(code)) => {
                self.code.store(Some(code));
                false
            }
            None => false,
        }
    }
}

// === impl Code ===

impl Code {
    fn new(
        parts: &Parts,
        (kind, wasi): (ModuleKind, u8),
        component: Component,
        held: Held,
    ) -> Result<Code, ModuleError> {
        let unlinked = |e: wasmtime::Error| ModuleError::UnknownImport(format!("{e:#}"));
        let pre = parts.runtime_of(&component).linker.instantiate_pre(&component).map_err(unlinked)?;
        let entry = Entry::new(kind, wasi, pre).map_err(|e| ModuleError::NoWorld(format!("{e:#}")))?;
        Ok(Code { entry, component, held })
    }
}

impl Entry {
    fn new(kind: ModuleKind, wasi: u8, pre: InstancePre<State>) -> wasmtime::Result<Entry> {
        Ok(match (kind, wasi) {
            (ModuleKind::Model, _) => Entry::Model(ModelPre::new(pre)?),
            (ModuleKind::Http, 2) => Entry::Http2(ProxyPre::new(pre)?),
            (ModuleKind::Http, _) => Entry::Http3(ServicePre::new(pre)?),
            (ModuleKind::Command, 2) => Entry::Command2(CommandPre::new(pre)?),
            (ModuleKind::Command, _) => Entry::Command3(CommandPre3::new(pre)?),
        })
    }
}

// === impl InUse ===

impl From<Arc<Code>> for InUse {
    fn from(code: Arc<Code>) -> InUse {
        let _after = Trim(code.held.residency());
        InUse { code, _after }
    }
}

impl std::ops::Deref for InUse {
    type Target = Code;

    fn deref(&self) -> &Code {
        &self.code
    }
}

impl Drop for Trim {
    fn drop(&mut self) {
        if !self.0.claims_trim() {
            return;
        }
        let modules = self.0.clone();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || modules.trim())),
            Err(_) => modules.trim(),
        }
    }
}

// === impl Refills ===

impl Refills {
    /// Waits for a module that did not come back.
    pub(crate) async fn lost(&self) -> String {
        match self.lost.1.lock().await.recv().await {
            Some(digest) => digest,
            // Not while the sender is in this very struct.
            None => std::future::pending().await,
        }
    }
}

impl Default for Refills {
    fn default() -> Refills {
        let (sender, receiver) = mpsc::channel(LOST);
        let permits = Arc::new(Semaphore::new(available_parallelism().map_or(1, usize::from)));
        Refills { permits, lost: (sender, AsyncMutex::new(receiver)) }
    }
}
