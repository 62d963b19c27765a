//! Graphs in children: this very test program, started again as [`child_process`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use windrose_engine::{EngineChoice, EngineError, Fault, Graph, GraphOptions, Isolation, Job, Tensor, TensorSpec};

use crate::setup::{CHILD, ISOLATION, RUN_LIMIT, backends, engines, job, onnx, run};

/// The child, when this process is one; nothing otherwise.
#[test]
fn child_process() {
    if std::env::var_os(CHILD).is_some() {
        windrose_engine::backend::child::main();
    }
}

fn options(engine: EngineChoice, sessions: usize) -> GraphOptions {
    GraphOptions { engine, sessions: Some(sessions), isolation: Isolation::Child, ..Default::default() }
}

fn load(engine: EngineChoice, name: &str, sessions: usize) -> Graph {
    engines().load(onnx(name), &options(engine, sessions)).unwrap_or_else(|e| panic!("{name} under {engine:?}: {e}"))
}

/// Runs tests of this program in a process of its own.
fn again(arguments: &[&str], variable: (&str, &str)) {
    let me = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(me).args(arguments).env(variable.0, variable.1).output();
    let output = output.expect("this program again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// Whether this is the process that runs `test` alone; else it is started.
fn alone(test: &str) -> bool {
    if std::env::var_os("WINDROSE_TEST_ALONE").is_some() {
        return true;
    }
    again(&["--exact", test, "--nocapture"], ("WINDROSE_TEST_ALONE", "1"));
    false
}

/// Inputs of the loop graph.
fn times(times: i64) -> Vec<(&'static str, Tensor)> {
    let times = Tensor::from_vec([], vec![times]).expect("times");
    vec![("times", times), ("x", Tensor::from_vec([1], vec![0f32]).expect("x"))]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The children of a process, zombies included.
fn children(process: u32) -> BTreeSet<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.flat_map(|task| of(task).split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

fn mine() -> BTreeSet<i32> {
    children(std::process::id())
}

fn kill(process: i32) {
    let killed = std::process::Command::new("kill").args(["-9", &process.to_string()]).status().expect("kill");
    assert!(killed.success());
}

/// Waits until `what` is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn children_keep_the_contract_of_every_backend() {
    again(&["contract::", "refusals::"], (ISOLATION, "child"));
}

#[test]
fn an_endless_run_fails_alone() {
    for engine in backends() {
        let graph = load(engine, "loop", 2);
        assert_eq!((graph.info().isolation, graph.info().sessions), (Isolation::Child, 2));
        runtime().block_on(async {
            let endless = tokio::spawn({
                let graph = graph.clone();
                async move { graph.compute(job(times(i64::from(i32::MAX)))).await }
            });
            // Meanwhile, and through the end of the child, the other session answers.
            let mut answered = 0;
            while !endless.is_finished() {
                graph.compute(job(times(3))).await.expect("an answer");
                answered += 1;
            }
            let error = endless.await.expect("the task").expect_err("an endless run");
            assert_eq!((error.clone(), error.fault()), (EngineError::TimeLimit, Fault::Time));
            assert!(answered > 10, "{answered} answers beside it");
            graph.compute(job(times(3))).await.expect("an answer afterwards");
        });
    }
}

/// An input that asks for as much as its type can say: two to the 40th where that has eight bytes.
fn vast(spec: &TensorSpec) -> (&str, Tensor) {
    let shape: Vec<usize> = spec.shape.iter().flatten().map(|_| 1).collect();
    let mut data = vec![0; spec.datatype.width().expect("numbers") * shape.iter().product::<usize>()];
    data.iter_mut().skip(5).step_by(8).for_each(|byte| *byte = 1);
    (spec.name.as_str(), Tensor::new(spec.datatype, shape, data.into()).expect("a tensor"))
}

#[test]
fn hostile_graphs_do_not_load_or_fail_alone() {
    for engine in backends() {
        for name in ["aborts_at_load", "terabyte", "endless_loop", "as_large_as_asked"] {
            let graph = match engines().load(onnx(name), &options(engine, 1)) {
                Err(error) => {
                    assert!(matches!(error, EngineError::InvalidGraph(_) | EngineError::Unsupported(_)), "{error:?}");
                    continue;
                }
                Ok(graph) => graph,
            };
            let error = run(&graph, graph.spec().inputs.iter().map(vast).collect()).expect_err(name);
            assert!(!matches!(error.fault(), Fault::Host | Fault::Unready), "{name}: {error:?}");
        }
    }
}

#[test]
fn a_run_that_kills_its_process_fails_alone() {
    let number = |n: i32| Tensor::from_vec([1], vec![n]).expect("a number");
    for engine in backends() {
        let graph = load(engine, "divide", 1);
        // Does not fit: one engine here dies of it, the other panics.
        let answer = run(&graph, vec![("a", number(i32::MIN)), ("b", number(-1))]).expect_err("no such number");
        let expected = if engine == EngineChoice::Rten { Fault::Graph } else { Fault::Crash };
        assert_eq!(answer.fault(), expected, "{answer}");
        let seven = run(&graph, vec![("a", number(7)), ("b", number(1))]).expect("an answer");
        assert_eq!(seven[0].1, number(7));
    }
}

/// One caller sends what ends the child, again and again; another asks all the time, and is never told of it.
#[test]
fn whoever_ends_the_child_again_and_again_fails_alone() {
    let number = |n: i32| Tensor::from_vec([1], vec![n]).expect("a number");
    let quotient = |tenant: &str, a, b| Job {
        tenant: tenant.into(),
        deadline: Some(Instant::now() + Duration::from_secs(60)),
        ..job(vec![("a", number(a)), ("b", number(b))])
    };
    for engine in backends() {
        let expected = if engine == EngineChoice::Rten { Fault::Graph } else { Fault::Crash };
        let graph = load(engine, "divide", 2);
        let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for caller in 0..2 {
                let (graph, stop, answers, quotient) = (&graph, &stop, &answers, &quotient);
                scope.spawn(move || {
                    runtime().block_on(async {
                        while !stop.load(Relaxed) {
                            let n = 7 + 2 * caller;
                            let answer = graph.compute(quotient("other", n, 2)).await.expect("an answer");
                            assert_eq!(answer[0].1, number(n / 2));
                            answers.fetch_add(1, Relaxed);
                        }
                    });
                });
            }
            // Were it among those who ask, a failure here would leave them asking.
            let poison = scope.spawn(|| {
                runtime().block_on(async {
                    for _ in 0..20 {
                        let error = graph.compute(quotient("poison", i32::MIN, -1)).await.expect_err("no such number");
                        assert_eq!(error.fault(), expected, "{error}");
                        let now = answers.load(Relaxed);
                        until("answers after it", || answers.load(Relaxed) > now);
                    }
                });
            });
            let poisoned = poison.join();
            stop.store(true, Relaxed);
            poisoned.expect("each of them fails, and nothing else");
        });
        let counts = graph.counts();
        assert_eq!((counts.failures, counts.withdrawn), (20, 0));
    }
}

#[test]
fn a_graph_that_may_trap_never_runs_in_this_process() {
    let number = |n: i32| Tensor::from_vec([1], vec![n]).expect("a number");
    let here = |engine, name| {
        let options = GraphOptions { engine, sessions: Some(1), isolation: Isolation::Process, ..Default::default() };
        engines().load(onnx(name), &options).unwrap_or_else(|e| panic!("{name} under {engine:?}: {e}"))
    };
    for engine in backends() {
        let native = engine == EngineChoice::Onnxruntime;
        let divide = here(engine, "divide");
        assert_eq!(divide.info().isolation, if native { Isolation::Child } else { Isolation::Process });
        let beside = ["divide_fp32", "divide_by_constants", "add_int32"].map(|name| here(engine, name));
        assert!(beside.iter().all(|graph| graph.info().isolation == Isolation::Process));
        for _ in 0..2 {
            let quotient = || run(&divide, vec![("a", number(i32::MIN)), ("b", number(-1))]);
            let error = quotient().expect_err("no such number");
            assert_eq!(error.fault(), if native { Fault::Crash } else { Fault::Graph }, "{error}");
            let sum = run(&beside[2], vec![("a", matrix(7)), ("b", matrix(1))]).expect("an answer");
            assert_eq!(sum[0].1, matrix(8));
            until("a quotient again", || match run(&divide, vec![("a", number(-7)), ("b", number(2))]) {
                Ok(outputs) => outputs[0].1 == number(-3),
                Err(error) => {
                    assert_eq!(error.fault(), Fault::Unready, "{error}");
                    false
                }
            });
        }
        assert_eq!(run(&beside[1], vec![("a", number(11))]).expect("an answer")[0].1, number(2));
    }
}

fn matrix(n: i32) -> Tensor {
    Tensor::from_vec([1, 1], vec![n]).expect("a matrix")
}

#[test]
fn a_process_that_may_end_runs_graphs_that_may_trap() {
    let options = GraphOptions { sessions: Some(1), ..Default::default() };
    for engine in backends() {
        let engines = crate::setup::found().expendable();
        let graph = engines.load(onnx("divide"), &GraphOptions { engine, ..options.clone() }).expect("a graph");
        assert_eq!(graph.info().isolation, Isolation::Process);
    }
}

#[test]
fn a_killed_child_fails_its_own_runs_and_comes_back() {
    if !alone("isolated::a_killed_child_fails_its_own_runs_and_comes_back") {
        return;
    }
    for engine in backends() {
        let before = mine();
        let victim = load(engine, "add_fp32", 2);
        let killed = *mine().difference(&before).next().expect("its child");
        let bystander = load(engine, "add_fp32", 1);
        let (stop, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ask = |graph: Graph, fill: f32| async move {
            let matrix = Tensor::from_vec([8, 300], vec![fill; 2_400]).expect("a matrix");
            let sum = Tensor::from_vec([8, 300], vec![2.0 * fill; 2_400]).expect("a matrix");
            let answer = graph.compute(job(vec![("a", matrix.clone()), ("b", matrix)])).await;
            answer.map(|outputs| assert_eq!(outputs[0].1, sum, "another caller's rows"))
        };
        std::thread::scope(|scope| {
            for caller in 0..3 {
                let (stop, failed, victim, ask) = (&stop, &failed, &victim, &ask);
                scope.spawn(move || {
                    runtime().block_on(async {
                        while !stop.load(Relaxed) {
                            if let Err(error) = ask(victim.clone(), caller as f32).await {
                                assert!(matches!(error, EngineError::Crashed(_)), "{error:?}");
                                assert!(error.to_string().contains("SIGKILL"), "{error}");
                                failed.fetch_add(1, Relaxed);
                            }
                        }
                    });
                });
            }
            scope.spawn(|| {
                runtime().block_on(async {
                    while !stop.load(Relaxed) {
                        ask(bystander.clone(), 7.0).await.expect("nothing happened to this one");
                    }
                });
            });
            until("answers", || victim.counts().inferences > 100);
            kill(killed);
            until("it is seen", || !mine().contains(&killed));
            let now = victim.counts().inferences;
            until("answers again", || victim.counts().inferences > now + 100);
            stop.store(true, Relaxed);
        });
        let failed = failed.load(Relaxed);
        assert!(failed <= 1, "{failed} failures: a run fails that was alone in the child, and no other");
        assert_eq!(victim.counts().failures as usize, failed);
    }
}

#[test]
fn a_child_that_does_not_live_is_started_more_and_more_slowly() {
    let before = mine();
    if !alone("isolated::a_child_that_does_not_live_is_started_more_and_more_slowly") {
        return;
    }
    let graph = load(EngineChoice::Rten, "loop", 1);
    let child = || mine().difference(&before).next().copied();
    let ends = |uses: bool| {
        until("a child", || child().is_some());
        if uses {
            run(&graph, times(1)).expect("an answer");
        }
        let child = child().expect("a child");
        kill(child);
        until("it is seen", || !mine().contains(&child));
    };
    // What has run something may have been ended by that.
    (0..6).for_each(|_| ends(true));
    // What has not would not have lived anyhow.
    (0..6).for_each(|_| ends(false));
    let mut refused = 0;
    until("an answer", || match run(&graph, times(1)) {
        Ok(_) => true,
        Err(EngineError::NotReady(_)) => {
            refused += 1;
            false
        }
        Err(error) => panic!("{error:?}"),
    });
    assert!(refused > 0, "six lives of no length, and never put off");
    assert_eq!(EngineError::NotReady(String::new()).fault(), Fault::Unready);
}

#[test]
fn nothing_is_left_of_children() {
    if !alone("isolated::nothing_is_left_of_children") {
        return;
    }
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).map_or(0, Iterator::count);
    let cycle = |engine: EngineChoice, ends_badly: bool| {
        let graph = load(engine, "loop", 3);
        run(&graph, times(3)).expect("an answer");
        if ends_badly {
            kill(*mine().first().expect("a child"));
            // Whether it is seen before or during the run.
            let _ = run(&graph, times(3));
        }
    };
    for engine in backends() {
        cycle(engine, true);
        until("one child's end", || mine().is_empty() && count("task") <= 4);
        let before = (count("fd"), count("task"));
        for i in 0..12 {
            cycle(engine, i % 2 == 0);
        }
        until("all ends", || mine().is_empty() && count("fd") <= before.0 && count("task") <= before.1);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        assert!(!maps.contains("windrose-"), "shared memory is left:\n{maps}");
    }
}

/// Holds a graph in a child until it is killed.
#[test]
fn a_child_dies_with_its_parent() {
    const HOLDER: &str = "WINDROSE_TEST_HOLDER";
    if let Some(folder) = std::env::var_os(HOLDER) {
        let _graph = load(EngineChoice::Rten, "tiny", 1);
        std::fs::write(Path::new(&folder).join("ready"), "").expect("a file");
        std::thread::sleep(Duration::from_secs(120));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let me = std::env::current_exe().expect("this program");
    let mut holder = std::process::Command::new(me)
        .args(["--exact", "isolated::a_child_dies_with_its_parent"])
        .env(HOLDER, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("a holder");
    until("a graph", || folder.path().join("ready").exists());
    let orphans = children(holder.id());
    assert_eq!(orphans.len(), 1);
    holder.kill().expect("killed");
    holder.wait().expect("gone");
    let alive = |p: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{p}/stat")).unwrap_or_default();
        // Whoever takes orphans in may be slow to bury them.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    until("its child has gone with it", || !orphans.iter().any(alive));
}

#[test]
fn runs_are_limited_and_large_tensors_travel() {
    assert!(RUN_LIMIT < Duration::from_secs(10));
    for engine in backends() {
        let graph = load(engine, "identity_fp32", 1);
        // Far beyond the first size of the memory, in both directions, and back.
        for n in [1, 3_000_000, 5, 700_000, 0] {
            let x = Tensor::from_vec([n], (0..n).map(|i| i as f32).collect()).expect("x");
            assert_eq!(run(&graph, vec![("x", x.clone())]).expect("an answer")[0].1, x);
        }
    }
}
