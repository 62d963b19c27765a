//! `load` of a graph that a guest brings itself: wherever the deployed graphs run, that one runs in a child.

use std::sync::Arc;
use std::time::Duration;

use windrose_engine::backend::child::ChildConfig;
use windrose_engine::process::Program as ChildProgram;
use windrose_engine::{DataType, Engines, EnginesConfig, GraphSpec, OnnxRuntimeLibrary, TensorSpec};
use windrose_sandbox::{Grants, Program};

use crate::support::{SANDBOX, config, context, floats, graph, program, request, root};
use crate::wat::guest;

/// The variable that makes this test program a child.
const CHILD: &str = "WINDROSE_TEST_CHILD";

/// The child, when this process is one; nothing otherwise.
#[test]
fn child_process() {
    if std::env::var_os(CHILD).is_some() {
        windrose_engine::backend::child::main();
    }
}

fn engines() -> Engines {
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
    Engines::new(config).expect("rten is built in")
}

fn children() -> ChildConfig {
    let program = ChildProgram {
        path: std::env::current_exe().expect("this program"),
        arguments: ["--exact", "load::child_process", "--nocapture"].map(Into::into).to_vec(),
        environment: vec![(CHILD.into(), "1".into())],
    };
    let wait = Duration::from_secs(60);
    ChildConfig { program, memory: 1 << 30, tensors: 1 << 20, run: wait, load: wait, most: 1 }
}

/// A guest that loads a graph of its own so many times, traps unless the last outcome is as told, and returns its input.
/// `outcome` is 0 for a graph, and else one more than the error's code.
fn loader(loads: usize, outcome: u8, engines: Engines) -> Program {
    let onnx = std::fs::read(root().join("models/test/identity_fp32.onnx")).expect("the graph is committed");
    let bytes: String = onnx.iter().map(|byte| format!("\\{byte:02x}")).collect();
    // At 512 a list of one builder, at 1024: so many bytes of ONNX for the CPU.
    let data = format!(
        r#"(data (i32.const 512) "\00\04\00\00\{:02x}\00\00\00") (data (i32.const 1024) "{bytes}")"#,
        onnx.len()
    );
    let load = "(call $load (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 64))";
    let body = format!(
        r#"{}
        (if (i32.load8_u (i32.const 64))
          (then (if (i32.ne (call $code (i32.load (i32.const 68))) (i32.const {})) (then unreachable)))
          (else (if (i32.const {outcome}) (then unreachable))))
        (call $answer (i32.load offset=12 (local.get $inputs)))"#,
        load.repeat(loads),
        i32::from(outcome) - 1
    );
    let module = SANDBOX.module(&guest(&data, &body)).expect("the guest compiles");
    let mut config = config(module, graph("test/identity_fp32.onnx"));
    config.grants = Grants { load: true, ..Grants::default() };
    config.engines = Arc::new(engines);
    program(config)
}

async fn answers(program: &Program) -> Vec<f32> {
    let y = TensorSpec { name: "y".into(), datatype: DataType::Fp32, shape: None };
    let signature = GraphSpec { inputs: Vec::new(), outputs: vec![y] };
    floats(&program.infer(&signature, request(&[1.0, 2.0]), &context()).await.expect("the outcome that was told"))
}

const UNSUPPORTED: u8 = 4;
const TOO_LARGE: u8 = 5;

#[tokio::test]
async fn what_a_guest_brings_runs_in_a_child_or_not_at_all() {
    // Where no child can be started, this process does not take the graph either.
    assert_eq!(answers(&loader(1, UNSUPPORTED + 1, engines())).await, [1.0, 2.0]);
    assert_eq!(answers(&loader(1, 0, engines().with_children(children()))).await, [1.0, 2.0]);
}

#[tokio::test]
async fn a_call_may_load_sixteen_and_no_more() {
    // None can be loaded here, which must not matter: whoever tries again and again costs as much.
    assert_eq!(answers(&loader(16, UNSUPPORTED + 1, engines())).await, [1.0, 2.0]);
    assert_eq!(answers(&loader(17, TOO_LARGE + 1, engines())).await, [1.0, 2.0]);
}
