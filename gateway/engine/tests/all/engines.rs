//! Choosing an engine and a device, and finding ONNX Runtime's library.

use std::path::Path;
use std::process::Command;

use windrose_engine::{Device, EngineChoice, EngineError, Engines, EnginesConfig, GraphOptions, OnnxRuntimeLibrary};

use crate::setup::{backends, engines, found, onnx};

fn refusal(options: GraphOptions) -> String {
    match engines().load(onnx("tiny"), &options) {
        Err(error @ (EngineError::Unavailable(_) | EngineError::InvalidInput(_))) => error.to_string(),
        other => panic!("{options:?}: {other:?}"),
    }
}

#[test]
fn a_device_is_used_or_refused() {
    for device in [Device::Gpu, Device::Cuda] {
        let rten = refusal(GraphOptions { engine: EngineChoice::Rten, device, ..Default::default() });
        assert!(rten.contains("rten runs on the CPU only"), "{rten}");
        if engines().available().iter().any(|e| e.providers.iter().any(|p| p == "CUDA")) {
            eprintln!("SKIPPED: this ONNX Runtime has a CUDA provider");
            continue;
        }
        let auto = refusal(GraphOptions { device, ..Default::default() });
        assert!(auto.contains("CUDA") || auto.contains("ONNX Runtime"), "{auto}");
    }
}

#[test]
fn auto_takes_onnx_runtime_where_it_is() {
    let graph = engines().load(onnx("tiny"), &GraphOptions::default()).expect("a graph");
    let expected = if backends().len() == 2 { "onnxruntime" } else { "rten" };
    assert_eq!(graph.info().engine, expected);
    assert_eq!(graph.info().threads, 1);
    assert_eq!(graph.info().sessions, std::thread::available_parallelism().map_or(1, usize::from));
    assert_eq!(engines().available()[0].name, expected);
    assert!(engines().available().iter().all(|e| e.providers.iter().any(|p| p == "CPU")));
}

#[test]
fn auto_means_what_it_was_said_to_mean() {
    let engines = found().with_auto(EngineChoice::Rten);
    let load = |graph, device| engines.load(onnx(graph), &GraphOptions { device, ..Default::default() });
    assert_eq!(load("tiny", Device::Cpu).expect("a graph").info().engine, "rten");
    let refused = load("square_int64", Device::Cpu).expect_err("a graph that rten refuses").to_string();
    assert!(refused.contains("needs ONNX Runtime"), "{refused}");
    let refused = load("tiny", Device::Gpu).expect_err("a device that rten has not").to_string();
    assert!(refused.contains("rten runs on the CPU only"), "{refused}");
    for device in [Device::Cpu, Device::Gpu] {
        let chosen = engines.chosen(EngineChoice::Auto, device);
        assert_eq!(chosen == EngineChoice::Rten, device == Device::Cpu, "{chosen:?}");
    }
    // Who names an engine gets that one.
    let options = GraphOptions { engine: EngineChoice::Onnxruntime, ..Default::default() };
    assert!(engines.that_runs(&options).is_none_or(|engine| engine.name == "onnxruntime"));
}

#[test]
fn settings_out_of_bounds_are_refused() {
    let options = GraphOptions::default;
    assert!(refusal(GraphOptions { sessions: Some(0), ..options() }).contains("sessions"));
    assert!(refusal(GraphOptions { threads: Some(usize::MAX), ..options() }).contains("threads"));
    assert!(refusal(GraphOptions { queue: Some(0), ..options() }).contains("queue"));
}

#[test]
fn without_the_library_rten_is_what_there_is() {
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..Default::default() };
    let engines = Engines::new(config).expect("engines");
    assert_eq!(engines.available().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["rten"]);
    let options = GraphOptions { engine: EngineChoice::Onnxruntime, ..Default::default() };
    assert!(matches!(engines.load(onnx("tiny"), &options), Err(EngineError::Unavailable(_))));
    let graph = engines.load(onnx("tiny"), &GraphOptions::default()).expect("a graph");
    assert_eq!(graph.info().engine, "rten");
}

/// A library that tells `version` and hangs for ever when it is asked for its interface.
fn library(folder: &Path, version: &str) -> std::path::PathBuf {
    let source = format!(
        "struct base {{ const void *(*api)(unsigned); const char *(*version)(void); }};
         static const void *api(unsigned v) {{ (void)v; for (;;) {{ __asm__ volatile(\"\"); }} }}
         static const char *version(void) {{ return \"{version}\"; }}
         static const struct base b = {{ api, version }};
         const struct base *OrtGetApiBase(void) {{ return &b; }}"
    );
    let (c, so) = (folder.join("old.c"), folder.join(format!("libonnxruntime.so.{version}")));
    std::fs::write(&c, source).expect("a source file");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&so, &c]).status().expect("a C compiler");
    assert!(made.success());
    so
}

#[test]
fn an_old_library_is_refused_before_it_is_initialised() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = library(folder.path(), "1.10.0");
    // In a process of its own, where no other library is loaded yet.
    if std::env::var_os("WINDROSE_TEST_ALONE").is_none() {
        let me = std::env::current_exe().expect("this program");
        let test = "engines::an_old_library_is_refused_before_it_is_initialised";
        let output = Command::new(me).args(["--exact", test]).env("WINDROSE_TEST_ALONE", "1").output();
        let output = output.expect("this program again");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let named = Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Path(old), search: vec![] });
    let error = named.expect_err("an old library").to_string();
    assert!(error.contains("ONNX Runtime 1.10 cannot be used"), "{error}");
    assert!(!error.contains(&*folder.path().to_string_lossy()), "{error}");
    let missing = OnnxRuntimeLibrary::Path(folder.path().join("missing.so"));
    assert!(Engines::new(EnginesConfig { onnxruntime: missing, search: vec![] }).is_err());
    // A search passes over it.
    let search = vec![folder.path().to_owned()];
    let engines = Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search }).expect("engines");
    assert!(engines.available().iter().all(|e| e.version != "1.10.0"));
}

#[test]
fn a_second_library_is_refused() {
    if backends().len() < 2 {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let other = library(folder.path(), "1.40.0");
    let error = Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Path(other), search: vec![] });
    assert!(error.expect_err("a second library").to_string().contains("another ONNX Runtime"));
}
