//! Instances that answer more than one request: how many, whose, and never one that something has ended.

use std::collections::BTreeMap;
use std::time::Duration;

use windrose_engine::{DataType, GraphSpec, Tensor, TensorSpec};
use windrose_sandbox::{
    CallContext, CallError, Limit, Limits, ModuleError, Parameter, Program, Sandbox, SandboxConfig,
};

use crate::support::{act, config, context, context_for, floats, graph, guest, module, request, sandbox};
use crate::wat;

/// What the guest does beside counting, by the number of parameters.
#[derive(Clone, Copy)]
enum Act {
    Count,
    Trap,
    Spin,
    KeepTensor,
    Grow,
    Refuse,
    Unnamed,
}

/// A guest that answers how often its instance was asked.
fn counter() -> Vec<u8> {
    let fields = r#"(global $n (mut f32) (f32.const 0)) (data (i32.const 512) "\01\00\00\00")"#;
    let body = r#"
    (global.set $n (f32.add (global.get $n) (f32.const 1)))
    (if (i32.eq (local.get 5) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get 5) (i32.const 2)) (then (loop $l (br $l))))
    (if (i32.ne (local.get 5) (i32.const 3)) (then (call $tensor-drop (i32.load offset=12 (local.get $inputs)))))
    (if (i32.eq (local.get 5) (i32.const 4)) (then (drop (memory.grow (i32.const 2000)))))
    (if (i32.eq (local.get 5) (i32.const 5)) (then
      (i32.store (i32.const 96) (i32.const 1))
      (i32.store (i32.const 100) (i32.const 0))
      (i32.store (i32.const 104) (i32.const 48))
      (i32.store (i32.const 108) (i32.const 1))
      (return (i32.const 96))))
    (f32.store (i32.const 260) (global.get $n))
    (drop (call $answer (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 260) (i32.const 4))))
    (if (i32.eq (local.get 5) (i32.const 6)) (then (i32.store (i32.const 128) (i32.const 16))))
    (i32.const 96)"#;
    wat::guest(fields, body)
}

fn program_in(sandbox: &Sandbox, change: impl FnOnce(&mut Limits)) -> Program {
    let mut config = config(sandbox.module(&counter()).unwrap(), graph("test/identity_fp32.onnx"));
    config.limits.memory = 64 << 20;
    change(&mut config.limits);
    Program::new(sandbox, config).unwrap()
}

fn signature() -> GraphSpec {
    let outputs = vec![TensorSpec { name: "y".into(), datatype: DataType::Fp32, shape: None }];
    GraphSpec { inputs: Vec::new(), outputs }
}

/// One request, and what it has to answer.
async fn ask(program: &Program, act: Act, context: &CallContext) -> Result<f32, CallError> {
    let mut request = request(&[0.0]);
    request.parameters = (0..act as usize).map(|at| (at.to_string(), Parameter::Boolean(true))).collect();
    Ok(floats(&program.infer(&signature(), request, context).await?)[0])
}

/// Answers of so many requests, one after the other.
async fn answers(program: &Program, requests: usize) -> Vec<f32> {
    let mut answers = Vec::new();
    for _ in 0..requests {
        answers.push(ask(program, Act::Count, &context()).await.unwrap());
    }
    answers
}

#[tokio::test]
async fn without_the_limit_each_request_has_its_own() {
    let sandbox = sandbox(16);
    let program = program_in(&sandbox, |_| ());
    assert_eq!(answers(&program, 3).await, [1.0, 1.0, 1.0]);
    assert_eq!(sandbox.pool().instances, 0);
}

#[tokio::test]
async fn the_host_holds_no_byte_strings_after_their_request() {
    let program = program_in(&sandbox(16), |limits| limits.reuse = 3);
    for answered in [1.0, 2.0] {
        let mut request = request(&[0.0]);
        request.inputs[0].1 = Tensor::from_strings([2], &["a", "b"]).unwrap();
        // It drops no tensor: there is none.
        let acts = 0..Act::KeepTensor as usize;
        request.parameters = acts.map(|at| (at.to_string(), Parameter::Boolean(true))).collect();
        assert_eq!(floats(&program.infer(&signature(), request, &context()).await.unwrap()), [answered]);
    }
}

#[tokio::test]
async fn an_instance_answers_so_many_requests_and_no_more() {
    let sandbox = sandbox(16);
    let program = program_in(&sandbox, |limits| limits.reuse = 3);
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
    assert_eq!(sandbox.pool().instances, 1, "one waits");
    assert_eq!(answers(&program, 1).await, [3.0]);
    assert_eq!(sandbox.pool().instances, 0, "it has answered enough");
    assert_eq!(answers(&program, 4).await, [1.0, 2.0, 3.0, 1.0]);
    drop(program);
    assert_eq!(sandbox.pool().instances, 0, "none outlives its program");
}

#[tokio::test]
async fn what_has_ended_a_call_ends_its_instance() {
    let sandbox = sandbox(16);
    let program = program_in(&sandbox, |limits| (limits.reuse, limits.cpu_ms) = (100, 100));
    let soon = || context_for(Duration::from_millis(50));
    let minute = context;
    type Is = fn(&CallError) -> bool;
    let ends: [(Act, CallContext, Is); 6] = [
        (Act::Trap, minute(), |e| matches!(e, CallError::Trapped(_))),
        (Act::Spin, minute(), |e| *e == CallError::Limit(Limit::CpuTime)),
        (Act::Spin, soon(), |e| *e == CallError::Deadline),
        (Act::Grow, minute(), |e| *e == CallError::Limit(Limit::Memory)),
        (Act::Refuse, minute(), |e| matches!(e, CallError::InvalidInput(_))),
        (Act::Unnamed, minute(), |e| matches!(e, CallError::Contract(_))),
    ];
    for (act, context, expected) in ends {
        assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
        let error = ask(&program, act, &context).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(sandbox.pool().instances, 0, "after {error:?}");
    }
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
    let gone = tokio::time::timeout(Duration::from_millis(30), ask(&program, Act::Spin, &minute())).await;
    assert!(gone.is_err(), "the caller had an answer");
    assert_eq!(sandbox.pool().instances, 0, "after its caller left");
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
}

#[tokio::test]
async fn one_that_holds_a_tensor_of_a_request_does_not_wait() {
    let sandbox = sandbox(16);
    let program = program_in(&sandbox, |limits| limits.reuse = 100);
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
    assert_eq!(ask(&program, Act::KeepTensor, &context()).await.unwrap(), 3.0);
    assert_eq!(sandbox.pool().instances, 0);
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
}

#[tokio::test]
async fn tenants_and_programs_share_none() {
    let sandbox = sandbox(64);
    let (program, other) = (program_in(&sandbox, |l| l.reuse = 100), program_in(&sandbox, |l| l.reuse = 100));
    let of = |tenant: &str| CallContext { tenant: tenant.into(), ..context() };
    for turn in 1..=3 {
        for tenant in ["a", "b"] {
            assert_eq!(ask(&program, Act::Count, &of(tenant)).await.unwrap(), turn as f32, "{tenant}");
        }
        assert_eq!(ask(&other, Act::Count, &of("a")).await.unwrap(), turn as f32);
    }
    assert_eq!(sandbox.pool().instances, 3);
}

#[tokio::test]
async fn a_quarter_of_the_pool_may_wait() {
    let sandbox = sandbox(8);
    let (program, other) = (program_in(&sandbox, |l| l.reuse = 100), program_in(&sandbox, |l| l.reuse = 100));
    let of = |tenant: &str| CallContext { tenant: tenant.into(), ..context() };
    for (tenant, expected) in [("a", 1.0), ("b", 1.0), ("b", 2.0), ("c", 1.0), ("b", 3.0), ("a", 1.0)] {
        assert_eq!(ask(&program, Act::Count, &of(tenant)).await.unwrap(), expected, "{tenant}");
        assert!(sandbox.pool().instances <= 2);
    }
    assert_eq!(answers(&other, 2).await, [1.0, 1.0], "the first program's two stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_instance_is_in_two_calls() {
    let sandbox = sandbox(64);
    let program = program_in(&sandbox, |limits| limits.reuse = 10);
    let callers = (0..8).map(|_| {
        tokio::spawn({
            let program = program.clone();
            async move { answers(&program, 100).await }
        })
    });
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap().into_iter().for_each(|answer| *counts.entry(answer as u32).or_default() += 1);
    }
    let counts: Vec<(u32, usize)> = counts.into_iter().collect();
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<usize>(), 800);
    assert_eq!(counts.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>(), "{counts:?}");
    // Whoever gives an n-th answer gave all before it, once each.
    assert!(counts.is_sorted_by(|(_, before), (_, after)| before >= after), "{counts:?}");
}

/// Time stands still here but for what the test waits for.
#[tokio::test(start_paused = true)]
async fn one_that_waits_too_long_leaves_and_so_does_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, cache_key) = (Some(folder.path().join("cache")), Some(folder.path().join("key")));
    let sandbox = SandboxConfig { cache, cache_key, instances: 16, memory: 256 << 20, modules: Some(1) };
    let sandbox = Sandbox::new(sandbox).unwrap();
    let program = program_in(&sandbox, |limits| limits.reuse = 100);
    assert_eq!(answers(&program, 2).await, [1.0, 2.0]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(answers(&program, 1).await, [3.0]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(sandbox.pool().instances, 1);
    assert!(program.module().is_resident(), "its code left an instance that waits");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(sandbox.pool().instances, 0);
    while program.module().is_resident() {
        tokio::task::yield_now().await;
    }
    assert_eq!(answers(&program, 2).await, [1.0, 2.0], "it comes back");
}

#[tokio::test]
async fn each_request_has_limits_and_a_log_of_its_own() {
    let sandbox = sandbox(16);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("names.txt"), "a").unwrap();
    let mut config = config(sandbox.module(&guest("hostile")).unwrap(), graph("test/identity_fp32.onnx"));
    config.assets = Some(folder.path().to_owned());
    config.limits = Limits { reuse: 1000, cpu_ms: 400, log: 20, ..config.limits };
    let program = Program::new(&sandbox, config).unwrap();
    let mut last = 0.0;
    for call in 0..700 {
        // Together, each kind is more than one request may have: of CPU time, of log, of files.
        let what = if call < 12 { "busy" } else { "count" };
        let answer = floats(&program.infer(&signature(), act(what), &context()).await.unwrap())[0];
        assert!(answer == last + 1.0 || answer == 1.0, "{answer} after {last}");
        assert!(call > 400 || answer == call as f32 + 1.0, "{answer} at {call}");
        last = answer;
    }
}

#[tokio::test]
async fn what_cannot_be_used_again_is_refused() {
    let refusal = |name: &'static str, network: &[&str]| {
        let mut config = config(module(name), graph("test/identity_fp32.onnx"));
        config.limits.reuse = 2;
        config.grants.network = network.iter().map(|host| (*host).to_owned()).collect();
        match Program::new(&crate::support::SANDBOX, config) {
            Err(error @ ModuleError::Reuse(_)) => error.to_string(),
            other => panic!("{name}: {:?}", other.err()),
        }
    };
    assert!(refusal("hostile-http", &[]).contains("goes on after the head of its answer"));
    assert!(refusal("cli-iris", &[]).contains("a command ends with its answer"));
    assert!(refusal("hostile", &["a.example"]).contains("belongs to one request"));
}
