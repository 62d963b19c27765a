//! The command line, and the pages that are made from the code.

use std::process::Command;

use crate::server::{Server, checkout};

fn windrose(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_windrose")).args(arguments).output().unwrap()
}

/// A page of the checkout is what the code says; `BLESS=1` writes it.
fn is_golden(path: &str, actual: &str) {
    let file = checkout(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, actual).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        golden == actual,
        "{path} is not what the code says: run the tests with BLESS=1 and look at the difference"
    );
}

#[test]
fn the_configuration_page_is_up_to_date() {
    is_golden("docs/configuration.md", &windrose::config::reference::markdown());
}

#[test]
fn the_openapi_page_is_up_to_date() {
    is_golden("docs/openapi.json", &windrose::control::api::openapi_json());
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let status = |arguments: &[&str]| windrose(arguments).status.code();
    assert_eq!(status(&["--help"]), Some(0));
    assert_eq!(status(&["nonsense"]), Some(2));
    assert_eq!(status(&["deploy", "/nonexistent.onnx"]), Some(2));
    assert_eq!(status(&["serve", "--set", "data.listne=1"]), Some(2));
    assert_eq!(status(&["models", "--control", "http://127.0.0.1:9"]), Some(3));
    let server = Server::start(&[]);
    let wrong = server.dir.path().join("wrong");
    std::fs::write(&wrong, "0".repeat(64)).unwrap();
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(server.refused(&["models", "--token-file", wrong.to_str().unwrap()]).0, 4);
    assert_eq!(server.refused(&["inspect", "nobody"]).0, 1);
    assert_eq!(server.refused(&["delete", "nobody", "--yes"]).0, 1);
    let (status, said) = server.refused(&["serve"]);
    assert!(status == 1 && said.contains("used by another windrose process"), "{said}");
}

#[test]
fn new_makes_a_project_that_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my-model");
    assert!(windrose(&["new", path.to_str().unwrap()]).status.success());
    std::fs::write(path.join("my-model.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
    let output = windrose(&["validate", "--offline", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(windrose(&["new", path.to_str().unwrap()]).status.code(), Some(2), "it is there already");
    assert_eq!(windrose(&["new", "Bad_Name!"]).status.code(), Some(2));
}

#[test]
fn infer_and_inspect_speak_to_people_and_scripts() {
    let server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "same", "1");
    let text = server.ok(&["infer", "same", "--input", "x=[1.5, -2]"]);
    assert!(text.contains("1.5, -2") && text.contains("answered in"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&server.ok(&["infer", "same", "--input", "x=[1.5]", "--json"])).unwrap();
    assert_eq!(json["outputs"][0]["data"], serde_json::json!([1.5]));
    assert!(server.ok(&["inspect", "same"]).contains("rten"));
    assert!(server.refused(&["infer", "same", "--input", "y=[1]"]).1.contains("it has x"));
}
