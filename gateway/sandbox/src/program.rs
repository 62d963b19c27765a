//! A module bound to one model's graphs, assets, limits and grants, and its calls.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use wasmtime::{Engine, Store};
use windrose_engine::{Engines, Graph, Share};

use crate::code::InUse;
use crate::files::Bound;
use crate::kept::Kept;
use crate::module::Parts;
use crate::names::Names;
use crate::net::Network;
use crate::stage::Troupe;
use crate::state::{State, Stdio};
use crate::ticker::{Registration, Watch};
use crate::{CallError, Description, Grants, InferRequest, InferResponse, Limits, Module, ModuleError, ModuleKind};
use crate::{Sandbox, command, exchange, infer};

/// The body of a `wasi:http` exchange.
pub type HttpBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Everything that a program is made of.
pub struct ProgramConfig {
    /// The compiled module.
    pub module: Module,
    /// The model's name and version, for logs.
    pub label: String,
    /// Graphs by the names that `load-by-name` takes. No other graph can be reached.
    pub graphs: BTreeMap<String, Graph>,
    /// A folder of read-only assets, preopened as `/`.
    pub assets: Option<PathBuf>,
    /// Arguments of a command, after its name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// What a call may use.
    pub limits: Limits,
    /// What was granted.
    pub grants: Grants,
    /// For `load`, where that is granted.
    pub engines: Arc<Engines>,
    /// Addresses that a granted network never reaches: this gateway's own listeners.
    pub closed: Vec<std::net::SocketAddr>,
    /// The model's share of an engine against other models; at least 1.
    pub weight: u32,
}

/// What every call carries.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The caller's deadline; the model's wall time applies as well.
    pub deadline: Instant,
    /// The request's id, for the guest's log lines.
    pub request_id: Arc<str>,
    /// Who is calling: whose jobs the guest's `compute` makes.
    pub tenant: Arc<str>,
}

/// What a command answered.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// Its exit status; 0 is success.
    pub status: i32,
    /// What it wrote to its standard output.
    pub stdout: Bytes,
}

/// A module ready to be called. Cloning shares it.
#[derive(Clone)]
pub struct Program {
    pub(crate) inner: Arc<Inner>,
    pub(crate) kept: Arc<Kept>,
}

/// What the calls of a program share.
pub(crate) struct Inner {
    pub(crate) sandbox: Arc<Parts>,
    pub(crate) engine: Engine,
    pub(crate) module: Module,
    pub(crate) label: Arc<str>,
    /// In whose name its calls compute.
    pub(crate) share: Share,
    /// Whether its guests compute for long.
    pub(crate) troupe: Arc<Troupe>,
    pub(crate) graphs: BTreeMap<String, Graph>,
    pub(crate) assets: Option<PathBuf>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) grants: Grants,
    pub(crate) engines: Arc<Engines>,
    /// What was granted of the network; `None` for nothing.
    pub(crate) network: Option<Arc<Network>>,
    pub(crate) is_command: bool,
    /// Files and sockets of the calls that are running.
    pub(crate) files: Bound,
    /// Whether this runs an initialiser, whose time stands still.
    pub(crate) initialising: bool,
}

impl Program {
    /// Binds the module to its graphs, assets, limits and grants.
    ///
    /// # Errors
    /// When a limit is beyond the sandbox's own, the assets are no folder, or instances are to be used again that cannot.
    pub fn new(sandbox: &Sandbox, config: ProgramConfig) -> Result<Program, ModuleError> {
        Program::made(sandbox, config, false)
    }

    /// The program that runs a module's initialiser.
    pub(crate) fn initialising(sandbox: &Sandbox, config: ProgramConfig) -> Result<Program, ModuleError> {
        Program::made(sandbox, config, true)
    }

    fn made(sandbox: &Sandbox, config: ProgramConfig, initialising: bool) -> Result<Program, ModuleError> {
        let parts = sandbox.inner.clone();
        let (asked, most) = (config.limits.memory, parts.memory);
        if asked > most {
            return Err(ModuleError::Host(format!("a memory limit of {asked} bytes where the sandbox has {most}")));
        }
        if config.assets.as_ref().is_some_and(|assets| !assets.is_dir()) {
            return Err(ModuleError::Host("the model's assets are not a folder".into()));
        }
        let network = (!config.grants.network.is_empty())
            .then(|| Network::new(&config.grants, &config.closed, Names::of_program(&parts.names)));
        let label: Arc<str> = config.label.into();
        let share = Share { name: label.clone(), weight: config.weight };
        let inner = Inner {
            engine: config.module.inner.engine().clone(),
            files: parts.files.of_program(),
            sandbox: parts,
            is_command: config.module.kind() == ModuleKind::Command,
            module: config.module,
            troupe: Arc::new(Troupe::new(config.engines.clone(), share.clone())),
            share,
            label,
            graphs: config.graphs,
            assets: config.assets,
            args: config.args,
            env: config.env,
            limits: config.limits,
            grants: config.grants,
            engines: config.engines,
            network: network.map(Arc::new),
            initialising,
        };
        let kept = Kept::new(&inner)?;
        Ok(Program { inner: Arc::new(inner), kept })
    }

    /// Jobs that its calls have handed to engines and that have not begun.
    pub fn waiting(&self) -> usize {
        self.inner.graphs.values().map(|graph| graph.queued_by(&self.inner.label)).sum()
    }

    /// The module that it runs.
    pub fn module(&self) -> &Module {
        &self.inner.module
    }

    /// The signature of a module of the world `model`; asked of the guest, in an instance of its own.
    ///
    /// # Errors
    /// As any call; [`CallError::Contract`] when it names a graph that the model does not have.
    pub async fn describe(&self, context: &CallContext) -> Result<Description, CallError> {
        infer::describe(&self.inner, context).await
    }

    /// One inference, in a fresh instance unless the limits let one answer several requests. `signature` is what `describe` returned: it says which type each output has.
    ///
    /// # Errors
    /// As [`CallError`] says. Dropping the future ends the call and frees what it held.
    pub async fn infer(
        &self,
        signature: &Description,
        request: InferRequest,
        context: &CallContext,
    ) -> Result<InferResponse, CallError> {
        infer::infer(self, signature, request, context).await
    }

    /// One exchange with a `wasi:http` component. The answer's body streams; the model's limits hold until its end.
    ///
    /// # Errors
    /// As [`CallError`] says, when it fails before the answer's head. A body that fails later ends with a
    /// [`CallError`] as its error.
    pub async fn serve(
        &self,
        request: http::Request<HttpBody>,
        context: &CallContext,
    ) -> Result<http::Response<HttpBody>, CallError> {
        exchange::serve(&self.inner, request, context).await
    }

    /// One run of a `wasi:cli` command.
    ///
    /// # Errors
    /// As [`CallError`] says.
    pub async fn run(&self, stdin: Bytes, context: &CallContext) -> Result<CommandOutput, CallError> {
        command::run(&self.inner, stdin, context).await
    }
}

impl Inner {
    /// What a call starts from.
    pub(crate) async fn code(&self) -> Result<InUse, CallError> {
        self.module.inner.in_use(&self.sandbox).await
    }

    /// Begins to watch a call.
    pub(crate) fn watch(&self, context: &CallContext) -> Registration {
        let cpu = Duration::from_millis(self.limits.cpu_ms);
        let watch = Watch::new(context.deadline, self.limits.wall(), cpu);
        self.sandbox.ticker.watch(watch, (self.troupe.clone(), context.tenant.clone()))
    }

    /// Runs `body` on a fresh store, within the limits of the program.
    pub(crate) async fn call<T>(
        self: &Arc<Self>,
        context: &CallContext,
        body: impl AsyncFnOnce(&mut Store<State>, InUse) -> Result<T, Outcome>,
    ) -> Result<T, CallError> {
        let call = self.watch(context);
        self.call_watched(&call, context, None, body).await
    }

    /// As [`Inner::call`], for a call that is already watched.
    pub(crate) async fn call_watched<T>(
        self: &Arc<Self>,
        call: &Registration,
        context: &CallContext,
        stdio: Option<Stdio>,
        body: impl AsyncFnOnce(&mut Store<State>, InUse) -> Result<T, Outcome>,
    ) -> Result<T, CallError> {
        self.run(call, &mut State::store(self, call, context, stdio), body).await
    }

    /// Runs `body` on a store of the call, within the limits of the program.
    pub(crate) async fn run<T>(
        &self,
        call: &Registration,
        store: &mut Store<State>,
        body: impl AsyncFnOnce(&mut Store<State>, InUse) -> Result<T, Outcome>,
    ) -> Result<T, CallError> {
        let run = async {
            let code = self.code().await?;
            body(&mut *store, code).await
        };
        let ended = call.guard(pin!(run)).await;
        match ended {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Outcome::Call(error))) => Err(error),
            Ok(Err(Outcome::Guest(error))) => Err(store.data_mut().failure(&error)),
            Err(end) => Err(end.into()),
        }
    }
}

/// How a call went wrong: in words of our own, or in the guest, where the store knows why.
pub(crate) enum Outcome {
    Call(CallError),
    Guest(wasmtime::Error),
}

impl From<CallError> for Outcome {
    fn from(error: CallError) -> Outcome {
        Outcome::Call(error)
    }
}

impl From<wasmtime::Error> for Outcome {
    fn from(error: wasmtime::Error) -> Outcome {
        Outcome::Guest(error)
    }
}
