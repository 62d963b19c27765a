//! `wasi:cli` commands: input, output, arguments, environment, assets, limits.

use std::time::{Duration, Instant};

use windrose_sandbox::{CallContext, CallError, CommandOutput, Limit, Limits, ModuleKind, Program, ProgramConfig};

use crate::support::{config, context, context_for, graph, module, program};

/// What does what it must not, with WASI 0.2 and 0.3: the ways through the host are two.
const HOSTILE: [&str; 2] = ["hostile-command", "hostile-command-async"];

const ROWS: &str = "5.1;3.5;1.4;0.2\n6.3;3.3;6.0;2.5\n";

fn iris(change: impl FnOnce(&mut ProgramConfig)) -> (Program, tempfile::TempDir) {
    let assets = tempfile::tempdir().unwrap();
    std::fs::write(assets.path().join("names.txt"), "setosa\nversicolor\nvirginica\n").unwrap();
    let mut config = config(module("cli-iris"), graph("iris/model.onnx"));
    config.assets = Some(assets.path().to_owned());
    config.args = vec!["--names".into(), "names.txt".into()];
    config.env = vec![("SEPARATOR".into(), ";".into())];
    change(&mut config);
    (program(config), assets)
}

/// Has a command do `act`.
async fn act(
    (name, act): (&'static str, &str),
    change: impl FnOnce(&mut Limits),
    context: &CallContext,
) -> Result<CommandOutput, CallError> {
    let mut config = config(module(name), graph("test/identity_fp32.onnx"));
    config.args = vec![act.into()];
    change(&mut config.limits);
    program(config).run("well".into(), context).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_answers_on_its_standard_output() {
    let (program, _assets) = iris(|_| ());
    assert_eq!(program.module().kind(), ModuleKind::Command);
    let output = program.run(ROWS.into(), &context()).await.unwrap();
    let text = String::from_utf8(output.stdout.to_vec()).unwrap();
    assert_eq!(output.status, 0);
    let names: Vec<&str> = text.lines().filter_map(|line| line.split(';').next()).collect();
    assert_eq!(names, ["setosa", "virginica"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_exit_status_is_passed_on() {
    let (program, _assets) = iris(|_| ());
    // WASI 0.2 knows success and failure only.
    assert_eq!(program.run("nonsense\n".into(), &context()).await.unwrap().status, 1);
    let (program, _assets) = iris(|c| c.args.clear());
    assert_eq!(program.run(ROWS.into(), &context()).await.unwrap().status, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_output_is_bounded() {
    let (program, _assets) = iris(|c| c.limits.output = 16);
    let error = program.run(ROWS.into(), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::Output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_both_versions_copy_their_input() {
    for name in HOSTILE {
        let program = program(config(module(name), graph("test/identity_fp32.onnx")));
        assert_eq!(program.module().kind(), ModuleKind::Command, "{name}");
        let input: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        for input in [Vec::new(), input] {
            let output = program.run(input.clone().into(), &context()).await.unwrap();
            assert_eq!(output.status, 0, "{name}");
            assert!(output.stdout == input, "{name}: {} bytes of {}", output.stdout.len(), input.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_both_versions_fail_with_a_status() {
    for name in HOSTILE {
        assert_eq!(act((name, "fail"), |_| (), &context()).await.unwrap().status, 1, "{name}");
    }
    // WASI 0.3 knows more than success and failure.
    assert_eq!(act(("hostile-command-async", "exit"), |_| (), &context()).await.unwrap().status, 3);
}

/// What it does, which limit is made small for it, and which it runs into.
type Case = (&'static str, fn(&mut Limits), Limit);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_into_each_limit() {
    let cases: [Case; 7] = [
        ("loop", |l| l.cpu_ms = 100, Limit::CpuTime),
        ("loop", |l| l.wall_ms = 200, Limit::WallTime),
        ("sleep", |l| l.wall_ms = 200, Limit::WallTime),
        ("memory", |l| l.memory = 32 << 20, Limit::Memory),
        ("recursion", |_| (), Limit::Stack),
        ("output", |l| l.output = 64 << 10, Limit::Output),
        ("log", |l| l.log = 4096, Limit::Log),
    ];
    for name in HOSTILE {
        for (what, change, limit) in &cases {
            let error = act((name, *what), change, &context()).await.expect_err(what);
            assert_eq!(error, CallError::Limit(*limit), "{name}: {what}");
            // The next run of the module is none the worse.
            assert_eq!(act((name, "none"), change, &context()).await.unwrap().stdout, "well", "{name}: {what}");
        }
        let error = act((name, "trap"), |_| (), &context()).await.unwrap_err();
        assert!(matches!(error, CallError::Trapped(_)), "{name}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_deadline_ends_a_command() {
    for name in HOSTILE {
        for what in ["loop", "sleep"] {
            let start = Instant::now();
            let context = context_for(Duration::from_millis(100));
            let error = act((name, what), |_| (), &context).await.unwrap_err();
            assert_eq!(error, CallError::Deadline, "{name}: {what}");
            assert!(start.elapsed() < Duration::from_secs(2), "{name}: {what}: {:?}", start.elapsed());
        }
    }
}
