//! The command line, and the pages that are made from the code.

use std::process::{Command, Stdio};
use std::time::Duration;

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
    let ended = server.command().arg("serve").env("WINDROSE_DATA_LISTNE", "127.0.0.1:1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(2) && said.contains("did you mean `WINDROSE_DATA_LISTEN`?"), "{said}");
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
fn new_without_a_checkout_says_what_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("windrose");
    std::fs::copy(env!("CARGO_BIN_EXE_windrose"), &copy).unwrap();
    let new = |name: &str, more: &[&str]| {
        Command::new(&copy).args(["new", name]).args(more).current_dir(folder.path()).output().unwrap()
    };
    let refused = new("mine", &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("checkout") && said.contains("--sdk"), "{said}");
    assert!(!folder.path().join("mine").exists());
    assert_eq!(new("mine", &["--sdk", "."]).status.code(), Some(2));
    let sdk = checkout("guest-sdk");
    assert!(new("mine", &["--sdk", sdk.to_str().unwrap()]).status.success());
    let cargo = std::fs::read_to_string(folder.path().join("mine/Cargo.toml")).unwrap();
    assert!(cargo.contains(sdk.to_str().unwrap()), "{cargo}");
}

#[test]
fn a_reader_that_has_gone_ends_a_command_quietly() {
    let server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "same", "1");
    let graph = checkout("models/test/identity_fp32.onnx");
    let graph = graph.to_str().unwrap();
    for arguments in [
        &["models"][..],
        &["inspect", "same"],
        &["infer", "same", "--input", "x=[1]"],
        &["validate", graph, "--name", "same", "--json"],
        &["deploy", graph, "--name", "other", "--json"],
        &["completions", "bash"],
        &["serve", "--print-reference"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = server.command().args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ended = ended.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(141) && !said.contains("panicked"), "{arguments:?}: {said}");
        assert!(!said.contains("error"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_command_waits_for_a_gateway_that_is_starting() {
    let mut server = Server::stopped(&[]);
    let mut command = server.command();
    let waiting = command.arg("models").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    server.run();
    let ended = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    assert_eq!(said, format!("waiting for the gateway at http://{}\n", server.control));
}

#[test]
fn help_and_completions_show_what_is_for_people() {
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(windrose(&["completions", shell]).stdout).unwrap();
        assert!(script.contains("deploy") && script.contains("control-listen"), "{shell}");
        let mut words = script.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        assert!(!words.any(|word| word == "prepare"), "{shell} offers a command that is not for people");
    }
    let help = String::from_utf8(windrose(&["serve", "--help"]).stdout).unwrap();
    let sources = windrose::config::Sources {
        file: None,
        environment: vec![("HOME".into(), "/nowhere".into())],
        set: Vec::new(),
    };
    let defaults = windrose::config::Config::load(&sources).unwrap();
    for listener in [defaults.data.listen, defaults.control.listen] {
        assert!(help.contains(&format!("[default: {listener}]")), "{help}");
    }
}

#[test]
fn delete_removes_nothing_where_nobody_can_be_asked() {
    let server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "same", "1");
    let ended = server.command().args(["delete", "same"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(2) && said.contains("nothing was removed; say --yes"), "{said}");
    assert_eq!(server.infer("same").0, 200);
    server.ok(&["delete", "same", "--yes"]);
    assert_eq!(server.infer("same").0, 404);
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
    let (status, said) = server.refused(&["infer", "same", "--input", "x=[[1,2],[3]]"]);
    assert!(status == 2 && said.contains("x: the lists"), "{said}");
}

#[test]
fn a_version_that_unversioned_calls_do_not_get_says_so() {
    let server = Server::start(&[]);
    let graph = checkout("models/test/identity_fp32.onnx");
    let deploy =
        |version: &str| server.ok(&["deploy", graph.to_str().unwrap(), "--name", "same", "--version", version]);
    for version in ["1.9.0", "1.10.0"] {
        let said = deploy(version);
        assert!(!said.contains("Calls without") && said.contains("/v2/models/same\n"), "{said}");
    }
    for version in ["1.9.1", "1.10.0-rc.1", "1"] {
        let said = deploy(version);
        assert!(said.contains("Calls without a version get version 1.10.0, which is higher"), "{said}");
        assert!(said.contains(&format!("/v2/models/same/versions/{version}\n")), "{said}");
    }
    assert_eq!(server.infer("same").1["model_version"], "1.10.0");
}

#[test]
fn a_body_goes_to_the_version_that_is_named() {
    let server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "same", "1");
    let body = server.dir.path().join("body");
    std::fs::write(&body, "1,2").unwrap();
    let body = body.to_str().unwrap();
    let said = server.refused(&["infer", "same", "--body", body, "--version", "3"]).1;
    assert!(said.contains("version \"3\" of model \"same\" is not deployed"), "{said}");
    let said = server.refused(&["infer", "same", "--body", body, "--version", "1"]).1;
    assert!(said.contains("takes inferences"), "{said}");
}

#[test]
fn a_manifest_in_the_working_folder_finds_what_its_checkout_built() {
    let checkout = tempfile::tempdir().unwrap();
    for folder in ["models/m", "target/guests"] {
        std::fs::create_dir_all(checkout.path().join(folder)).unwrap();
    }
    std::fs::write(checkout.path().join("target/guests/m.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
    let folder = checkout.path().join("models/m");
    std::fs::write(folder.join("windrose.toml"), "name = \"m\"\nmodule = \"m.wasm\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_windrose"));
    let ended = command.args(["validate", "--offline", "windrose.toml"]).current_dir(&folder).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_file_that_is_too_large_is_refused_before_it_is_sent() {
    let server = Server::start(&[("WINDROSE_CONTROL_MAX_BLOB", "1MiB")]);
    let large = server.dir.path().join("large.wasm");
    std::fs::write(&large, b"\0asm\x0d\0\x01\0").unwrap();
    std::fs::File::options().append(true).open(&large).unwrap().set_len(256 << 20).unwrap();
    let (status, said) = server.refused(&["deploy", large.to_str().unwrap()]);
    assert!(status == 1 && said.contains("1048576"), "{said}");
}
