//! Queue, workers and counts with real engines.

use std::time::{Duration, Instant};

use windrose_engine::{EngineChoice, EngineError, Graph, GraphOptions, Tensor};

use crate::setup::{backends, engines, job, load, onnx};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Inputs of the loop graph.
fn looped(times: i64) -> Vec<(&'static str, Tensor)> {
    let times = Tensor::from_vec([], vec![times]).expect("times");
    vec![("times", times), ("x", Tensor::from_vec([1], vec![0f32]).expect("x"))]
}

/// How many times make a run of about a fifth of a second here.
fn long(graph: &Graph) -> i64 {
    let (mut times, runtime) = (1_000, runtime());
    loop {
        let start = Instant::now();
        runtime.block_on(graph.compute(job(looped(times)))).expect("an answer");
        let took = start.elapsed();
        if took > Duration::from_millis(20) {
            return times * 200 / took.as_millis().max(1) as i64;
        }
        times *= 4;
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn a_job_that_nobody_waits_for_is_not_executed() {
    for engine in backends() {
        let graph = load(engine, "loop");
        let times = long(&graph);
        let before = graph.counts();
        runtime().block_on(async {
            let busy = tokio::spawn({
                let graph = graph.clone();
                async move { graph.compute(job(looped(times))).await }
            });
            while graph.counts().executions == before.executions {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Behind the long run: one is dropped, one runs out of time.
            let dropped = tokio::time::timeout(Duration::from_millis(10), graph.compute(job(looped(1)))).await;
            assert!(dropped.is_err(), "the session is busy");
            assert_eq!(graph.queued(), 0, "a dropped job leaves its place at once");
            let mut late = job(looped(1));
            late.deadline = Some(Instant::now() + Duration::from_millis(10));
            assert_eq!(graph.compute(late).await, Err(EngineError::Deadline));
            busy.await.expect("the task").expect("an answer");
            graph.compute(job(looped(1))).await.expect("an answer");
        });
        let after = graph.counts();
        assert_eq!(after.executions - before.executions, 2);
        assert_eq!(after.inferences - before.inferences, 2);
        assert_eq!(after.withdrawn - before.withdrawn, 2);
    }
}

#[test]
fn sessions_run_side_by_side_and_share_one_graph() {
    for engine in backends() {
        let options = GraphOptions { engine, sessions: Some(4), queue: Some(10_000), ..Default::default() };
        let graph = engines().load(onnx("add_fp32"), &options).expect("a graph");
        assert_eq!(graph.info().sessions, 4);
        runtime().block_on(async {
            let tasks: Vec<_> = (0..2_000u32)
                .map(|i| {
                    let graph = graph.clone();
                    tokio::spawn(async move {
                        let rows = 1 + (i % 7) as usize;
                        let fill = |v: f32| Tensor::from_vec([rows, 300], vec![v; rows * 300]).expect("a matrix");
                        let inputs = vec![("a", fill(i as f32)), ("b", fill(0.5))];
                        let answer = graph.compute(job(inputs)).await.expect("an answer");
                        assert_eq!(answer[0].1, fill(i as f32 + 0.5), "another caller's rows");
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("every caller its own rows");
            }
        });
        assert_eq!(graph.counts().inferences, 2_000);
    }
}

#[test]
fn a_graph_that_is_dropped_leaves_no_thread() {
    // In a process of its own: other tests start threads, too.
    if std::env::var_os("WINDROSE_TEST_ALONE").is_none() {
        let me = std::env::current_exe().expect("this program");
        let test = "hand_off::a_graph_that_is_dropped_leaves_no_thread";
        let output = std::process::Command::new(me).args(["--exact", test]).env("WINDROSE_TEST_ALONE", "1").output();
        let output = output.expect("this program again");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    for engine in backends() {
        let cycle = |engine: EngineChoice| {
            let options = GraphOptions { engine, sessions: Some(3), threads: Some(2), ..Default::default() };
            let graph = engines().load(onnx("tiny"), &options).expect("a graph");
            let x = Tensor::from_vec([1, 16], vec![0f32; 16]).expect("x");
            runtime().block_on(graph.compute(job(vec![("x", x)]))).expect("an answer");
        };
        // The engines keep a few threads of their own from the first use on.
        cycle(engine);
        let settled = |most: usize| {
            let start = Instant::now();
            while threads() > most && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
            threads()
        };
        std::thread::sleep(Duration::from_millis(200));
        let before = threads();
        for _ in 0..50 {
            cycle(engine);
        }
        let after = settled(before);
        assert!(after <= before, "{before} threads before, {after} after, under {engine:?}");
    }
}
