//! Graphs that the bounded reader keeps from every engine, and what it tells of the others.

use windrose_engine::{DataType, EngineError, Fault, onnx};

use crate::setup::{backends, onnx as bytes, root, try_load};

#[test]
fn hostile_graphs_are_refused_before_an_engine_sees_them() {
    let cases = [
        ("refused_external_data", "external data"),
        ("refused_domain", "unknown domain 'com.example'"),
        ("refused_short_weight", "weight 'w' takes 16 bytes, not 12"),
        ("refused_deep", "subgraphs nest deeper than 8"),
    ];
    for (name, why) in cases {
        let read = onnx::inspect(&bytes(name)).expect_err(name);
        assert!(read.to_string().contains(why), "{read}");
        assert_eq!(read.fault(), Fault::Graph);
        for engine in backends() {
            assert_eq!(try_load(engine, name).expect_err(name), read);
        }
    }
    for garbage in [&b""[..], b"hello", b"\x08\x08", b"PK\x03\x04", b"\x7fELF\x02\x01\x01"] {
        assert!(matches!(onnx::inspect(garbage), Err(EngineError::InvalidGraph(_))));
    }
}

#[test]
fn every_graph_of_the_tests_is_read() {
    let folder = std::fs::read_dir(root().join("models/test")).expect("the test graphs");
    let mut read = 0;
    for entry in folder.flatten() {
        let name = entry.file_name().into_string().expect("a name");
        let data = std::fs::read(entry.path()).expect("a graph");
        let answer = onnx::read(&data);
        assert_eq!(answer.is_err(), name.starts_with("refused_"), "{name}: {answer:?}");
        read += 1;
        // Cut anywhere, it is refused or still a whole graph: never a panic.
        for length in 0..data.len() {
            if let Ok(model) = onnx::read(&data[..length]) {
                assert!(!model.spec.outputs.is_empty(), "{name} cut to {length}");
            }
        }
    }
    assert!(read > 30, "{read} graphs");
}

#[test]
fn what_the_reader_tells() {
    let model = onnx::read(&bytes("loop")).expect("a graph");
    assert_eq!(model.nodes, 3, "one node, and two in its subgraph");
    assert_eq!(model.operators.iter().map(String::as_str).collect::<Vec<_>>(), ["Identity", "Loop", "Mul"]);
    assert_eq!(model.spec.inputs[0].datatype, DataType::Int64);
    assert_eq!(model.spec.inputs[0].shape.as_deref(), Some(&[][..]));
    assert_eq!(model.beyond_32_bits, None);
    assert_eq!(onnx::read(&bytes("slice_to_end")).expect("a graph").beyond_32_bits, None);
    let wide = onnx::read(&bytes("wide_constant")).expect("a graph").beyond_32_bits.expect("a reason");
    assert!(wide.contains("'big'") && wide.contains("Add"), "{wide}");
    assert_eq!(onnx::inspect(&bytes("identity_bytes")).expect("a graph").inputs[0].shape, None);
}
