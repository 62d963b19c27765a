//! Queue and workers with a session that the test holds open: no real engine can be stopped in the middle of a run.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::backend::{Session, Work};
use crate::{DataType, TensorSpec};

/// A session that returns its input when the test lets it.
struct Gate {
    started: Sender<()>,
    go: Receiver<Option<EngineError>>,
}

impl Session for Gate {
    fn run(&mut self, inputs: &[Tensor], _: &[usize]) -> Answer {
        let _ = self.started.send(());
        match self.go.recv() {
            Ok(None) => Ok(inputs.to_vec()),
            Ok(Some(error)) => Err(error),
            Err(_) => panic!("the test is over"),
        }
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        work(self);
    }
}

/// The test's end of a gate.
struct Key {
    started: Receiver<()>,
    go: Sender<Option<EngineError>>,
}

impl Key {
    fn wait(&self) {
        self.started.recv_timeout(Duration::from_secs(10)).expect("the run starts");
    }

    fn open(&self) {
        self.go.send(None).expect("the session");
    }
}

fn graph(capacity: usize) -> (Graph, Key) {
    let (started, wait) = channel();
    let (go, gate) = channel();
    let info = GraphInfo {
        engine: "gate".into(),
        version: "0".into(),
        provider: "CPU".into(),
        sessions: 1,
        threads: 1,
        isolation: crate::Isolation::Process,
    };
    let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Int32, shape: None };
    let spec = GraphSpec { inputs: vec![tensor("x")], outputs: vec![tensor("y")] };
    let model = Model {
        spec,
        nodes: 0,
        operators: Default::default(),
        elements: Default::default(),
        weight_bytes: 0,
        beyond_32_bits: None,
    };
    let loaded = Loaded { info, sessions: vec![Box::new(Gate { started, go: gate })] };
    let bounds = Bounds { jobs: capacity, wait: None, workers: 1 };
    let setup = Setup { bounds, keeps_sample: false, cores: None, padding: None };
    (Graph::start(loaded, &model, setup).expect("a graph"), Key { started: wait, go })
}

fn job(value: i32) -> Job {
    let x = Tensor::from_vec([], vec![value]).expect("a scalar");
    Job { inputs: vec![("x".into(), x)], ..Job::default() }
}

fn value(answer: Result<Vec<(String, Tensor)>, EngineError>) -> i32 {
    answer.expect("an answer")[0].1.values::<i32>().expect("an integer")[0]
}

async fn start(graph: &Graph, job: Job) -> tokio::task::JoinHandle<Result<Vec<(String, Tensor)>, EngineError>> {
    let graph = graph.clone();
    let task = tokio::spawn(async move { graph.compute(job).await });
    tokio::task::yield_now().await;
    task
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let (graph, key) = graph(2);
    let running = start(&graph, job(1)).await;
    key.wait();
    let (second, third) = (start(&graph, job(2)).await, start(&graph, job(3)).await);
    assert_eq!(graph.queued(), 2);
    assert_eq!(graph.compute(job(4)).await, Err(EngineError::QueueFull));
    (0..3).for_each(|_| key.open());
    for (task, expected) in [(running, 1), (second, 2), (third, 3)] {
        assert_eq!(value(task.await.expect("the task")), expected);
    }
    let counts = graph.counts();
    assert_eq!((counts.executions, counts.inferences, counts.withdrawn), (3, 3, 0));
}

#[tokio::test]
async fn a_dropped_job_leaves_its_place() {
    let (graph, key) = graph(2);
    let running = start(&graph, job(1)).await;
    key.wait();
    let (second, third) = (start(&graph, job(2)).await, start(&graph, job(3)).await);
    second.abort();
    assert!(second.await.expect_err("aborted").is_cancelled());
    assert_eq!((graph.queued(), graph.counts().withdrawn), (1, 1));
    let fourth = start(&graph, job(4)).await;
    assert_eq!(graph.queued(), 2, "its place is free");
    (0..3).for_each(|_| key.open());
    for (task, expected) in [(running, 1), (third, 3), (fourth, 4)] {
        assert_eq!(value(task.await.expect("the task")), expected);
    }
    assert_eq!(graph.counts().executions, 3);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_the_job() {
    let (graph, key) = graph(8);
    let with = |value, after: u64| Job { deadline: Some(Instant::now() + Duration::from_millis(after)), ..job(value) };
    assert_eq!(graph.compute(with(0, 0)).await, Err(EngineError::Deadline));
    let running = start(&graph, with(1, 20)).await;
    key.wait();
    assert_eq!(graph.compute(with(2, 20)).await, Err(EngineError::Deadline));
    assert_eq!(running.await.expect("the task"), Err(EngineError::Deadline), "a run that takes too long");
    let good = start(&graph, with(3, 60_000)).await;
    (0..2).for_each(|_| key.open());
    assert_eq!(value(good.await.expect("the task")), 3);
    let counts = graph.counts();
    assert_eq!((counts.executions, counts.withdrawn), (2, 1));
}

#[tokio::test]
async fn a_job_whose_caller_goes_while_it_is_taken_is_counted_once() {
    let (graph, key) = graph(8);
    let running = start(&graph, job(1)).await;
    key.wait();
    running.abort();
    assert!(running.await.is_err());
    assert_eq!(graph.counts().withdrawn, 0, "it runs: it cannot be withdrawn");
    key.open();
    let next = start(&graph, job(2)).await;
    key.open();
    assert_eq!(value(next.await.expect("the task")), 2);
    assert_eq!(graph.counts().executions, 2);
}

#[tokio::test]
async fn a_panic_and_an_error_leave_the_session_alive() {
    let (graph, key) = graph(8);
    let failing = start(&graph, job(1)).await;
    key.go.send(Some(EngineError::Failed("no luck".into()))).expect("the session");
    assert_eq!(failing.await.expect("the task"), Err(EngineError::Failed("no luck".into())));
    let Key { started, go } = key;
    let panicking = start(&graph, job(2)).await;
    started.recv_timeout(Duration::from_secs(10)).expect("the run starts");
    drop(go);
    let error = panicking.await.expect("the task").expect_err("a panic");
    assert!(matches!(&error, EngineError::Failed(why) if why.contains("panicked")), "{error:?}");
    // The gate is gone for good, so each further run panics again: what counts is that the worker still answers.
    assert!(matches!(graph.compute(job(3)).await, Err(EngineError::Failed(_))));
    assert_eq!(graph.counts().failures, 3);
}

#[tokio::test]
async fn the_workers_end_with_the_last_handle() {
    let (graph, key) = graph(8);
    let clone = graph.clone();
    drop(graph);
    let task = start(&clone, job(1)).await;
    key.open();
    assert_eq!(value(task.await.expect("the task")), 1);
    drop(clone);
    key.wait();
    let gone = key.started.recv_timeout(Duration::from_secs(10));
    assert_eq!(gone, Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "the session is dropped");
}
