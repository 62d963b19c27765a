//! The engines and graphs that the tests use.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use windrose_engine::backend::child::ChildConfig;
use windrose_engine::process::Program;
use windrose_engine::{
    EngineChoice, EngineError, Engines, EnginesConfig, Graph, GraphOptions, Isolation, Job, OnnxRuntimeLibrary, Tensor,
};

/// The variable that makes this program a child that runs a graph.
pub const CHILD: &str = "WINDROSE_TEST_CHILD";
/// The variable that makes [`try_load`] load into children.
pub const ISOLATION: &str = "WINDROSE_TEST_ISOLATION";
/// The longest run in a child.
pub const RUN_LIMIT: Duration = Duration::from_secs(2);

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
    ENGINES.get_or_init(|| found().with_children(children()))
}

/// The engines of this machine, with no way to start children.
pub fn found() -> Engines {
    let search = vec![root().join("target/onnxruntime")];
    Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search }).expect("engines")
}

/// Children are this program again, told to run but the one test that is none.
pub fn children() -> ChildConfig {
    let program = Program {
        path: std::env::current_exe().expect("this program"),
        arguments: ["--exact", "isolated::child_process", "--nocapture"].map(Into::into).to_vec(),
        environment: vec![(CHILD.into(), "1".into())],
    };
    let load = Duration::from_secs(60);
    ChildConfig { program, memory: 1 << 30, tensors: 64 << 20, run: RUN_LIMIT, load, most: 1_000 }
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
    let isolation = if std::env::var_os(ISOLATION).is_some() { Isolation::Child } else { Isolation::Process };
    engines().load(onnx(name), &GraphOptions { engine, isolation, sessions: Some(1), ..GraphOptions::default() })
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
