//! Weights that leave memory: they are loaded again for the next job, once, and every answer is its own graph's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use windrose_engine::backend::child::ChildConfig;
use windrose_engine::{
    BatchPolicy, EngineChoice, EngineError, Engines, EnginesConfig, Graph, GraphOptions, Isolation, Job,
    OnnxRuntimeLibrary, ResidencyCounts, Tensor,
};

use crate::setup::{backends, children, found, job, onnx, root};

/// Graphs that differ in a weight, on engines that have room for some of them.
struct Graphs {
    engines: Engines,
    graphs: Vec<Graph>,
    /// How often each was loaded.
    loads: Vec<Arc<AtomicUsize>>,
}

/// The graph `rows` with another number in its table's last place.
fn numbered(number: usize) -> Bytes {
    let (mut file, old) = (onnx("rows").to_vec(), 310f32.to_le_bytes());
    let places: Vec<usize> = (0..file.len() - 4).filter(|at| file[*at..at + 4] == old).collect();
    assert_eq!(places.len(), 1);
    file[places[0]..places[0] + 4].copy_from_slice(&(1_000.0 + number as f32).to_le_bytes());
    file.into()
}

/// A job whose answer says which graph it was.
fn question(value: f32) -> Job {
    let x = Tensor::from_vec([1, 4], vec![value; 4]).expect("a row");
    job(vec![("x", x), ("ids", Tensor::from_vec([1], vec![7i64]).expect("an id"))])
}

async fn is_answered(graph: &Graph, number: usize, value: f32) {
    let answer = graph.compute(question(value)).await.expect("an answer");
    assert_eq!(answer[0].1.values::<f32>().expect("floats")[3], value + 1_000.0 + number as f32);
}

impl Graphs {
    fn new(options: &GraphOptions, count: usize, room: u64) -> Graphs {
        let search = vec![root().join("target/onnxruntime")];
        let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search };
        let bytes = numbered(0).len() as u64;
        let engines = Engines::new(config).expect("engines").with_children(children());
        let engines = engines.with_weights(Some(bytes * room + bytes / 2));
        let loads: Vec<Arc<AtomicUsize>> = (0..count).map(|_| Arc::default()).collect();
        let load = |(number, loads): (usize, &Arc<AtomicUsize>)| {
            let loads = Arc::clone(loads);
            let source = move || {
                loads.fetch_add(1, Relaxed);
                Ok(numbered(number))
            };
            engines.load_with(source().expect("a file"), Arc::new(source), options).expect("a graph")
        };
        let graphs = loads.iter().enumerate().map(load).collect();
        Graphs { engines, graphs, loads }
    }

    fn resident(&self) -> Vec<bool> {
        self.graphs.iter().map(Graph::is_resident).collect()
    }

    fn loads(&self) -> Vec<usize> {
        self.loads.iter().map(|loads| loads.load(Relaxed)).collect()
    }

    /// Waits until the budget is kept: what has loaded last sees to it after its jobs were answered.
    async fn kept(&self) -> ResidencyCounts {
        let end = Instant::now() + Duration::from_secs(30);
        while self.engines.weights().is_over() {
            assert!(Instant::now() < end, "the budget is not kept: {:?}", self.engines.weights().counts());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.engines.weights().counts()
    }
}

fn everywhere() -> Vec<GraphOptions> {
    let of = |engine| {
        [Isolation::Process, Isolation::Child].map(|isolation| GraphOptions {
            engine,
            isolation,
            sessions: Some(2),
            ..GraphOptions::default()
        })
    };
    backends().into_iter().flat_map(of).collect()
}

#[test]
fn each_copy_counts() {
    for options in everywhere() {
        for threads in [1, 2] {
            let options = GraphOptions { threads: Some(threads), sessions: Some(3), ..options.clone() };
            let all = Graphs::new(&options, 1, 3);
            let is_shared = options.engine == EngineChoice::Rten || threads == 1;
            let copies = if is_shared { 1 } else { 3 };
            assert_eq!(all.engines.weights().counts().bytes, copies * numbered(0).len() as u64, "{options:?}");
            assert_eq!(all.resident(), [true]);
        }
    }
}

#[tokio::test]
async fn the_least_recently_used_leaves_and_comes_back_as_it_was() {
    for options in everywhere() {
        let all = Graphs::new(&options, 3, 2);
        assert_eq!(all.resident(), [false, true, true]);
        let policy = BatchPolicy { max_rows: 7, delay: Duration::ZERO };
        all.graphs[0].set_batching(policy);
        let steps = [(1, [false, true, true]), (0, [true, true, false]), (2, [true, false, true])];
        for (number, resident) in steps {
            is_answered(&all.graphs[number], number, 0.5).await;
            assert_eq!(all.resident(), resident, "{options:?}");
        }
        assert_eq!(all.loads(), [2, 1, 2]);
        assert_eq!((all.graphs[0].batching(), all.graphs[0].counts().inferences), (policy, 1));
        let counts = all.kept().await;
        assert_eq!((counts.evictions, counts.reloads), (3, 2));
        // What had left before it was deleted, and what had not.
        let (engines, graphs) = (all.engines, all.graphs);
        drop(graphs);
        // The thread that loaded one may still have it.
        let end = Instant::now() + Duration::from_secs(30);
        while engines.weights().counts().bytes > 0 {
            assert!(Instant::now() < end, "{:?}", engines.weights().counts());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Three graphs where there may be two children.
#[tokio::test]
async fn the_least_recently_used_child_makes_room_for_another_unless_it_is_in_use() {
    for engine in backends() {
        let config = ChildConfig { most: 2, ..children() };
        let engines = found().with_children(config);
        let options =
            GraphOptions { engine, isolation: Isolation::Child, sessions: Some(1), ..GraphOptions::default() };
        let load = |number: usize| {
            let source = move || Ok(numbered(number));
            engines.load_with(numbered(number), Arc::new(source), &options)
        };
        let graphs: Vec<Graph> = (0..3).map(|number| load(number).expect("a graph")).collect();
        let resident = || graphs.iter().map(Graph::is_resident).collect::<Vec<_>>();
        assert_eq!(resident(), [false, true, true]);
        let steps = [(1, [false, true, true]), (0, [true, true, false]), (2, [true, false, true])];
        for (number, here) in steps {
            is_answered(&graphs[number], number, 0.5).await;
            assert_eq!(resident(), here);
        }
        assert_eq!(engines.weights().counts().evictions, 3);
        // Two that take the places of those, and are in use for as long as any run may take.
        let busy = || engines.load_with(onnx("loop"), Arc::new(|| Ok(onnx("loop"))), &options).expect("a graph");
        let runs: Vec<_> = [busy(), busy()]
            .into_iter()
            .map(|graph| {
                let times = Tensor::from_vec([], vec![i64::from(i32::MAX)]).expect("times");
                let x = Tensor::from_vec([1], vec![0f32]).expect("x");
                tokio::spawn(async move { graph.compute(job(vec![("times", times), ("x", x)])).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(resident(), [false; 3]);
        let refused = load(0).expect_err("no idle one");
        assert!(matches!(&refused, EngineError::NotReady(why) if why.contains("all of the 2")), "{refused}");
        for run in runs {
            assert_eq!(run.await.expect("a task"), Err(EngineError::TimeLimit));
        }
    }
}

/// 8 graphs with room for 3, asked in random order by 6 at a time.
fn at_random(engine: EngineChoice, mut seed: u64) {
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let options = GraphOptions { engine, sessions: Some(1), ..GraphOptions::default() };
    let all = Graphs::new(&options, 8, 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for round in 0..100 {
            let asked: Vec<usize> = (0..1 + random(6)).map(|_| random(8)).collect();
            let ask = |(caller, number): (usize, usize)| {
                let graph = all.graphs[number].clone();
                tokio::spawn(async move { is_answered(&graph, number, (round * 10 + caller) as f32).await })
            };
            let callers: Vec<_> = asked.into_iter().enumerate().map(ask).collect();
            for caller in callers {
                caller.await.expect("its own answer");
            }
            all.kept().await;
            assert!(all.resident().into_iter().filter(|here| *here).count() <= 3);
        }
        let counts = all.engines.weights().counts();
        assert!(counts.reloads > 8 && counts.evictions >= counts.reloads, "{counts:?}");
        assert_eq!(all.loads().into_iter().sum::<usize>() as u64, 8 + counts.reloads);
    });
}

#[test]
fn every_answer_is_its_own_graphs_and_the_budget_is_kept() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let seed = std::env::var("WINDROSE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now) | 1;
    eprintln!("WINDROSE_SEED={seed}");
    for engine in backends() {
        at_random(engine, seed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_first_jobs_load_it_once() {
    for engine in backends() {
        let options = GraphOptions { engine, sessions: Some(1), ..GraphOptions::default() };
        let all = Graphs::new(&options, 2, 1);
        assert_eq!(all.resident(), [false, true]);
        let ask = |caller: usize| {
            let graph = all.graphs[0].clone();
            tokio::spawn(async move { is_answered(&graph, 0, caller as f32).await })
        };
        let callers: Vec<_> = (0..32).map(ask).collect();
        for caller in callers {
            caller.await.expect("its own answer");
        }
        assert_eq!(all.loads(), [2, 1]);
    }
}
