//! Guests written as text, so that no toolchain for WebAssembly is needed: core modules by the canonical ABI, which
//! `passthrough/world.wat` makes components of the world `model`.

/// The component of a core module's fields.
pub fn component(core: &str) -> Vec<u8> {
    let world = include_str!("../../passthrough/world.wat");
    wat::parse_str(world.replace(";; CORE", core)).expect("the text is a component")
}

/// A guest whose `infer` is `body`. It has `$inputs`, the functions of `wasi:nn`, and `$answer`, which makes the answer
/// with one tensor named `y`. Memory from 256 to 4095 is free.
pub fn guest(fields: &str, body: &str) -> Vec<u8> {
    component(&core(fields, body))
}

/// As [`guest`], with an initialiser: `init` leaves the address of its result.
pub fn initialised(fields: &str, init: &str, body: &str) -> Vec<u8> {
    let world = include_str!("../../passthrough/world.wat");
    let last = r#"(export "windrose:model/handler@0.1.0" (instance $handler))"#;
    let lift = r#"
  (alias core export $main "initialize" (core func $core-initialize))
  (func $initialize (result (result (error string))) (canon lift (core func $core-initialize) (memory $memory)))
  (instance $initializer (export "initialize" (func $initialize)))
  (export "windrose:model/initialize@0.1.0" (instance $initializer))"#;
    assert!(world.contains(last));
    let init = format!(r#"{fields} (func (export "initialize") (result i32) {init})"#);
    let world = world.replace(last, &format!("{last}{lift}")).replace(";; CORE", &core(&init, body));
    wat::parse_str(world).expect("the text is a component")
}

fn core(fields: &str, body: &str) -> String {
    format!(
        r#"
  (import "wasi:nn/tensor@0.2.0-rc-2024-10-28" "[constructor]tensor"
    (func $tensor (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi:nn/tensor@0.2.0-rc-2024-10-28" "[resource-drop]tensor" (func $tensor-drop (param i32)))
  (import "wasi:nn/graph@0.2.0-rc-2024-10-28" "load" (func $load (param i32 i32 i32 i32 i32)))
  (import "wasi:nn/errors@0.2.0-rc-2024-10-28" "[method]error.code" (func $code (param i32) (result i32)))
  (import "env" "memory" (memory 1))
  (data (i32.const 16) "model")
  (data (i32.const 32) "\01\00\00\00\10\00\00\00\05\00\00\00")
  (data (i32.const 48) "y")
  (func (export "describe") (result i32) (i32.const 32))
  (func $answer (param $tensor i32) (result i32)
    (i32.store (i32.const 128) (i32.const 48))
    (i32.store (i32.const 132) (i32.const 1))
    (i32.store (i32.const 136) (i32.const 0))
    (i32.store (i32.const 140) (local.get $tensor))
    (i32.store (i32.const 96) (i32.const 0))
    (i32.store (i32.const 100) (i32.const 128))
    (i32.store (i32.const 104) (i32.const 1))
    (i32.store (i32.const 108) (i32.const 0))
    (i32.store (i32.const 112) (i32.const 0))
    (i32.const 96))
  {fields}
  (func (export "infer") (param $inputs i32) (param i32 i32 i32 i32 i32) (result i32)
    {body})"#
    )
}
