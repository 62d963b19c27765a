//! What a store holds for a call: the guest's handles, what it may use, and why it ended.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use wasmtime::component::ResourceTable;
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store, Trap};
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::DEFAULT_OUTGOING_BODY_CHUNK_SIZE;
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView};
use wasmtime_wasi_http::{WasiHttpHooks, WasiHttpView};
use windrose_engine::EngineError;

use crate::files::Opened;
use crate::net::{self, Network};
use crate::output::Sink;
use crate::program::Inner;
use crate::sockets::{self, Lookups};
use crate::ticker::{End, Registration, Watch};
use crate::words::Words;
use crate::{CallContext, CallError, initialise};

/// Handles of every kind that one call may hold at a time.
const HANDLES: usize = 10_000;
/// Random bytes that a guest may ask for at once.
const RANDOM: u64 = 1 << 20;
/// What a guest may hand to the host at once beside a tensor: names, headers, log lines.
const HOSTCALL: u64 = 1 << 20;
/// Bytes of one element of a table, as they are counted.
const TABLE_ELEMENT: u64 = 8;

/// The data of a store.
pub(crate) struct State {
    pub(crate) program: Arc<Inner>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) table: ResourceTable,
    /// Host bytes of the tensors that the call holds.
    pub(crate) tensor_bytes: u64,
    /// Graphs of its own that the guest asked to be loaded, those that could not be included.
    pub(crate) loads: usize,
    /// The last error of an engine that the guest was given and has not got over.
    pub(crate) engine_error: Option<EngineError>,
    /// The names that the guest looked up.
    pub(crate) lookups: Lookups,
    /// Bytes of linear memories and tables.
    memory: u64,
    request_id: Arc<str>,
    /// Who is calling.
    pub(crate) tenant: Arc<str>,
    /// What a command reads and writes; other guests write to the log.
    stdio: Option<Stdio>,
    log: Option<Sink>,
    /// Made when the guest first asks for it: most never do, and it costs more than the call.
    wasi: Option<Box<WasiCtx>>,
    host_error: Option<String>,
    http: WasiHttpCtx,
    hooks: Hooks,
}

/// The standard streams of a command.
pub(crate) struct Stdio {
    pub(crate) input: Bytes,
    pub(crate) output: Sink,
}

impl State {
    /// A store for one call of `program`.
    pub(crate) fn store(
        program: &Arc<Inner>,
        call: &Registration,
        context: &CallContext,
        stdio: Option<Stdio>,
    ) -> Store<State> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES);
        let state = State {
            program: program.clone(),
            watch: call.watch().clone(),
            table,
            tensor_bytes: 0,
            loads: 0,
            engine_error: None,
            lookups: Lookups::default(),
            memory: 0,
            request_id: context.request_id.clone(),
            tenant: context.tenant.clone(),
            stdio,
            log: None,
            wasi: None,
            host_error: None,
            http: WasiHttpCtx::new(),
            hooks: Hooks { opened: Opened::new(program), words: Words::default() },
        };
        let mut store = Store::new(&program.engine, state);
        store.limiter(|state| state);
        pace(&mut store, call);
        let largest = program.limits.tensor_memory.max(program.limits.output).saturating_add(HOSTCALL);
        store.set_hostcall_fuel(usize::try_from(largest).unwrap_or(usize::MAX));
        store.set_max_component_handles(HANDLES);
        store
    }

    /// Whether another request may have the instance: nothing has ended this one, and the host holds nothing of it.
    pub(crate) fn may_wait(&mut self) -> bool {
        if let Some(log) = &self.log {
            log.finish();
        }
        let is_whole = self.watch.ended().is_none() && self.host_error.is_none();
        is_whole && self.tensor_bytes == 0 && self.hooks.words.is_empty() && self.hooks.opened.may_wait()
    }

    /// Begins another call in a store that waited, of the same tenant.
    pub(crate) fn again(store: &mut Store<State>, call: &Registration, context: &CallContext) {
        let state = store.data_mut();
        state.watch = call.watch().clone();
        state.request_id = context.request_id.clone();
        state.engine_error = None;
        state.loads = 0;
        state.hooks.opened.again();
        if let Some(log) = &state.log {
            log.again(state.watch.clone(), state.program.limits.log, context.request_id.clone());
        }
        pace(store, call);
    }

    /// What the program's grants open.
    pub(crate) fn network(&self) -> Option<&Arc<Network>> {
        self.program.network.as_ref()
    }

    /// The files and sockets that the call has opened.
    pub(crate) fn opened(&mut self) -> &mut Opened {
        &mut self.hooks.opened
    }

    /// What the call has had `wasi:http` keep.
    pub(crate) fn words(&mut self) -> &mut Words {
        &mut self.hooks.words
    }

    /// Why a call has failed: what ended it, what its engine said, or what the guest did.
    pub(crate) fn failure(&mut self, error: &wasmtime::Error) -> CallError {
        if let Some(end) = self.watch.ended() {
            return end.into();
        }
        if let Some(text) = self.host_error.take() {
            return CallError::Host(text);
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return CallError::Busy;
        }
        if let Some(error) = self.engine_error.take() {
            return CallError::Engine(error);
        }
        if let Some(Trap::StackOverflow) = error.downcast_ref::<Trap>() {
            return End::Stack.into();
        }
        let mut text = error.root_cause().to_string();
        if let Some(log) = &self.log {
            let last = log.finish();
            if !last.is_empty() {
                text = format!("{text}; its last words: {last}");
            }
        }
        CallError::Trapped(text)
    }

    fn log(&mut self) -> Sink {
        let program = &self.program;
        let new = || Sink::log(self.watch.clone(), program.limits.log, program.label.clone(), self.request_id.clone());
        self.log.get_or_insert_with(new).clone()
    }

    fn make_wasi(&mut self) -> WasiCtx {
        let log = self.log();
        let program = &self.program;
        let mut builder = WasiCtx::builder();
        builder.stderr(log.clone()).max_random_size(RANDOM).envs(&program.env);
        match self.stdio.take() {
            Some(stdio) => builder.stdin(MemoryInputPipe::new(stdio.input)).stdout(stdio.output),
            None => builder.stdout(log),
        };
        builder.arg(&*program.label).args(&program.args);
        // Assets are local files: reading them in place costs less than a thread.
        builder.allow_blocking_current_thread(true);
        if let Some(assets) = &program.assets {
            for name in if program.is_command { &["/", "."][..] } else { &["/"] } {
                if let Err(error) = builder.preopened_dir(Path::new(assets), name, FsPerms::ReadOnly) {
                    self.host_error = Some(format!("the model's assets: {}", error.root_cause()));
                }
            }
        }
        if program.initialising {
            initialise::freeze(&mut builder, program.module.digest());
        }
        if let Some(network) = &program.network {
            sockets::grant(&mut builder, network.clone(), self.lookups.clone());
        }
        builder.build()
    }
}

/// Puts a store under the watch of a call.
fn pace(store: &mut Store<State>, call: &Registration) {
    let pacer = call.pacer();
    store.epoch_deadline_callback(move |_| Ok(pacer.tick()));
    store.set_epoch_deadline(1);
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.finish();
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if self.wasi.is_none() {
            self.wasi = Some(Box::new(self.make_wasi()));
        }
        let ctx = self.wasi.get_or_insert_with(|| Box::new(WasiCtx::builder().build()));
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Where a guest's own requests go.
struct Hooks {
    opened: Opened,
    words: Words,
}

type Driver = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type Sent = Box<dyn Future<Output = Result<(Response<WasiBody>, Driver), HttpError>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(&mut self, request: Request<WasiBody>, options: Option<RequestOptions>, _: Driver) -> Sent {
        let network = self.opened.network().cloned();
        let is_one_more = network.is_some() && self.opened.one_more();
        Box::new(async move {
            let network = network.ok_or(HttpError::HttpRequestDenied)?;
            if !is_one_more {
                return Err(HttpError::ConnectionLimitReached);
            }
            let (response, driver) = net::send(&network, request, options).await?;
            Ok((response, Box::new(driver) as Driver))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        self.words.chunk(DEFAULT_OUTGOING_BODY_CHUNK_SIZE)
    }
}

impl State {
    /// Counts the growth of a memory or a table, or ends the call.
    fn grow(&mut self, current: u64, desired: u64) -> wasmtime::Result<bool> {
        let memory = self.memory.saturating_sub(current).saturating_add(desired);
        if memory > self.program.limits.memory {
            self.watch.end(End::Memory);
            wasmtime::bail!("more memory than the model may use");
        }
        self.memory = memory;
        Ok(true)
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current as u64, desired as u64)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current as u64 * TABLE_ELEMENT, (desired as u64).saturating_mul(TABLE_ELEMENT))
    }
}
