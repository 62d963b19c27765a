//! The floor of an inference: the engine alone, one session on one thread, by the engine's own clock.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use windrose_engine::{Engines, EnginesConfig, Graph, GraphOptions, Job, OnnxRuntimeLibrary, Tensor};

use crate::cases::Case;

/// How long the engine is run.
const TIME: Duration = Duration::from_secs(2);

/// Time of one run of a case's graph.
pub fn bare(case: &Case, engine: &str) -> Result<Duration> {
    let onnxruntime = if engine == "rten" { OnnxRuntimeLibrary::Off } else { OnnxRuntimeLibrary::Search };
    let engines = Engines::new(EnginesConfig { onnxruntime, search: vec![PathBuf::from("target/onnxruntime")] })?;
    let onnx = std::fs::read(&case.graph).with_context(|| format!("{}: run `make models`", case.graph.display()))?;
    let options = GraphOptions { sessions: Some(1), threads: Some(1), ..GraphOptions::default() };
    let graph = engines.load(onnx.into(), &options)?;
    let tensor = Tensor::from_vec(case.shape, case.values())?;
    // A runtime of its own, so that nothing else wakes the worker's core.
    std::thread::spawn(move || repeat(&graph, &tensor)).join().map_err(|_| anyhow::anyhow!("the engine panicked"))?
}

fn repeat(graph: &Graph, tensor: &Tensor) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let input = graph.spec().inputs.first().context("a graph without inputs")?.name.clone();
    let start = Instant::now();
    while start.elapsed() < TIME {
        let job = Job { inputs: vec![(input.clone(), tensor.clone())], ..Job::default() };
        runtime.block_on(graph.compute(job))?;
    }
    let counts = graph.counts();
    Ok(Duration::from_nanos(counts.compute_ns / counts.executions.max(1)))
}
