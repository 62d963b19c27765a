//! The engines and graphs that the tests use.

use std::path::PathBuf;
use std::sync::OnceLock;

use bytes::Bytes;
use windrose_engine::{
    EngineChoice, EngineError, Engines, EnginesConfig, Graph, GraphOptions, Job, OnnxRuntimeLibrary, Tensor,
};

/// The repository's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A graph of `models/test`.
pub fn onnx(name: &str) -> Bytes {
    let path = root().join("models/test").join(format!("{name}.onnx"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into()
}

/// The engines of this machine, found once.
pub fn engines() -> &'static Engines {
    static ENGINES: OnceLock<Engines> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let config =
            EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search: vec![root().join("target/onnxruntime")] };
        Engines::new(config).expect("engines")
    })
}

/// Every backend that must pass. ONNX Runtime's library may be missing on a laptop, and not in CI.
pub fn backends() -> Vec<EngineChoice> {
    let found = engines().available().iter().any(|e| e.name == "onnxruntime");
    assert!(found || std::env::var_os("CI").is_none(), "ONNX Runtime is missing: `make onnxruntime`");
    if !found {
        eprintln!("SKIPPED: the ONNX Runtime half, whose library is missing: `make onnxruntime`");
        return vec![EngineChoice::Rten];
    }
    vec![EngineChoice::Rten, EngineChoice::Onnxruntime]
}

/// Loads a graph of `models/test` with one session.
pub fn try_load(engine: EngineChoice, name: &str) -> Result<Graph, EngineError> {
    engines().load(onnx(name), &GraphOptions { engine, sessions: Some(1), ..GraphOptions::default() })
}

/// As [`try_load`], for a graph that loads.
pub fn load(engine: EngineChoice, name: &str) -> Graph {
    try_load(engine, name).unwrap_or_else(|e| panic!("{name} under {engine:?}: {e}"))
}

/// A job for all outputs.
pub fn job(inputs: Vec<(&str, Tensor)>) -> Job {
    let inputs = inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    Job { inputs, ..Job::default() }
}

/// Runs a job to its end.
pub fn run(graph: &Graph, inputs: Vec<(&str, Tensor)>) -> Result<Vec<(String, Tensor)>, EngineError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(graph.compute(job(inputs)))
}

/// Runs a job with one output.
pub fn run_one(graph: &Graph, inputs: Vec<(&str, Tensor)>) -> Tensor {
    let mut outputs = run(graph, inputs).expect("an answer");
    assert_eq!(outputs.len(), 1);
    outputs.remove(0).1
}
