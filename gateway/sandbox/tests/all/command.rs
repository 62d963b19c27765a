//! `wasi:cli` commands: input, output, arguments, environment, assets.

use windrose_sandbox::{CallError, Limit, ModuleKind, Program, ProgramConfig};

use crate::support::{config, context, graph, module, program};

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
