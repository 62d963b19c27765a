//! Loads ONNX files with each engine and prints what the reader and the engines say of them.
//!
//!     cargo run --release -p windrose-engine --example load -- FILE...

use std::path::Path;
use std::time::Instant;

use windrose_engine::{Engines, EnginesConfig, GraphOptions, OnnxRuntimeLibrary, onnx};

fn main() {
    let search = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/onnxruntime")];
    let config = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search };
    let engines = Engines::new(config).expect("engines");
    for file in std::env::args().skip(1) {
        let data = bytes::Bytes::from(std::fs::read(&file).expect("a file"));
        let start = Instant::now();
        match onnx::read(&data) {
            Ok(model) => println!("{file}: read in {:?}: {model:#?}", start.elapsed()),
            Err(error) => println!("{file}: refused in {:?}: {error}", start.elapsed()),
        }
        for engine in [windrose_engine::EngineChoice::Rten, windrose_engine::EngineChoice::Onnxruntime] {
            let start = Instant::now();
            let loaded = engines.load(data.clone(), &GraphOptions { engine, ..GraphOptions::default() });
            match loaded {
                Ok(graph) => println!("{engine:?}: loaded in {:?}: {:?}", start.elapsed(), graph.info()),
                Err(error) => println!("{engine:?}: {error:?}"),
            }
        }
    }
}
