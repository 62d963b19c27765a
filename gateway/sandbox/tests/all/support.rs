//! What the tests share: one sandbox, one engine, programs of built guests and of text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use windrose_engine::{Engines, EnginesConfig, Graph, GraphOptions, OnnxRuntimeLibrary, Tensor, default_tenant};
use windrose_sandbox::{
    CallContext, Grants, InferRequest, Limits, Module, Parameter, Program, ProgramConfig, Sandbox, SandboxConfig,
};

/// The process's sandbox, without a cache.
pub static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| sandbox(64));

/// The built-in engine.
pub static ENGINES: LazyLock<Arc<Engines>> = LazyLock::new(|| {
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
    Arc::new(Engines::new(config).expect("rten is built in"))
});

pub fn sandbox(instances: u32) -> Sandbox {
    let config = SandboxConfig { cache: None, cache_key: None, instances, memory: 512 << 20, modules: None };
    Sandbox::new(config).expect("the pool can be reserved")
}

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A built guest's bytes.
pub fn guest(name: &str) -> Vec<u8> {
    let path = root().join(format!("target/guests/{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|_| panic!("the guest `{name}` is not built: run `make guests`"))
}

/// A built guest, compiled once for all tests.
pub fn module(name: &'static str) -> Module {
    static MODULES: LazyLock<std::sync::Mutex<BTreeMap<&str, Module>>> = LazyLock::new(Default::default);
    let mut modules = MODULES.lock().unwrap_or_else(|e| e.into_inner());
    modules.entry(name).or_insert_with(|| SANDBOX.module(&guest(name)).expect("the guest compiles")).clone()
}

/// A graph of `models/`, loaded with one session.
pub fn graph(path: &str) -> Graph {
    let onnx = std::fs::read(root().join("models").join(path)).expect("the graph is committed");
    let options = GraphOptions { sessions: Some(1), ..GraphOptions::default() };
    ENGINES.load(Bytes::from(onnx), &options).expect("the graph loads")
}

/// What a program of `module` is made of, with one graph named `model`.
pub fn config(module: Module, graph: Graph) -> ProgramConfig {
    ProgramConfig {
        module,
        label: "test@1".into(),
        graphs: BTreeMap::from([("model".to_owned(), graph)]),
        assets: None,
        args: Vec::new(),
        env: Vec::new(),
        limits: Limits { wall_ms: 20_000, ..Limits::default() },
        grants: Grants::default(),
        engines: ENGINES.clone(),
        closed: Vec::new(),
        weight: 1,
    }
}

pub fn program(config: ProgramConfig) -> Program {
    Program::new(&SANDBOX, config).expect("the program is made")
}

/// A program over the graph that returns its FP32 input.
pub fn identity(module: Module, change: impl FnOnce(&mut Limits)) -> Program {
    let mut config = config(module, graph("test/identity_fp32.onnx"));
    change(&mut config.limits);
    program(config)
}

/// A call that the caller gives a minute.
pub fn context() -> CallContext {
    context_for(Duration::from_secs(60))
}

pub fn context_for(time: Duration) -> CallContext {
    CallContext { deadline: Instant::now() + time, request_id: "test".into(), tenant: default_tenant() }
}

/// A request with one input `x`.
pub fn request(values: &[f32]) -> InferRequest {
    let x = Tensor::from_vec([values.len()], values.to_vec()).expect("the shape fits");
    InferRequest { inputs: vec![("x".into(), x)], ..InferRequest::default() }
}

/// A request that tells the hostile guest what to do.
pub fn act(name: &str) -> InferRequest {
    let mut request = request(&[1.0, 2.0]);
    request.parameters.push(("act".into(), Parameter::Text(name.into())));
    request
}

/// The values of the output `y`.
pub fn floats(response: &windrose_sandbox::InferResponse) -> Vec<f32> {
    let (_, y) = response.outputs.iter().find(|(name, _)| name == "y").expect("there is an output y");
    y.values::<f32>().expect("y is FP32").into_owned()
}

/// Waits until no instance is running: what a call held comes back when its store is dropped.
pub async fn all_returned() {
    for _ in 0..500 {
        if SANDBOX.pool().instances == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
