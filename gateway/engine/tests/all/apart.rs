//! Batches in children of which one row does not come to an end, or ends the child: that row's caller alone is told so.

use std::time::{Duration, Instant};

use windrose_engine::backend::child::ChildConfig;
use windrose_engine::{BatchPolicy, EngineChoice, EngineError, Fault, Graph, GraphOptions, Isolation, Job, Tensor};

use crate::setup::{backends, children, found, job, onnx};

/// A graph in a child, whose jobs wait until there are `rows`.
fn waits_for(rows: usize, name: &str, engine: EngineChoice, config: ChildConfig) -> Graph {
    let options = GraphOptions { engine, sessions: Some(1), isolation: Isolation::Child, ..Default::default() };
    let graph = found().with_children(config).load(onnx(name), &options).expect("a graph");
    graph.set_batching(BatchPolicy { max_rows: rows, delay: Duration::from_secs(3600) });
    graph
}

/// A row that takes so many turns; its answer is `x`.
fn turns(times: i64, x: f32) -> Job {
    let times = Tensor::from_vec([1], vec![times]).expect("times");
    job(vec![("times", times), ("x", Tensor::from_vec([1], vec![x]).expect("x"))])
}

const ENDLESS: i64 = i32::MAX as i64;

fn quotient((a, b): (i32, i32)) -> Job {
    let number = |n: i32| Tensor::from_vec([1], vec![n]).expect("a number");
    job(vec![("a", number(a)), ("b", number(b))])
}

type Answer = Result<Vec<(String, Tensor)>, EngineError>;

/// The answers to these jobs, which come at the same time, and may take so long.
fn ask(graph: &Graph, jobs: Vec<Job>, within: Duration) -> Vec<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let deadline = Some(Instant::now() + within);
    runtime.block_on(async {
        let ask = |job| {
            let graph = graph.clone();
            tokio::spawn(async move { graph.compute(Job { deadline, ..job }).await })
        };
        let asked: Vec<_> = jobs.into_iter().map(ask).collect();
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.expect("a task"));
        }
        answers
    })
}

fn value<T: windrose_engine::Element>(answer: &Answer) -> T {
    answer.as_ref().expect("an answer")[0].1.values::<T>().expect("numbers")[0]
}

fn fault(answer: &Answer) -> Fault {
    answer.as_ref().expect_err("no answer").fault()
}

#[test]
fn a_row_without_an_end_fails_alone() {
    for engine in backends() {
        let graph = waits_for(32, "turns_of_rows", engine, children());
        for bad in [0, 17] {
            let jobs = (0..32).map(|at| turns(if at == bad { ENDLESS } else { 3 }, at as f32)).collect();
            let answers = ask(&graph, jobs, Duration::from_secs(60));
            for (at, answer) in answers.iter().enumerate() {
                match at == bad {
                    true => assert_eq!(fault(answer), Fault::Time),
                    false => assert_eq!(value::<f32>(answer), at as f32),
                }
            }
        }
        let counts = graph.counts();
        assert_eq!((counts.inferences, counts.failures, counts.separated), (62, 2, 2));
    }
}

/// Where a run may take longer than callers wait, a batch may not, and neither may its rows while others wait.
#[test]
fn others_are_answered_before_their_deadlines() {
    let minute = ChildConfig { run: Duration::from_secs(60), ..children() };
    let graph = waits_for(8, "turns_of_rows", EngineChoice::Rten, minute);
    let rows = |bad: &[usize]| {
        let times = |at| if bad.contains(&at) { ENDLESS } else { 3 };
        (0..8).map(|at| turns(times(at), at as f32)).collect::<Vec<_>>()
    };
    assert!(ask(&graph, rows(&[]), Duration::from_secs(30)).iter().all(Result::is_ok), "how long a run takes is known");
    let answers = ask(&graph, rows(&[0, 5]), Duration::from_secs(12));
    for (at, answer) in answers.iter().enumerate() {
        match at {
            0 | 5 => assert_eq!(fault(answer), Fault::Deadline),
            _ => assert_eq!(value::<f32>(answer), at as f32),
        }
    }
}

#[test]
fn a_row_that_ends_the_child_fails_alone_however_often_it_comes() {
    for engine in backends() {
        // One engine panics on the former, the other dies of the latter.
        let (bad_input, expected) = match engine {
            EngineChoice::Rten => ((7, 0), Fault::Graph),
            _ => ((i32::MIN, -1), Fault::Crash),
        };
        // As few rows as no engine divides in one instruction, which does not trap.
        let graph = waits_for(3, "divide", engine, children());
        for bad in [1, 0, 2] {
            let input = |at| if at == bad { bad_input } else { (at as i32, 1) };
            let jobs = (0..3).map(|at| quotient(input(at))).collect();
            let answers = ask(&graph, jobs, Duration::from_secs(60));
            for (at, answer) in answers.iter().enumerate() {
                match at == bad {
                    true => assert_eq!(fault(answer), expected),
                    false => assert_eq!(value::<i32>(answer), at as i32),
                }
            }
        }
        let counts = graph.counts();
        assert_eq!((counts.inferences, counts.failures, counts.separated), (6, 3, 3));
        assert_eq!(counts.executions, 12, "each batch once together and each row alone");
    }
}
