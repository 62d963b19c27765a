//! Queue and workers with a session that the test holds open: no real engine can be stopped in the middle of a run.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::backend::{Session, Told, Work};
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

/// What the gates' graph declares, and what runs it.
fn declared() -> (Model, GraphInfo) {
    let info = GraphInfo {
        engine: "gate".into(),
        version: "0".into(),
        provider: "CPU".into(),
        nodes: Default::default(),
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
        on_bytes: Default::default(),
        weight_bytes: 0,
        beyond_32_bits: None,
        half: None,
        may_trap: None,
    };
    (model, info)
}

fn graph(capacity: usize) -> (Graph, Key) {
    let (started, wait) = channel();
    let (go, gate) = channel();
    let (model, info) = declared();
    let loaded = Loaded { info, sessions: vec![Box::new(Gate { started, go: gate })] };
    let bounds = Bounds { jobs: capacity, wait: None, workers: 1 };
    let setup = Setup { bounds, keeps_sample: false, cores: None, padding: None, residence: None };
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

// === runs that wait for their process ===

/// A session whose run waits for the test as for a process, and then runs until the test lets it.
struct Waits {
    process: Gate,
    run: Gate,
    told: Option<Box<Told>>,
}

impl Session for Waits {
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Answer {
        let told = self.told.as_ref().expect("somebody to tell");
        told(true);
        let process = self.process.run(inputs, outputs);
        told(false);
        process.and_then(|_| self.run.run(inputs, outputs))
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        work(self);
    }

    fn on_waits(&mut self, told: Box<Told>) {
        self.told = Some(told);
    }
}

#[tokio::test]
async fn a_run_that_waits_for_its_process_holds_no_core() {
    let cores = Turnstile::new(1);
    let gate = || {
        let ((started, wait), (go, gate)) = (channel(), channel());
        (Gate { started, go: gate }, Key { started: wait, go })
    };
    let ((process, start_of_it), (run, key)) = (gate(), gate());
    let (model, info) = declared();
    let loaded = Loaded { info, sessions: vec![Box::new(Waits { process, run, told: None })] };
    let bounds = Bounds { jobs: 8, wait: None, workers: 1 };
    let cores_of_it = Some(Arc::clone(&cores));
    let setup = Setup { bounds, keeps_sample: false, cores: cores_of_it, padding: None, residence: None };
    let graph = Graph::start(loaded, &model, setup).expect("a graph");
    let running = start(&graph, job(1)).await;
    start_of_it.wait();
    assert!(!cores.is_used());
    start_of_it.open();
    key.wait();
    assert!(cores.is_full());
    key.open();
    assert_eq!(value(running.await.expect("the task")), 1);
}

// === weights that leave ===

/// Sessions that the test opens and that say when they have gone, for a graph that can leave memory.
struct Leaves {
    graph: Graph,
    residency: crate::Residency,
    /// A key for each generation.
    keys: Receiver<Key>,
    /// One for each session that was dropped.
    gone: Receiver<()>,
}

struct Mortal(Gate, Sender<()>);

impl Session for Mortal {
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Answer {
        self.0.run(inputs, outputs)
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        work(self);
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

/// `reload` is asked before each load but the first.
fn leaves(reload: impl Fn() -> Result<(), EngineError> + Send + Sync + 'static) -> Leaves {
    let ((keys, all), (dropped, gone)) = (channel(), channel());
    let (model, info) = declared();
    let load = move || {
        let ((started, wait), (go, gate)) = (channel(), channel());
        let _ = keys.send(Key { started: wait, go });
        let session: Box<dyn Session> = Box::new(Mortal(Gate { started, go: gate }, dropped.clone()));
        Loaded { info: info.clone(), sessions: vec![session] }
    };
    let (loaded, residency) = (load(), crate::Residency::new(Some(10)));
    // The receivers and senders of keys are moved between threads, and no two threads load at a time.
    let load = std::sync::Mutex::new(load);
    let again = Box::new(move || reload().map(|()| load.lock().expect("no panic")()));
    let residence = Residence::new(residency.clone(), (10, residency.hold(10)), again);
    let bounds = Bounds { jobs: 8, wait: None, workers: 1 };
    let setup = Setup { bounds, keeps_sample: false, cores: None, padding: None, residence: Some(residence) };
    let graph = Graph::start(loaded, &model, setup).expect("a graph");
    Leaves { graph, residency, keys: all, gone }
}

const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn weights_in_use_stay_and_idle_ones_go_with_their_worker() {
    let Leaves { graph, residency, keys, gone } = leaves(|| Ok(()));
    let key = keys.recv().expect("a generation");
    let running = start(&graph, job(1)).await;
    key.wait();
    let queued = start(&graph, job(2)).await;
    // Somebody else wants the room.
    let other = residency.hold(1);
    assert!(graph.is_resident() && residency.is_over());
    key.open();
    key.open();
    assert_eq!((value(running.await.expect("the task")), value(queued.await.expect("the task"))), (1, 2));
    assert!(!graph.is_resident() && residency.counts().bytes == 1, "the last call has made room");
    gone.recv_timeout(LONG).expect("the session is dropped");
    drop(other);
    let running = start(&graph, job(3)).await;
    let key = keys.recv_timeout(LONG).expect("another generation");
    key.open();
    assert_eq!(value(running.await.expect("the task")), 3);
    assert_eq!((graph.is_resident(), graph.counts().inferences, residency.counts().reloads), (true, 3, 1));
    drop(graph);
    gone.recv_timeout(LONG).expect("it ends with its graph");
}

#[tokio::test]
async fn who_waits_for_weights_waits_no_longer_than_its_deadline() {
    let (go, may) = channel();
    let may = std::sync::Mutex::new(may);
    let wait = move || may.lock().expect("no panic").recv().map_err(|_| EngineError::Stopped);
    let Leaves { graph, residency, keys, .. } = leaves(wait);
    drop(residency.hold(1));
    assert!(!graph.is_resident());
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(graph.compute(Job { deadline, ..job(1) }).await, Err(EngineError::Deadline));
    assert_eq!((graph.queued(), graph.counts().withdrawn), (0, 1));
    let patient = start(&graph, job(2)).await;
    go.send(()).expect("it loads");
    keys.recv_timeout(LONG).expect("the first generation");
    keys.recv_timeout(LONG).expect("another generation").open();
    assert_eq!(value(patient.await.expect("the task")), 2);
    assert_eq!(residency.counts().reloads, 1);
}

#[tokio::test]
async fn weights_that_do_not_come_back_fail_those_who_wait_and_the_next_job_tries_again() {
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let fails = move || match tries.fetch_add(1, Relaxed) {
        0 => Err(EngineError::Failed("for now".into())),
        1 => panic!("as an engine may"),
        _ => Ok(()),
    };
    let Leaves { graph, residency, keys, .. } = leaves(fails);
    drop(residency.hold(1));
    for why in ["for now", "panicked"] {
        let error = graph.compute(job(1)).await.expect_err("no weights");
        assert!(matches!(&error, EngineError::NotReady(text) if text.contains(why)), "{error:?}");
        assert_eq!((graph.is_resident(), graph.queued(), residency.counts().bytes), (false, 0, 0));
    }
    let running = start(&graph, job(3)).await;
    keys.recv_timeout(LONG).expect("the first generation");
    keys.recv_timeout(LONG).expect("another generation").open();
    assert_eq!(value(running.await.expect("the task")), 3);
}
