//! The world `model`: the built-in pass-through module, and answers that break the contract.

use std::path::Path;

use windrose_engine::{
    DataType, Dim, EngineError, Engines, EnginesConfig, GraphOptions, GraphSpec, Tensor, TensorSpec,
};
use windrose_sandbox::{CallError, Limit, ModuleKind, PASSTHROUGH, Parameter, Program};

use crate::support::{SANDBOX, context, floats, graph, identity, program, request, root};
use crate::wat::{component, guest};

/// `BLESS=1` writes the component anew.
#[test]
fn passthrough_is_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("passthrough");
    let text = std::fs::read_to_string(folder.join("passthrough.wat")).unwrap();
    let built = component(&text);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(folder.join("passthrough.wasm"), &built).unwrap();
        return;
    }
    assert!(built == PASSTHROUGH, "passthrough.wasm is not passthrough.wat: run the tests with BLESS=1");
}

fn passthrough() -> Program {
    identity(SANDBOX.module(PASSTHROUGH).unwrap(), |_| ())
}

#[tokio::test]
async fn a_graph_without_a_module_answers() {
    let program = passthrough();
    assert_eq!(program.module().kind(), ModuleKind::Model);
    let signature = program.describe(&context()).await.unwrap();
    assert_eq!(signature.outputs[0].name, "y");
    assert_eq!(signature.outputs[0].datatype, DataType::Fp32);
    let answer = program.infer(&signature, request(&[1.0, -2.5, 3.0]), &context()).await.unwrap();
    assert_eq!(floats(&answer), [1.0, -2.5, 3.0]);
}

#[tokio::test]
async fn outputs_that_were_not_asked_for_are_left_out() {
    let module = SANDBOX.module(PASSTHROUGH).unwrap();
    let program = program(crate::support::config(module, graph("test/two_in_two_out.onnx")));
    let signature = program.describe(&context()).await.unwrap();
    let mut request = request(&[]);
    request.inputs = vec![
        ("labels".into(), Tensor::from_vec([1], vec![41i64]).unwrap()),
        ("pixels".into(), Tensor::from_vec([1, 3], vec![1f32, 2.0, 3.0]).unwrap()),
    ];
    let all = program.infer(&signature, request.clone(), &context()).await.unwrap();
    assert_eq!(all.outputs.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["doubled", "next"]);
    request.outputs = vec!["next".into()];
    let one = program.infer(&signature, request, &context()).await.unwrap();
    assert_eq!(one.outputs.len(), 1);
    assert_eq!(*one.outputs[0].1.values::<i64>().unwrap(), [42]);
}

#[tokio::test]
async fn a_wrong_input_is_the_callers_fault() {
    let program = passthrough();
    let signature = program.describe(&context()).await.unwrap();
    let mut wrong = request(&[1.0]);
    wrong.inputs[0].0 = "nonesuch".into();
    let error = program.infer(&signature, wrong, &context()).await.unwrap_err();
    assert!(matches!(error, CallError::Engine(EngineError::InvalidInput(_))), "{error:?}");
}

#[tokio::test]
async fn a_graph_that_is_missing_breaks_the_contract() {
    let mut config = crate::support::config(SANDBOX.module(PASSTHROUGH).unwrap(), graph("test/identity_fp32.onnx"));
    config.graphs.clear();
    let error = program(config).describe(&context()).await.unwrap_err();
    assert!(matches!(error, CallError::Contract(_)), "{error:?}");
}

/// One output `y`, as declared.
fn signature(datatype: DataType, shape: Option<Vec<Dim>>) -> GraphSpec {
    GraphSpec { inputs: Vec::new(), outputs: vec![TensorSpec { name: "y".into(), datatype, shape }] }
}

/// Calls a guest of text that returns one tensor named `y`, made of `dims`, `ty` and `len` bytes at 1024.
async fn returned(dims: &[u32], ty: u32, data: &[u8], as_what: &GraphSpec) -> Result<Tensor, CallError> {
    let bytes = |b: &[u8]| b.iter().map(|b| format!("\\{b:02x}")).collect::<String>();
    let dims_data: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    let body = format!(
        r#"(call $answer (call $tensor (i32.const 512) (i32.const {}) (i32.const {ty}) (i32.const 1024)
             (i32.const {})))"#,
        dims.len(),
        data.len()
    );
    let globals =
        format!(r#"(data (i32.const 512) "{}") (data (i32.const 1024) "{}")"#, bytes(&dims_data), bytes(data));
    let program = identity(SANDBOX.module(&guest(&globals, &body)).unwrap(), |_| ());
    let answer = program.infer(as_what, request(&[1.0]), &context()).await?;
    Ok(answer.outputs[0].1.clone())
}

#[tokio::test]
async fn carriers_become_what_was_declared() {
    let any = |datatype| signature(datatype, Some(vec![Dim::Symbol("n".into())]));
    let y = returned(&[2], 4, &[1, 0], &any(DataType::Bool)).await.unwrap();
    assert_eq!((y.datatype(), &y.data()[..]), (DataType::Bool, &[1, 0][..]));
    let y = returned(&[1], 5, &[0xff; 4], &any(DataType::Uint32)).await.unwrap();
    assert_eq!(*y.values::<u32>().unwrap(), [u32::MAX]);
    let error = returned(&[2], 4, &[1, 7], &any(DataType::Bool)).await.unwrap_err();
    assert!(matches!(error, CallError::Contract(_)), "{error:?}");
}

#[tokio::test]
async fn strings_travel_in_a_u8_tensor_longer_than_its_shape() {
    let data = [2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0];
    let strings = signature(DataType::Bytes, Some(vec![Dim::Fixed(2)]));
    let y = returned(&[2], 4, &data, &strings).await.unwrap();
    assert_eq!(y.strings().collect::<Vec<_>>(), ["hi", ""]);
    // Neither two bytes nor two strings.
    let error = returned(&[2], 4, &data[..9], &strings).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped(_)), "{error:?}");
}

#[tokio::test]
async fn wrong_types_and_shapes_break_the_contract() {
    let error = returned(&[1], 1, &[0; 4], &signature(DataType::Fp64, None)).await.unwrap_err();
    assert!(matches!(error, CallError::Contract(_)), "{error:?}");
    for dims in [vec![Dim::Fixed(2)], vec![], vec![Dim::Fixed(1), Dim::Fixed(1)]] {
        let error = returned(&[1], 1, &[0; 4], &signature(DataType::Fp32, Some(dims))).await.unwrap_err();
        assert!(matches!(error, CallError::Contract(_)), "{error:?}");
    }
    let mut other = signature(DataType::Fp32, None);
    other.outputs[0].name = "z".into();
    let error = returned(&[1], 1, &[0; 4], &other).await.unwrap_err();
    assert!(matches!(error, CallError::Contract(text) if text.contains("`y`")));
}

#[tokio::test]
async fn a_handle_that_is_used_twice_traps() {
    let globals = r#"(data (i32.const 512) "\01\00\00\00")"#;
    let body = r#"(local $t i32)
        (local.set $t (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 1024) (i32.const 4)))
        (call $tensor-drop (local.get $t))
        (call $answer (local.get $t))"#;
    let program = identity(SANDBOX.module(&guest(globals, body)).unwrap(), |_| ());
    let error = program.infer(&signature(DataType::Fp32, None), request(&[1.0]), &context()).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped(_)), "{error:?}");
}

#[tokio::test]
async fn load_is_refused_without_a_grant() {
    // load([], onnx, cpu), and then the error's code as a trap or not: 7 is `security`.
    let body = r#"(call $load (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 64))
        (if (i32.ne (i32.load8_u (i32.const 64)) (i32.const 1)) (then unreachable))
        (if (i32.ne (call $code (i32.load (i32.const 68))) (i32.const 7)) (then unreachable))
        (call $answer (i32.load offset=12 (local.get $inputs)))"#;
    let program = identity(SANDBOX.module(&guest("", body)).unwrap(), |_| ());
    program.infer(&signature(DataType::Fp32, None), request(&[1.0]), &context()).await.unwrap();
}

#[tokio::test]
async fn inputs_count_as_tensor_memory() {
    let program = identity(SANDBOX.module(PASSTHROUGH).unwrap(), |limits| limits.tensor_memory = 4096);
    let signature = program.describe(&context()).await.unwrap();
    let error = program.infer(&signature, request(&[0.0; 2048]), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::TensorMemory));
    program.infer(&signature, request(&[0.0; 256]), &context()).await.unwrap();
}

#[tokio::test]
async fn sixty_four_megabytes_pass() {
    let program = identity(SANDBOX.module(PASSTHROUGH).unwrap(), |limits| limits.output = 128 << 20);
    let signature = program.describe(&context()).await.unwrap();
    let answer = program.infer(&signature, request(&vec![1.0; 16 << 20]), &context()).await.unwrap();
    assert_eq!(floats(&answer).len(), 16 << 20);
}

/// Answers with the parameter `y`, a text of 50,000 bytes.
const LONG_PARAMETER: &str = r#"(memory.fill (i32.const 8192) (i32.const 97) (i32.const 50000))
    (drop (call $answer (i32.load offset=12 (local.get $inputs))))
    (i32.store (i32.const 108) (i32.const 256)) (i32.store (i32.const 112) (i32.const 1))
    (i32.store (i32.const 256) (i32.const 48)) (i32.store (i32.const 260) (i32.const 1))
    (i32.store (i32.const 264) (i32.const 3))
    (i32.store (i32.const 272) (i32.const 8192)) (i32.store (i32.const 276) (i32.const 50000))
    (i32.const 96)"#;

#[tokio::test]
async fn parameters_count_as_output() {
    let module = SANDBOX.module(&guest("", LONG_PARAMETER)).unwrap();
    let of_any_length = signature(DataType::Fp32, None);
    let program = identity(module.clone(), |limits| limits.output = 4 + 1 + 50_000);
    let answer = program.infer(&of_any_length, request(&[1.0]), &context()).await.unwrap();
    assert_eq!(answer.parameters, [("y".into(), Parameter::Text("a".repeat(50_000)))]);
    let program = identity(module, |limits| limits.output = 4 + 50_000);
    let error = program.infer(&of_any_length, request(&[1.0]), &context()).await.unwrap_err();
    assert_eq!(error, CallError::Limit(Limit::Output));
}

#[tokio::test]
async fn a_modules_last_words_are_few() {
    for (case, name) in [(0, "invalid-input"), (1, "internal")] {
        let body = format!(
            r#"(memory.fill (i32.const 8192) (i32.const 97) (i32.const 50000))
            (i32.store (i32.const 96) (i32.const 1)) (i32.store (i32.const 100) (i32.const {case}))
            (i32.store (i32.const 104) (i32.const 8192)) (i32.store (i32.const 108) (i32.const 50000))
            (i32.const 96)"#
        );
        let program = identity(SANDBOX.module(&guest("", &body)).unwrap(), |_| ());
        let error = program.infer(&signature(DataType::Fp32, None), request(&[1.0]), &context()).await.unwrap_err();
        let (CallError::InvalidInput(text) | CallError::Failed(text)) = error else { panic!("{name}: {error:?}") };
        assert!(text.starts_with("aaa") && text.ends_with('…') && text.len() < 5_000, "{name}: {} bytes", text.len());
    }
}

/// Needs ONNX Runtime, which has byte strings: without its library (`make onnxruntime`) it says so and passes.
#[tokio::test]
async fn byte_strings_pass_through_a_graph() {
    let search = vec![root().join("target/onnxruntime")];
    let engines = Engines::new(EnginesConfig { search, ..EnginesConfig::default() }).unwrap();
    if !engines.available().iter().any(|engine| engine.name == "onnxruntime") {
        eprintln!("skipped: ONNX Runtime's library is not here");
        return;
    }
    let onnx = std::fs::read(root().join("models/test/identity_bytes.onnx")).unwrap();
    let graph = engines.load(onnx.into(), &GraphOptions::default()).unwrap();
    let program = program(crate::support::config(SANDBOX.module(PASSTHROUGH).unwrap(), graph));
    let signature = program.describe(&context()).await.unwrap();
    let texts: [&[u8]; 3] = [b"", b"a text", &[0xff, 0, 7]];
    let mut strings = request(&[]);
    strings.inputs[0].1 = Tensor::from_strings([3], &texts).unwrap();
    let answer = program.infer(&signature, strings, &context()).await.unwrap();
    assert_eq!(answer.outputs[0].1.strings().collect::<Vec<_>>(), texts);
}
