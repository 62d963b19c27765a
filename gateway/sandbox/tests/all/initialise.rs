//! Initialisers: they run once, and every call starts from what they leave behind.

use std::path::Path;

use windrose_engine::{DataType, GraphSpec, TensorSpec};
use windrose_sandbox::{Limits, Module, ModuleError, Sandbox, SandboxConfig};

use crate::support::{SANDBOX, config, context, floats, graph, identity, module, request};
use crate::wat::{guest, initialised};

/// A number in memory, one in a global, and the answer of a call: their sum, after which it changes both.
const FIELDS: &str = r#"(global $seen (mut f32) (f32.const 0)) (data (i32.const 512) "\01\00\00\00")"#;
const ANSWER: &str = r#"
  (f32.store (i32.const 260) (f32.add (f32.load (i32.const 256)) (global.get $seen)))
  (global.set $seen (f32.const 1000))
  (f32.store (i32.const 256) (f32.const 1000))
  (call $answer (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 260) (i32.const 4)))"#;
/// Leaves 7 in memory and 0.5 in a global; all is well (768 holds zeros).
const SEVEN: &str = r#"
  (f32.store (i32.const 256) (f32.const 7)) (global.set $seen (f32.const 0.5)) (i32.const 768)"#;

pub fn seven() -> Vec<u8> {
    initialised(FIELDS, SEVEN, ANSWER)
}

async fn initialise(wasm: &[u8], limits: &Limits) -> Result<Module, ModuleError> {
    SANDBOX.initialised(SANDBOX.initialise(wasm, limits).await?)
}

/// What each of three calls answers.
async fn answers(module: Module) -> Vec<f32> {
    let program = identity(module, |_| ());
    let outputs = vec![TensorSpec { name: "y".into(), datatype: DataType::Fp32, shape: None }];
    let signature = GraphSpec { inputs: Vec::new(), outputs };
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(floats(&program.infer(&signature, request(&[1.0]), &context()).await.unwrap()));
    }
    all
}

#[tokio::test]
async fn every_call_starts_from_what_it_left() {
    let wasm = seven();
    assert!(Sandbox::has_initialiser(&wasm) && !Sandbox::has_initialiser(&guest(FIELDS, ANSWER)));
    let plain = SANDBOX.module(&wasm).unwrap();
    let module = initialise(&wasm, &Limits::default()).await.unwrap();
    assert_eq!(module.digest(), plain.digest(), "the digest is that of the deployed bytes");
    assert_eq!(answers(module).await, [7.5; 3]);
    assert_eq!(answers(plain).await, [0.0; 3], "without it nothing was left");
}

fn open(folder: &Path) -> Sandbox {
    let (cache, cache_key) = (Some(folder.join("cache")), Some(folder.join("key")));
    Sandbox::new(SandboxConfig { cache, cache_key, instances: 1, memory: 256 << 20, modules: None }).unwrap()
}

#[tokio::test]
async fn it_is_cached_beside_the_module_as_it_was_deployed() {
    let folder = tempfile::tempdir().unwrap();
    let (wasm, child) = (seven(), open(folder.path()));
    let digest = child.module(&wasm).unwrap().digest().to_owned();
    child.initialised(child.initialise(&wasm, &Limits::default()).await.unwrap()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("cache")).unwrap().count(), 2);
    let module = open(folder.path()).module_from_cache(&digest).expect("another process finds it");
    let sandbox = open(folder.path());
    let program = windrose_sandbox::Program::new(&sandbox, config(module, graph("test/identity_fp32.onnx")));
    drop(program.unwrap());
    let module = sandbox.module_from_cache(&digest).unwrap();
    let program = windrose_sandbox::Program::new(&sandbox, config(module, graph("test/identity_fp32.onnx"))).unwrap();
    let outputs = vec![TensorSpec { name: "y".into(), datatype: DataType::Fp32, shape: None }];
    let signature = GraphSpec { inputs: Vec::new(), outputs };
    let answer = program.infer(&signature, request(&[1.0]), &context()).await.unwrap();
    assert_eq!(floats(&answer), [7.5], "and calls start from what the initialiser left");
}

async fn refusal(init: &str, limits: &Limits) -> String {
    let error = initialise(&initialised(FIELDS, init, ANSWER), limits).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ModuleError::Initialiser(_)), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn what_cannot_be_started_from_is_refused() {
    let limits = Limits { cpu_ms: 50, memory: 1 << 20, ..Limits::default() };
    let failed = r#"(i32.store8 (i32.const 768) (i32.const 1)) (i32.store (i32.const 772) (i32.const 16))
        (i32.store (i32.const 776) (i32.const 5)) (i32.const 768)"#;
    assert_eq!(refusal(failed, &limits).await, "initialiser: model");
    assert!(refusal("unreachable", &limits).await.contains("trapped"));
    let kept = r#"(drop (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 256) (i32.const 4)))
        (i32.const 768)"#;
    assert!(refusal(kept, &limits).await.contains("handles"));
    assert!(refusal("(loop $for-ever (br $for-ever)) unreachable", &limits).await.contains("CpuTime"));
    let large = "(if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable)) (i32.const 768)";
    assert!(refusal(large, &limits).await.contains("Memory"));
}

#[tokio::test]
async fn a_real_guest_of_the_sdk_starts_from_its_snapshot() {
    let wasm = crate::support::guest("embed");
    let initialised = initialise(&wasm, &Limits::default()).await.unwrap();
    for module in [initialised, module("embed")] {
        let program = identity(module, |_| ());
        let signature = program.describe(&context()).await.unwrap();
        let mut none = request(&[]);
        let texts: [&[u8]; 0] = [];
        none.inputs = vec![("text".into(), windrose_engine::Tensor::from_strings([0], &texts).unwrap())];
        let answer = program.infer(&signature, none, &context()).await.unwrap();
        assert_eq!(answer.outputs[0].1.shape(), [0, 384]);
    }
    let error = SANDBOX.initialise(&crate::support::guest("echo"), &Limits::default()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ModuleError::Initialiser(text) if text.contains("exports none")));
}
