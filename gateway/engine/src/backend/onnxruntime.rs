//! ONNX Runtime, through its C interface and a shared library that is looked for when the process starts.
//!
//! On the CPU, with one thread a session, the sessions of a graph are workers that run *one* ONNX Runtime session at
//! the same time: its `Run` is documented to allow that, the CPU provider's kernels keep no state, and the weights are
//! then held once. With more threads each has a session of its own, and a copy of the weights, which count that often:
//! runs at the same time would share one session's threads, so that each had fewer than it was given, or, with a pool
//! for all of them, a run alone had them all. On a GPU it is so as well.

mod assignment;
mod library;
mod value;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::ep::CUDA;
use ort::logging::LogLevel;
use ort::session::Session as OrtSession;
use ort::session::builder::SessionBuilder;

use self::assignment::Assignments;
use self::value::{CpuMemory, Value};
use super::{Engine, Loaded, Loading, Session, Work};
use crate::{
    DataType, Device, EngineError, EngineInfo, EnginesConfig, GraphInfo, GraphSpec, Isolation, OnnxRuntimeLibrary,
    Tensor,
};

/// The one library of this process, once it is initialised: it cannot be unloaded or replaced.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

#[derive(Clone)]
struct Runtime {
    path: PathBuf,
    version: String,
    environment: Environment,
    assignments: Option<Assignments>,
}

/// The engine.
pub(crate) struct OnnxRuntime {
    info: EngineInfo,
    environment: Environment,
    /// How to learn which provider runs what; none where the library is too old to tell.
    assignments: Option<Assignments>,
}

/// The library that the configuration asks for; `None` when it is off or a search finds none.
pub(crate) fn find(config: &EnginesConfig) -> Result<Option<OnnxRuntime>, EngineError> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    match &config.onnxruntime {
        OnnxRuntimeLibrary::Off => return Ok(None),
        OnnxRuntimeLibrary::Path(path) => {
            let same = |r: &Runtime| r.path == path.canonicalize().unwrap_or_else(|_| path.clone());
            match &*runtime {
                Some(loaded) if same(loaded) => {}
                Some(loaded) => {
                    let version = &loaded.version;
                    return Err(unavailable(format!("another ONNX Runtime, {version}, is loaded in this process")));
                }
                None => *runtime = Some(start(path.clone())?),
            }
        }
        OnnxRuntimeLibrary::Search => {
            for path in library::candidates(&config.search) {
                if runtime.is_some() {
                    break;
                }
                match start(path.clone()) {
                    Ok(started) => *runtime = Some(started),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "this ONNX Runtime is not used"),
                }
            }
        }
    }
    runtime.clone().map(OnnxRuntime::new).transpose()
}

/// Checks a library's version, and only then initialises it: an old one hangs there.
fn start(path: PathBuf) -> Result<Runtime, EngineError> {
    let path = path.canonicalize().unwrap_or(path);
    let base = library::base(&path).map_err(unavailable)?;
    let version = library::version(base).map_err(unavailable)?;
    let builder = ort::init_from(&path).map_err(|_| unavailable("the ONNX Runtime library does not load".into()))?;
    let environment = builder.with_name("windrose").with_telemetry(false).with_logger(Arc::new(log)).build();
    let environment = environment.map_err(|e| unavailable(format!("ONNX Runtime does not start: {}", cleaned(&e))))?;
    environment.set_log_level(LogLevel::Warning);
    let assignments = Assignments::of(base, &version);
    Ok(Runtime { path, version, environment, assignments })
}

/// Hands on what the library logs. Its errors are returned as well, and its warnings are about optimisation.
fn log(level: LogLevel, category: &str, _id: &str, place: &str, message: &str) {
    match level {
        LogLevel::Fatal => tracing::error!(category, place, message, "ONNX Runtime"),
        LogLevel::Error | LogLevel::Warning => tracing::debug!(category, place, message, "ONNX Runtime"),
        LogLevel::Info | LogLevel::Verbose => {}
    }
}

impl OnnxRuntime {
    fn new(runtime: Runtime) -> Result<OnnxRuntime, EngineError> {
        let Runtime { version, environment, assignments, .. } = runtime;
        let info = EngineInfo { name: "onnxruntime".into(), version, providers: value::providers()? };
        Ok(OnnxRuntime { info, environment, assignments })
    }

    /// A session, or the reason why there is none. On a GPU with its nodes by the provider that runs them.
    fn session(
        &self,
        onnx: &[u8],
        threads: usize,
        device: Device,
    ) -> Result<(OrtSession, BTreeMap<String, usize>), EngineError> {
        let builder = self.builder(threads).map_err(|e| failed("cannot make a session", &e))?;
        if device == Device::Cpu {
            return Ok((committed(builder, onnx)?, BTreeMap::new()));
        }
        let assignments = self.assignments.ok_or_else(|| {
            let (version, since) = (&self.info.version, assignment::SINCE);
            unavailable(format!("ONNX Runtime {version} does not tell what it runs on a GPU: 1.{since} is needed"))
        })?;
        let builder = assignment::recorded(builder).map_err(|e| failed("cannot make a session", &e))?;
        // Registered first and as an error if that fails: what was asked for is never replaced by the CPU.
        // And in full precision: unless it is told not to, it rounds what it multiplies to 10 bits (TF32).
        let cuda = [CUDA::default().with_tf32(false).build().error_on_failure()];
        let registered = builder.with_execution_providers(cuda);
        let builder =
            registered.map_err(|e| unavailable(format!("the CUDA provider does not start: {}", cleaned(&e))))?;
        let session = committed(builder, onnx)?;
        let nodes = on_gpu(assignments.read(&session)?)?;
        Ok((session, nodes))
    }

    fn builder(&self, threads: usize) -> Result<SessionBuilder, ort::Error> {
        let builder = OrtSession::builder(&self.environment)?
            .with_log_level(LogLevel::Warning)?
            .with_intra_threads(threads)?
            .with_intra_op_spinning(false)?
            .with_inter_threads(1)?
            .with_parallel_execution(false)?;
        Ok(builder)
    }
}

impl Engine for OnnxRuntime {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn traps(&self) -> bool {
        true
    }

    fn copies(&self, device: Device, sessions: usize, threads: usize) -> usize {
        if is_shared(device, threads) { 1 } else { sessions }
    }

    fn load(&self, graph: Loading) -> Result<Loaded, EngineError> {
        let Loading { onnx, model, device, sessions, threads } = graph;
        let provider = if device == Device::Cpu { "CPU" } else { "CUDA" };
        if !self.info.providers.iter().any(|p| p == provider) {
            return Err(unavailable(format!("this ONNX Runtime has no {provider} provider")));
        }
        let core = || {
            let (session, nodes) = self.session(&onnx, threads, device)?;
            Ok(Arc::new(Core::new(session, nodes, &model.spec)?))
        };
        let shared = is_shared(device, threads);
        let cores: Vec<Arc<Core>> = match shared {
            true => vec![core()?; sessions],
            false => (0..sessions).map(|_| core()).collect::<Result<_, EngineError>>()?,
        };
        let info = GraphInfo {
            engine: self.info.name.clone(),
            version: self.info.version.clone(),
            provider: provider.into(),
            nodes: cores.first().map(|core| core.nodes.clone()).unwrap_or_default(),
            sessions,
            threads,
            isolation: Isolation::Process,
        };
        let sessions = cores.into_iter().map(|core| -> Box<dyn Session> { Box::new(Runner { core, shared }) });
        Ok(Loaded { info, sessions: sessions.collect() })
    }
}

/// Whether the workers of a graph run one session.
fn is_shared(device: Device, threads: usize) -> bool {
    device == Device::Cpu && threads == 1
}

/// Loads a graph into the session that was set up.
fn committed(mut builder: SessionBuilder, onnx: &[u8]) -> Result<OrtSession, EngineError> {
    builder
        .commit_from_memory(onnx)
        .map_err(|e| EngineError::InvalidGraph(format!("ONNX Runtime cannot load this graph: {}", cleaned(&e))))
}

/// The nodes of a session for the GPU, by provider. The library gives the CPU whatever its CUDA provider does not take,
/// and does not call it an error if that is everything.
fn on_gpu(nodes: BTreeMap<String, usize>) -> Result<BTreeMap<String, usize>, EngineError> {
    if nodes.get("CUDA").is_some_and(|count| *count > 0) {
        return Ok(nodes);
    }
    let why = "ONNX Runtime's CUDA provider takes none of this graph's nodes: this graph needs device = \"cpu\"";
    Err(EngineError::Unsupported(why.into()))
}

/// One session of the library, and what each of its runs needs.
struct Core {
    session: OrtSession,
    /// Nodes by provider, on a GPU.
    nodes: BTreeMap<String, usize>,
    inputs: Vec<CString>,
    outputs: Vec<(CString, DataType)>,
    memory: CpuMemory,
}

impl Core {
    fn new(session: OrtSession, nodes: BTreeMap<String, usize>, spec: &GraphSpec) -> Result<Core, EngineError> {
        let name = |name: &str| {
            let nul = || EngineError::InvalidGraph(format!("the name '{name}' holds a NUL"));
            CString::new(name).map_err(|_| nul())
        };
        let inputs = spec.inputs.iter().map(|s| name(&s.name)).collect::<Result<_, _>>()?;
        let outputs =
            spec.outputs.iter().map(|s| Ok((name(&s.name)?, s.datatype))).collect::<Result<_, EngineError>>()?;
        Ok(Core { session, nodes, inputs, outputs, memory: CpuMemory::new()? })
    }

    /// Runs the graph; the values are for the outputs that were asked for.
    fn run(&self, inputs: &[Value<'_>], outputs: &[&(CString, DataType)]) -> Result<Vec<Value<'static>>, EngineError> {
        let input_names: Vec<_> = self.inputs.iter().map(|name| name.as_ptr()).collect();
        let input_values: Vec<_> = inputs.iter().map(Value::as_ptr).collect();
        let output_names: Vec<_> = outputs.iter().map(|(name, _)| name.as_ptr()).collect();
        let mut output_values = vec![null_mut(); outputs.len()];
        debug_assert_eq!(input_names.len(), input_values.len());
        let count = input_names.len().min(input_values.len());
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the session, the names and the input values live until the call returns, and each count is that of
        // its arrays. `OrtApi::Run` may be called for one session from several threads at once, as the C interface
        // documents; only sessions on the CPU provider are shared between workers. Output values are null, so that
        // the library makes them, and each that it made is owned by the `Value` below, whether the run failed or not.
        let (ran, values) = unsafe {
            let status = (ort::api().Run)(
                self.session.ptr().cast_mut(),
                null(),
                input_names.as_ptr(),
                input_values.as_ptr(),
                count,
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            );
            let values: Vec<_> = output_values.into_iter().map(|value| Value::owned(value)).collect();
            (ort::Error::result_from_status(status), values)
        };
        ran.map_err(|e| failed("failed to run this graph", &e))?;
        let missing = || EngineError::Failed("ONNX Runtime returned no value for an output".into());
        values.into_iter().map(|value| value.ok_or_else(missing)).collect()
    }

    /// What a failed run means: strings are UTF-8 to the library's operators. Those that only pass strings on take any bytes,
    /// so that no input is refused before.
    fn blame(&self, inputs: &[Tensor], error: EngineError) -> EngineError {
        for (name, tensor) in self.inputs.iter().zip(inputs) {
            if let Some(at) = tensor.strings().position(|string| std::str::from_utf8(&string).is_err()) {
                let name = name.to_string_lossy();
                let why = format!("input \"{name}\": element {at} is not UTF-8, which this graph needs");
                return EngineError::InvalidInput(why);
            }
        }
        error
    }
}

/// One worker's access to a session.
struct Runner {
    core: Arc<Core>,
    /// Whether several may run at the same time.
    shared: bool,
}

impl Session for Runner {
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, EngineError> {
        let core = &self.core;
        let memory = inputs.iter().map(value::aligned).collect::<Vec<_>>();
        let values: Vec<Value<'_>> = inputs
            .iter()
            .zip(&memory)
            .map(|(tensor, memory)| Value::input(tensor, memory, &core.memory))
            .collect::<Result<_, _>>()?;
        let wanted: Vec<_> = outputs.iter().filter_map(|at| core.outputs.get(*at)).collect();
        let returned = core.run(&values, &wanted).map_err(|error| core.blame(inputs, error))?;
        let owner: value::Owner = Arc::clone(core) as value::Owner;
        let outputs = returned.into_iter().zip(&wanted);
        outputs.map(|(value, (_, datatype))| value.into_tensor(*datatype, &memory, &owner)).collect()
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        work(self);
    }

    fn beside(&self) -> Option<Box<dyn Session>> {
        self.shared.then(|| Box::new(Runner { core: Arc::clone(&self.core), shared: true }) as Box<dyn Session>)
    }
}

fn unavailable(why: String) -> EngineError {
    EngineError::Unavailable(why)
}

/// The error of a call that failed while the graph ran.
fn failed<R>(what: &str, error: &ort::Error<R>) -> EngineError {
    EngineError::Failed(format!("ONNX Runtime {what}: {}", cleaned(error)))
}

/// The library's message without the paths of the machine that it was built on.
fn cleaned<R>(error: &ort::Error<R>) -> String {
    let words = error.message().split_whitespace().filter(|word| !word.starts_with('/'));
    words.collect::<Vec<_>>().join(" ")
}
