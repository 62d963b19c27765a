//! Plain bindings of the public `wasi:nn`, and what anybody does with them.

#[allow(unsafe_code, reason = "generated from the contract")]
mod bindings {
    wit_bindgen::generate!({ path: "../../guest-sdk/wit/deps/wasi-nn.wit", world: "ml" });
}

use bindings::wasi::nn::errors::Error;
use bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding, load, load_by_name};
use bindings::wasi::nn::inference::GraphExecutionContext;
use bindings::wasi::nn::tensor::{Tensor, TensorType};

/// A graph that the host has under this name, or one in a file.
pub fn open(graph: &str) -> Result<GraphExecutionContext, String> {
    let graph = match graph.ends_with(".onnx") {
        true => {
            let onnx = std::fs::read(graph).map_err(|error| format!("{graph}: {error}"))?;
            load(&[onnx], GraphEncoding::Onnx, ExecutionTarget::Cpu)
        }
        false => load_by_name(graph),
    };
    graph.and_then(|graph| graph.init_execution_context()).map_err(told)
}

/// The species of a flower by four numbers, as text: its class and the probability.
pub fn classify(graph: &GraphExecutionContext, numbers: &str) -> Result<String, String> {
    let features: Vec<f32> = numbers.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    let bytes: Vec<u8> = features.iter().flat_map(|feature| feature.to_le_bytes()).collect();
    let features = Tensor::new(&[1, features.len() as u32], TensorType::Fp32, &bytes);
    let outputs = graph.compute(vec![("features".to_owned(), features)]).map_err(told)?;
    let found = outputs.iter().find(|(name, _)| name == "probabilities");
    let (_, probabilities) = found.ok_or("there are no probabilities")?;
    let data = probabilities.data();
    let (values, _) = data.as_chunks::<4>();
    let values = values.iter().map(|value| f32::from_le_bytes(*value));
    let best = values.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map(|(class, probability)| format!("{class},{probability}")).ok_or_else(|| "no class".to_owned())
}

fn told(error: Error) -> String {
    format!("{:?}: {}", error.code(), error.data())
}
