//! What an initialiser saves, on MiniLM (`examples/embed`): the same module compiled as it was deployed, where every call
//! builds the tokenizer's table, and from the snapshot, in one run. The floor is the bare engine on the same tokens.
//!
//!     cargo bench -p windrose-sandbox --bench initialise
//!
//! Needs `make guests` and `models/fetch.py minilm`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use windrose_engine::{Engines, EnginesConfig, Graph, GraphOptions, Job, OnnxRuntimeLibrary, Tensor, default_tenant};
use windrose_sandbox::{
    CallContext, Description, Grants, InferRequest, Limits, Module, Program, ProgramConfig, Sandbox, SandboxConfig,
};

const TEXT: &str = "The quick brown fox jumps over the lazy dog";

fn context() -> CallContext {
    let deadline = Instant::now() + Duration::from_secs(60);
    CallContext { deadline, request_id: "bench".into(), tenant: default_tenant() }
}

fn program(sandbox: &Sandbox, module: Module, graph: &Graph, engines: &Arc<Engines>) -> Program {
    let config = ProgramConfig {
        module,
        label: "bench".into(),
        weight: 1,
        graphs: BTreeMap::from([("model".to_owned(), graph.clone())]),
        assets: None,
        args: Vec::new(),
        env: Vec::new(),
        limits: Limits::default(),
        grants: Grants::default(),
        engines: engines.clone(),
        closed: Vec::new(),
    };
    Program::new(sandbox, config).expect("the program is made")
}

async fn embed(program: &Program, signature: &Description) {
    let text = Tensor::from_strings([1], &[TEXT.as_bytes()]).expect("one text");
    let request = InferRequest { inputs: vec![("text".into(), text)], ..InferRequest::default() };
    black_box(program.infer(signature, request, &context()).await.expect("it answers"));
}

/// The first of a row of calls, and the median of those after it, milliseconds.
async fn first_and_steady(mut call: impl AsyncFnMut()) -> (f64, f64) {
    let mut times = Vec::new();
    for _ in 0..301 {
        let start = Instant::now();
        call().await;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    (first, times[times.len() / 2])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let target: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let read = |path: &str| std::fs::read(target.join(path));
    let (Ok(wasm), Ok(onnx)) = (read("guests/embed.wasm"), read("models/minilm/model.onnx")) else {
        println!("initialise: skipped, without target/guests/embed.wasm and target/models/minilm/model.onnx");
        return;
    };
    let config = SandboxConfig { cache: None, cache_key: None, instances: 16, memory: 256 << 20, modules: None };
    let sandbox = Sandbox::new(config).expect("the pool can be reserved");
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
    let engines = Arc::new(Engines::new(config).expect("rten is built in"));
    let options = GraphOptions { sessions: Some(1), ..GraphOptions::default() };
    let graph = engines.load(Bytes::from(onnx), &options).expect("the graph loads");

    let ids = |ids: Vec<i64>| Tensor::from_vec([1, ids.len()], ids).expect("the shape fits");
    let inputs = vec![("input_ids".into(), ids(vec![101; 11])), ("attention_mask".into(), ids(vec![1; 11]))];
    let job = Job { inputs, ..Job::default() };
    let bare = first_and_steady(async || _ = black_box(graph.compute(job.clone()).await.expect("it computes"))).await;
    println!("milliseconds                                  first   steady");
    println!("{:42} {:>8.2} {:>8.2}", "bare engine", bare.0, bare.1);

    let start = Instant::now();
    let initialised = sandbox.initialise(&wasm, &Limits::default()).await.expect("its initialiser runs");
    let took = start.elapsed();
    let plain = sandbox.module(&wasm).expect("it compiles");
    let snapshot = sandbox.initialised(initialised).expect("it compiles");
    for (name, module) in [("without the snapshot", plain), ("with it", snapshot)] {
        let program = program(&sandbox, module, &graph, &engines);
        let signature = program.describe(&context()).await.expect("it describes itself");
        let (first, steady) = first_and_steady(async || embed(&program, &signature).await).await;
        println!("{name:42} {first:>8.2} {steady:>8.2}   adds {:.2}", steady - bare.1);
    }
    println!("taking the snapshot, once: {:.0} ms", took.as_secs_f64() * 1e3);
}
