//! Our own `wasi:nn` host: tensors are handles, graphs are those of the model's manifest, `compute` waits for the
//! engine without a thread.
//!
//! A tensor's handle stands for an engine's tensor; its bytes enter the guest only by `data` and leave it only by the
//! constructor. `wasi:nn` has no byte strings: a U8 tensor whose data is not as long as its dimensions say holds them,
//! each as a little-endian `u32` length and its bytes, as many as the dimensions say.

use bytes::Bytes;
use wasmtime::component::{HasSelf, Linker, Resource};
use windrose_engine::{DataType, Device, EngineError, Fault, Graph, GraphOptions, Isolation, Job, Tensor};

use crate::state::State;
use crate::ticker::End;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../guest-sdk/wit",
        world: "windrose:model/model",
        imports: {
            "wasi:nn/graph.load": async | trappable,
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: {
            "wasi:nn/tensor.tensor": windrose_engine::Tensor,
            "wasi:nn/graph.graph": windrose_engine::Graph,
            "wasi:nn/inference.graph-execution-context": super::Execution,
            "wasi:nn/errors.error": super::Failure,
        },
    });
}

pub(crate) use bindings::windrose::model::types;
pub(crate) use bindings::{Model, ModelPre};

use bindings::wasi::nn::errors::{self, ErrorCode};
use bindings::wasi::nn::graph::{self, ExecutionTarget, GraphEncoding};
use bindings::wasi::nn::inference;
use bindings::wasi::nn::tensor::{self, TensorType};

/// Host memory of a handle beside its bytes, as it is counted.
const HANDLE: u64 = 128;

/// A graph that a guest computes with.
pub struct Execution {
    graph: Graph,
}

/// An error that a guest holds.
pub struct Failure {
    code: ErrorCode,
    text: String,
}

impl Failure {
    /// What the handle counts for.
    fn weight(&self) -> u64 {
        self.text.len() as u64 + HANDLE
    }
}

/// Links `wasi:nn` and the types of the world `model`.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    Model::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

/// What a handle counts for.
fn weight(tensor: &Tensor) -> u64 {
    tensor.data().len() as u64 + HANDLE
}

impl State {
    /// Puts a tensor into the guest's table.
    pub(crate) fn push_tensor(&mut self, tensor: Tensor) -> wasmtime::Result<Resource<Tensor>> {
        self.charge(weight(&tensor))?;
        Ok(self.table.push(tensor)?)
    }

    /// Takes a tensor that the guest gave away.
    pub(crate) fn take_tensor(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(handle)?;
        self.release(weight(&tensor));
        Ok(tensor)
    }

    /// Counts host memory for the guest's tensors, or ends the call.
    pub(crate) fn charge(&mut self, bytes: u64) -> wasmtime::Result<()> {
        self.tensor_bytes = self.tensor_bytes.saturating_add(bytes);
        if self.tensor_bytes > self.program.limits.tensor_memory {
            self.watch.end(End::TensorMemory);
            wasmtime::bail!("more tensor memory than the model may use");
        }
        Ok(())
    }

    /// Counts less of it.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.tensor_bytes = self.tensor_bytes.saturating_sub(bytes);
    }

    fn fail<T>(&mut self, code: ErrorCode, text: impl Into<String>) -> wasmtime::Result<Result<T, Resource<Failure>>> {
        let failure = Failure { code, text: text.into() };
        self.charge(failure.weight())?;
        Ok(Err(self.table.push(failure)?))
    }

    /// Gives the guest an engine's error, and keeps it for the case that the guest fails because of it.
    fn fail_engine<T>(&mut self, error: EngineError) -> wasmtime::Result<Result<T, Resource<Failure>>> {
        let (code, text) = (code(&error), error.to_string());
        self.engine_error = Some(error);
        self.fail(code, text)
    }
}

/// The error code that says most about an engine's error.
fn code(error: &EngineError) -> ErrorCode {
    match error {
        EngineError::InvalidInput(_) => ErrorCode::InvalidArgument,
        EngineError::InvalidGraph(_) => ErrorCode::InvalidEncoding,
        EngineError::Unsupported(_) | EngineError::Unavailable(_) => ErrorCode::UnsupportedOperation,
        other if matches!(other.fault(), Fault::Deadline | Fault::Time) => ErrorCode::Timeout,
        _ => ErrorCode::RuntimeError,
    }
}

// === impl wasi:nn/tensor ===

impl tensor::Host for State {}

impl tensor::HostTensor for State {
    fn new(&mut self, dimensions: Vec<u32>, ty: TensorType, data: Vec<u8>) -> wasmtime::Result<Resource<Tensor>> {
        let shape: Vec<usize> = dimensions.iter().map(|d| *d as usize).collect();
        let data = Bytes::from(data);
        let (datatype, length) = (datatype(ty), data.len());
        let mut tensor = Tensor::new(datatype, shape.clone(), data.clone());
        if tensor.is_err() && datatype == DataType::Uint8 {
            tensor = Tensor::new(DataType::Bytes, shape, data);
        }
        let tensor = tensor.map_err(|_| {
            wasmtime::format_err!("a {datatype} tensor of dimensions {dimensions:?} cannot hold {length} bytes")
        })?;
        self.push_tensor(tensor)
    }

    fn dimensions(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        let shape = self.table.get(&handle)?.shape();
        Ok(shape.iter().map(|d| u32::try_from(*d)).collect::<Result<_, _>>()?)
    }

    fn ty(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<TensorType> {
        Ok(carrier(self.table.get(&handle)?.datatype()))
    }

    fn data(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&handle)?.data().to_vec())
    }

    fn drop(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<()> {
        self.take_tensor(handle).map(drop)
    }
}

fn datatype(ty: TensorType) -> DataType {
    match ty {
        TensorType::Fp16 => DataType::Fp16,
        TensorType::Fp32 => DataType::Fp32,
        TensorType::Fp64 => DataType::Fp64,
        TensorType::Bf16 => DataType::Bf16,
        TensorType::U8 => DataType::Uint8,
        TensorType::I32 => DataType::Int32,
        TensorType::I64 => DataType::Int64,
    }
}

/// The `wasi:nn` type that a tensor shows: that of the same width, where there is none of its own.
fn carrier(datatype: DataType) -> TensorType {
    match datatype {
        DataType::Bool | DataType::Int8 | DataType::Uint8 | DataType::Bytes => TensorType::U8,
        DataType::Int16 | DataType::Uint16 | DataType::Fp16 => TensorType::Fp16,
        DataType::Bf16 => TensorType::Bf16,
        DataType::Int32 | DataType::Uint32 => TensorType::I32,
        DataType::Int64 | DataType::Uint64 => TensorType::I64,
        DataType::Fp32 => TensorType::Fp32,
        DataType::Fp64 => TensorType::Fp64,
    }
}

// === impl wasi:nn/graph ===

/// Graphs that one call may ask to be loaded from bytes of its own: each is read, and has a process while it is held.
const LOADS: usize = 16;

type Loaded = wasmtime::Result<Result<Resource<Graph>, Resource<Failure>>>;

impl graph::Host for State {
    async fn load(&mut self, builder: Vec<Vec<u8>>, encoding: GraphEncoding, target: ExecutionTarget) -> Loaded {
        if !self.program.grants.load {
            return self.fail(ErrorCode::Security, "this model was not granted `load`: use `load-by-name`");
        }
        if !matches!(encoding, GraphEncoding::Onnx | GraphEncoding::Autodetect) {
            return self.fail(ErrorCode::InvalidEncoding, "only ONNX graphs are served");
        }
        let device = match target {
            ExecutionTarget::Cpu => Device::Cpu,
            ExecutionTarget::Gpu => Device::Gpu,
            ExecutionTarget::Tpu => return self.fail(ErrorCode::UnsupportedOperation, "there is no TPU engine"),
        };
        let Ok([onnx]) = <[Vec<u8>; 1]>::try_from(builder) else {
            return self.fail(ErrorCode::InvalidArgument, "an ONNX graph is one builder");
        };
        if self.loads >= LOADS {
            return self.fail(ErrorCode::TooLarge, format!("a call may load {LOADS} graphs of its own, and has"));
        }
        self.loads += 1;
        // Held until the call ends: the engine's copy lives as long as any handle to it.
        self.charge(onnx.len() as u64)?;
        let engines = self.program.engines.clone();
        // Nobody has looked at this graph: whatever holds for the deployed ones, it gets a process of its own. Its engine
        // is `auto`, as the operator means that.
        let (sessions, isolation) = (Some(1), Isolation::Child);
        let options = GraphOptions { device, sessions, isolation, ..GraphOptions::default() };
        let loaded = tokio::task::spawn_blocking(move || engines.load(Bytes::from(onnx), &options)).await;
        match loaded {
            Ok(Ok(graph)) => Ok(Ok(self.table.push(graph)?)),
            Ok(Err(error)) => self.fail_engine(error),
            Err(_) => self.fail_engine(EngineError::Failed("the engine failed while it loaded the graph".into())),
        }
    }

    fn load_by_name(&mut self, name: String) -> Loaded {
        match self.program.graphs.get(&name) {
            Some(graph) => Ok(Ok(self.table.push(graph.clone())?)),
            None => self.fail(ErrorCode::NotFound, format!("this model has no graph named `{name}`")),
        }
    }
}

impl graph::HostGraph for State {
    fn init_execution_context(
        &mut self,
        handle: Resource<Graph>,
    ) -> wasmtime::Result<Result<Resource<Execution>, Resource<Failure>>> {
        let graph = self.table.get(&handle)?.clone();
        Ok(Ok(self.table.push(Execution { graph })?))
    }

    fn drop(&mut self, handle: Resource<Graph>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

// === impl wasi:nn/inference ===

impl inference::Host for State {}

impl inference::HostGraphExecutionContext for State {
    async fn compute(
        &mut self,
        handle: Resource<Execution>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> wasmtime::Result<Result<Vec<(String, Resource<Tensor>)>, Resource<Failure>>> {
        let graph = self.table.get(&handle)?.graph.clone();
        let mut job = Job {
            inputs: Vec::with_capacity(inputs.len()),
            outputs: Vec::new(),
            deadline: Some(self.watch.deadline),
            tenant: self.tenant.clone(),
            share: self.program.share.clone(),
        };
        let mut held = 0;
        for (name, handle) in inputs {
            let tensor = self.table.delete(handle)?;
            held += weight(&tensor);
            job.inputs.push((input_name(&graph, name), tensor));
        }
        let computed = graph.compute(job).await;
        self.release(held);
        let outputs = match computed {
            Ok(outputs) => outputs,
            Err(error) => return self.fail_engine(error),
        };
        self.engine_error = None;
        let push = |(name, tensor)| Ok((name, self.push_tensor(tensor)?));
        outputs.into_iter().map(push).collect::<wasmtime::Result<_>>().map(Ok)
    }

    fn drop(&mut self, handle: Resource<Execution>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

/// The graph's own name of an input: many guests number theirs.
fn input_name(graph: &Graph, name: String) -> String {
    let inputs = &graph.spec().inputs;
    if inputs.iter().any(|input| input.name == name) {
        return name;
    }
    match name.parse::<usize>().ok().and_then(|index| inputs.get(index)) {
        Some(input) => input.name.clone(),
        None => name,
    }
}

// === impl wasi:nn/errors ===

impl errors::Host for State {}

impl errors::HostError for State {
    fn code(&mut self, handle: Resource<Failure>) -> wasmtime::Result<ErrorCode> {
        Ok(self.table.get(&handle)?.code)
    }

    fn data(&mut self, handle: Resource<Failure>) -> wasmtime::Result<String> {
        Ok(self.table.get(&handle)?.text.clone())
    }

    fn drop(&mut self, handle: Resource<Failure>) -> wasmtime::Result<()> {
        let failure = self.table.delete(handle)?;
        self.release(failure.weight());
        Ok(())
    }
}

impl types::Host for State {}
