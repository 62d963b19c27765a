//! What the sandbox adds to an inference, with its floors beside it, all from one run: bare wasmtime (a pooled instance
//! of the same guest made and dropped) and the bare engine. Microseconds, medians of the calls of one thread.
//!
//!     cargo bench -p windrose-sandbox

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use windrose_engine::{Engines, EnginesConfig, GraphOptions, Job, OnnxRuntimeLibrary, Tensor, default_tenant};
use windrose_sandbox::{
    CallContext, Grants, InferRequest, Limits, PASSTHROUGH, Program, ProgramConfig, Sandbox, SandboxConfig,
};

/// Runs `call` for a while; the median in microseconds.
async fn median(mut call: impl AsyncFnMut()) -> f64 {
    let mut times = Vec::new();
    for _ in 0..200 {
        call().await;
    }
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        let start = Instant::now();
        call().await;
        times.push(start.elapsed());
    }
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A pooled instance of the pass-through module on bare wasmtime, made and dropped.
async fn bare_wasmtime(concurrency: bool) -> f64 {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(1 << 20);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).wasm_component_model_async(concurrency);
    let engine = Engine::new(&config).expect("the engine starts");
    let component = Component::from_binary(&engine, PASSTHROUGH).expect("it compiles");
    let mut linker = Linker::<()>::new(&engine);
    linker.define_unknown_imports_as_traps(&component).expect("it links");
    let pre = linker.instantiate_pre(&component).expect("it links");
    median(async || {
        let mut store = Store::new(&engine, ());
        black_box(pre.instantiate_async(&mut store).await.expect("it is made"));
    })
    .await
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let sandbox = Sandbox::new(SandboxConfig { cache: None, cache_key: None, instances: 16, memory: 256 << 20 })
        .expect("the pool can be reserved");
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
    let engines = Arc::new(Engines::new(config).expect("rten is built in"));
    let context = || CallContext {
        deadline: Instant::now() + Duration::from_secs(60),
        request_id: "bench".into(),
        tenant: default_tenant(),
    };

    println!("{:44} {:>9.1}", "bare wasmtime: instance made and dropped", bare_wasmtime(false).await);
    println!("{:44} {:>9.1}", "  the same, component-model-async on", bare_wasmtime(true).await);
    for (name, values) in [("tiny", 50), ("600 KB", 150_000)] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/test/identity_fp32.onnx");
        let onnx = Bytes::from(std::fs::read(path).expect("the graph is committed"));
        let options = GraphOptions { sessions: Some(1), ..GraphOptions::default() };
        let graph = engines.load(onnx, &options).expect("the graph loads");
        let module = sandbox.module(PASSTHROUGH).expect("it compiles");
        let config = ProgramConfig {
            module,
            label: "bench".into(),
            graphs: BTreeMap::from([("model".to_owned(), graph.clone())]),
            assets: None,
            args: Vec::new(),
            env: Vec::new(),
            limits: Limits::default(),
            grants: Grants::default(),
            engines: engines.clone(),
            closed: Vec::new(),
            weight: 1,
        };
        let program = Program::new(&sandbox, config).expect("the program is made");
        let signature = program.describe(&context()).await.expect("it describes itself");
        let x = Tensor::from_vec([values], vec![1f32; values]).expect("the shape fits");
        let job = Job { inputs: vec![("x".into(), x.clone())], ..Job::default() };
        let bare = median(async || _ = black_box(graph.compute(job.clone()).await.expect("it computes"))).await;
        let request = InferRequest { inputs: vec![("x".into(), x)], ..InferRequest::default() };
        let ours = async || {
            let answer = program.infer(&signature, request.clone(), &context()).await;
            black_box(answer.expect("it answers"));
        };
        let ours = median(ours).await;
        println!("{:44} {bare:>9.1}", format!("{name}: bare engine"));
        println!("{:44} {ours:>9.1}   adds {:.1}", format!("{name}: behind the sandbox"), ours - bare);
        if name == "tiny" {
            let describe =
                median(async || _ = black_box(program.describe(&context()).await.expect("it describes"))).await;
            println!("{:44} {describe:>9.1}", "ours: instance, call of `describe`, drop");
        }
    }
}
