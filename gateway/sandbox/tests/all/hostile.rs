//! Each limit, with a guest that runs into it while others go on.

use std::time::{Duration, Instant};

use windrose_engine::Tensor;
use windrose_sandbox::{CallError, Limit, Limits, PASSTHROUGH, Program};

use crate::support::{SANDBOX, act, all_returned, context, context_for, floats, identity, module, request};
use crate::wat::guest;

fn hostile(change: impl FnOnce(&mut Limits)) -> Program {
    identity(module("hostile"), change)
}

/// Calls the hostile guest, with a good program answering beside it all the time, and returns the error.
async fn run(program: &Program, what: &str) -> CallError {
    let good = identity(SANDBOX.module(PASSTHROUGH).unwrap(), |_| ());
    let signature = good.describe(&context()).await.unwrap();
    let beside = tokio::spawn({
        let signature = signature.clone();
        async move {
            let mut slowest = Duration::ZERO;
            loop {
                let start = Instant::now();
                let answer = good.infer(&signature, request(&[7.0]), &context()).await.unwrap();
                assert_eq!(floats(&answer), [7.0]);
                slowest = slowest.max(start.elapsed());
                if slowest > Duration::from_secs(2) {
                    return slowest;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let error = program.infer(&signature, act(what), &context()).await.expect_err(what);
    assert!(!beside.is_finished(), "another program had to wait during `{what}`");
    beside.abort();
    // The same program answers again.
    let answer = program.infer(&signature, act("none"), &context()).await.expect("it answers again");
    assert_eq!(floats(&answer), [1.0, 2.0]);
    error
}

macro_rules! hostile {
    ($($name:ident: $act:literal, $change:expr => $error:pat,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let error = run(&hostile($change), $act).await;
            assert!(matches!(&error, $error), "{error:?}");
        }
    )*};
}

hostile! {
    an_endless_loop_is_cut_by_cpu_time: "loop", |l| l.cpu_ms = 100 => CallError::Limit(Limit::CpuTime),
    an_endless_loop_is_cut_by_wall_time: "loop", |l| l.wall_ms = 200 => CallError::Limit(Limit::WallTime),
    a_sleeper_is_cut_by_wall_time: "sleep", |l| l.wall_ms = 200 => CallError::Limit(Limit::WallTime),
    a_memory_bomb: "memory", |l| l.memory = 32 << 20 => CallError::Limit(Limit::Memory),
    a_tensor_bomb: "tensors", |l| l.tensor_memory = 32 << 20 => CallError::Limit(Limit::TensorMemory),
    deep_recursion: "recursion", |_| () => CallError::Limit(Limit::Stack),
    an_output_flood: "output", |l| l.output = 1 << 20 => CallError::Limit(Limit::Output),
    a_log_flood: "log", |l| l.log = 4096 => CallError::Limit(Limit::Log),
    an_abort: "trap", |_| () => CallError::Trapped(_),
    another_models_graph: "other-graph", |_| () => CallError::Failed(_),
    a_refusal: "refuse", |_| () => CallError::InvalidInput(_),
    a_failure: "fail", |_| () => CallError::Failed(_),
    an_undeclared_output: "undeclared", |_| () => CallError::Contract(_),
    an_output_of_the_wrong_type: "wrong-type", |_| () => CallError::Contract(_),
    no_output: "nothing", |_| () => CallError::Contract(_),
    a_parameter_that_is_no_number: "no-number", |_| () => CallError::Contract(_),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_leaves_its_last_words() {
    let error = run(&hostile(|_| ()), "panic").await;
    assert!(matches!(&error, CallError::Trapped(text) if text.contains("last words")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_host_is_in_reach() {
    let error = run(&hostile(|_| ()), "files").await;
    assert_eq!(error, CallError::InvalidInput("root 0, outside 0, written 0, variables 0".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_are_read_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("names.txt"), "a").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("passwd")).unwrap();
    let mut config = crate::support::config(module("hostile"), crate::support::graph("test/identity_fp32.onnx"));
    config.assets = Some(folder.path().to_owned());
    let error = run(&crate::support::program(config), "files").await;
    assert_eq!(error, CallError::InvalidInput("root 2, outside 0, written 0, variables 0".into()));
    assert!(!folder.path().join("written").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_deadline_is_not_the_models_limit() {
    let program = hostile(|_| ());
    let signature = program.describe(&context()).await.unwrap();
    for what in ["sleep", "loop"] {
        let start = Instant::now();
        let context = context_for(Duration::from_millis(100));
        let error = program.infer(&signature, act(what), &context).await.unwrap_err();
        assert_eq!(error, CallError::Deadline, "{what}");
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_guest_is_not_charged_for_cpu_time() {
    let program = hostile(|limits| (limits.cpu_ms, limits.wall_ms) = (50, 400));
    let signature = program.describe(&context()).await.unwrap();
    let error = program.infer(&signature, act("sleep"), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::WallTime));
}

#[tokio::test]
async fn a_table_bomb() {
    let fields = "(table $t 0 funcref)";
    let body = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l)) (unreachable)";
    let program = identity(SANDBOX.module(&guest(fields, body)).unwrap(), |limits| limits.memory = 256 << 10);
    let signature = program.describe(&context()).await.unwrap();
    let error = program.infer(&signature, request(&[1.0]), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::Memory));
}

#[tokio::test]
async fn a_bomb_of_handles() {
    let fields = r#"(data (i32.const 512) "\01\00\00\00")"#;
    let body = "(loop $l (drop (call $tensor (i32.const 512) (i32.const 1) (i32.const 4) (i32.const 0) (i32.const 1)))
        (br $l)) (unreachable)";
    let program = identity(SANDBOX.module(&guest(fields, body)).unwrap(), |_| ());
    let signature = program.describe(&context()).await.unwrap();
    let error = program.infer(&signature, request(&[1.0]), &context()).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped(_)), "{error:?}");
}

/// Each string is a list of its own for the guest, which takes many times what four bytes of a tensor do.
#[tokio::test]
async fn byte_strings_are_charged_for_what_they_become() {
    let program = identity(SANDBOX.module(PASSTHROUGH).unwrap(), |limits| limits.tensor_memory = 1 << 20);
    let signature = program.describe(&context()).await.unwrap();
    let strings = |count: usize| {
        let mut request = request(&[1.0]);
        request.inputs[0].1 = Tensor::from_strings([count], &vec![""; count]).unwrap();
        request
    };
    let error = program.infer(&signature, strings(100_000), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::TensorMemory));
    let error = program.infer(&signature, strings(1_000), &context()).await.unwrap_err();
    assert!(!matches!(error, CallError::Limit(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_is_busy_and_empties_again() {
    let sandbox = crate::support::sandbox(2);
    let module = sandbox.module(&crate::support::guest("hostile")).unwrap();
    let config = crate::support::config(module, crate::support::graph("test/identity_fp32.onnx"));
    let program = Program::new(&sandbox, config).unwrap();
    let signature = program.describe(&context()).await.unwrap();
    let sleepers: Vec<_> = (0..2)
        .map(|_| {
            let (program, signature) = (program.clone(), signature.clone());
            tokio::spawn(async move { program.infer(&signature, act("sleep"), &context()).await })
        })
        .collect();
    while sandbox.pool().instances < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = program.infer(&signature, act("none"), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Busy);
    // A call that is given up gives its instance back.
    for sleeper in sleepers {
        sleeper.abort();
        let _ = sleeper.await;
    }
    assert_eq!(sandbox.pool().instances, 0);
    program.infer(&signature, act("none"), &context()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_comes_back() {
    let program = hostile(|limits| limits.memory = 128 << 20);
    let signature = program.describe(&context()).await.unwrap();
    let mut after_first = 0;
    for round in 0..20 {
        let error = program.infer(&signature, act("memory"), &context()).await.unwrap_err();
        assert_eq!(error, CallError::Limit(Limit::Memory));
        if round == 1 {
            after_first = resident();
        }
    }
    let grown = resident().saturating_sub(after_first);
    // Other tests run beside this one; twenty bombs that stayed would be 2.5 GB.
    assert!(grown < 400 << 20, "{} MiB stayed", grown >> 20);
    all_returned().await;
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
