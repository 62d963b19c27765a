//! What it costs to hand a job of a tiny net to a worker and get its answer back.
//!
//! The floor is the engine's own time for the same jobs, which the graph counts. Printed for each engine and
//! concurrency: wall time and CPU time of a whole `compute`, the engine's share, and what is left: the hand-off.

use std::path::Path;
use std::time::{Duration, Instant};

use windrose_engine::{EngineChoice, Engines, EnginesConfig, Graph, GraphOptions, Job, OnnxRuntimeLibrary, Tensor};

/// CPU time of this process, in the kernel's ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn job() -> Job {
    let x = Tensor::from_vec([1, 16], vec![0.5f32; 16]).expect("a row");
    Job { inputs: vec![("x".into(), x)], ..Job::default() }
}

async fn measure(graph: &Graph, concurrency: usize, jobs: usize) {
    let callers = |jobs: usize| async move {
        let tasks: Vec<_> = (0..concurrency)
            .map(|_| {
                let graph = graph.clone();
                tokio::spawn(async move {
                    for _ in 0..jobs / concurrency {
                        graph.compute(job()).await.expect("an answer");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a caller");
        }
    };
    callers(jobs / 10).await;
    let (before, start, cpu_before) = (graph.counts(), Instant::now(), cpu());
    callers(jobs).await;
    let (wall, spent, after) = (start.elapsed(), cpu() - cpu_before, graph.counts());
    let done = (after.executions - before.executions) as f64;
    let each = |d: Duration| d.as_nanos() as f64 / 1e3 / done;
    let engine = (after.compute_ns - before.compute_ns) as f64 / 1e3 / done;
    println!(
        "{:12} c{concurrency:<3} {:8.0}/s  wall {:6.1}  cpu {:6.1}  engine {engine:6.1}  hand-off {:6.1} us of CPU",
        graph.info().engine,
        done / wall.as_secs_f64(),
        each(wall),
        each(spent),
        each(spent) - engine,
    );
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = vec![root.join("target/onnxruntime")];
    let engines = Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search }).expect("engines");
    let onnx = std::fs::read(root.join("models/test/tiny.onnx")).expect("the tiny net");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for engine in [EngineChoice::Rten, EngineChoice::Onnxruntime] {
        let options = GraphOptions { engine, ..GraphOptions::default() };
        let Ok(graph) = engines.load(onnx.clone().into(), &options) else {
            println!("{engine:?} is not here");
            continue;
        };
        for (concurrency, jobs) in [(1, 100_000), (8, 200_000), (64, 400_000)] {
            runtime.block_on(measure(&graph, concurrency, jobs));
        }
    }
}
