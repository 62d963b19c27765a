//! What is refused before it runs, and what a module is told about its imports.

use windrose_sandbox::{Grants, ImportStatus, ModuleError, PASSTHROUGH};

use crate::support::{SANDBOX, guest, module};

fn refused(text: &str) -> ModuleError {
    match SANDBOX.module(&wat::parse_str(text).unwrap()) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

#[test]
fn what_is_not_webassembly_is_invalid() {
    for bytes in [&b""[..], b"hello", b"\0asm", &PASSTHROUGH[..PASSTHROUGH.len() / 2]] {
        let error = SANDBOX.module(bytes).err();
        assert!(matches!(&error, Some(ModuleError::Invalid(why)) if why.lines().count() == 1), "{error:?}");
    }
}

#[test]
fn a_core_module_of_the_older_abi_is_named() {
    let error = refused(r#"(module (import "wasi_ephemeral_nn" "load" (func (param i32) (result i32))))"#);
    let ModuleError::CoreModule(text) = error else { panic!("{error:?}") };
    assert!(text.contains("wasi_ephemeral_nn") && text.contains("wasi:nn@0.2.0-rc-2024-10-28"), "{text}");
    assert!(matches!(refused("(module)"), ModuleError::CoreModule(_)));
}

#[test]
fn an_unknown_import_is_named() {
    let error = refused(r#"(component (import "acme:secret/door@1.0.0" (instance)))"#);
    assert!(matches!(&error, ModuleError::UnknownImport(text) if text.contains("acme:secret/door@1.0.0")), "{error:?}");
    let error = refused(r#"(component (import "wasi:nn/graph@0.2.0-rc-2024-06-25" (instance)))"#);
    assert!(matches!(&error, ModuleError::UnknownImport(text) if text.contains("2024-10-28")), "{error:?}");
}

#[test]
fn a_component_that_serves_nothing_says_what_it_exports() {
    let error = refused(r#"(component (instance $i) (export "acme:thing/other@1.0.0" (instance $i)))"#);
    assert!(matches!(&error, ModuleError::NoWorld(text) if text.contains("acme:thing/other@1.0.0")), "{error:?}");
}

#[test]
fn standard_imports_are_linked_and_denied_until_granted() {
    let module = module("hostile-http");
    let denied = |imports: &[windrose_sandbox::Import]| {
        let denied = imports.iter().filter(|i| i.status == ImportStatus::Denied);
        denied.map(|i| i.name.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let names = denied(module.imports());
    assert!(names.contains(&"wasi:http/outgoing-handler".to_owned()), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("wasi:sockets/")), "{names:?}");
    let grants = Grants { network: vec!["example.com".into()], load: false };
    assert!(denied(&module.imports_under(&grants)).is_empty());
}

#[test]
fn the_passthrough_imports_nothing_but_wasi_nn() {
    let module = SANDBOX.module(PASSTHROUGH).unwrap();
    for import in module.imports() {
        assert!(import.name.starts_with("wasi:nn/") || import.name.starts_with("windrose:model/"), "{}", import.name);
    }
    assert_eq!(module.digest().len(), 64);
    assert!(guest("echo").len() > PASSTHROUGH.len());
}
