//! What the server and its models say about themselves.

use serde::Serialize;
use windrose_engine::{Dim, GraphInfo, TensorSpec};
use windrose_sandbox::ModuleKind;

use crate::snapshot::{Served, Versions};

/// `/v2`
#[derive(Serialize)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 3],
}

/// `/v2/models/{model}`
#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: Vec<&'a str>,
    platform: String,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
    windrose: Extra<'a>,
}

#[derive(Serialize)]
struct TensorMetadata<'a> {
    name: &'a str,
    datatype: &'static str,
    /// -1 where it differs from call to call.
    shape: Vec<i64>,
    /// Only when the model declares no rank at all; `shape` is then a single -1.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unranked: bool,
}

/// What the protocol has no place for.
#[derive(Serialize)]
struct Extra<'a> {
    version: &'a str,
    kind: ModuleKind,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    /// sha256, hex.
    module: &'a str,
    graphs: Vec<GraphMetadata<'a>>,
}

#[derive(Serialize)]
struct GraphMetadata<'a> {
    name: &'a str,
    /// sha256, hex.
    digest: &'a str,
    #[serde(flatten)]
    info: &'a GraphInfo,
}

/// The server's metadata, as JSON.
pub(super) fn server() -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ServerMetadata {
        name: "windrose",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "schedule_policy", "statistics"],
    })
}

/// The metadata of one version of a model, as JSON.
pub(super) fn model(served: &Served, versions: &Versions) -> Result<Vec<u8>, serde_json::Error> {
    let signature = served.signature.as_ref();
    serde_json::to_vec(&ModelMetadata {
        name: &served.manifest.name,
        versions: versions.iter().map(|v| v.manifest.version.as_str()).collect(),
        platform: platform(served),
        inputs: tensors(signature.map(|s| &s.inputs[..])),
        outputs: tensors(signature.map(|s| &s.outputs[..])),
        windrose: Extra {
            version: &served.manifest.version,
            kind: served.kind,
            description: &served.manifest.description,
            module: &served.module_digest,
            graphs: served.graphs.iter().map(|(name, graph)| graph_metadata(served, name, graph.info())).collect(),
        },
    })
}

fn graph_metadata<'a>(served: &'a Served, name: &'a str, info: &'a GraphInfo) -> GraphMetadata<'a> {
    let digest = served.manifest.graphs.get(name).map_or("", |entry| entry.digest.as_str());
    GraphMetadata { name, digest, info }
}

/// `<engine>_onnx`, as the protocol names platforms; a model without a graph is only its module.
fn platform(served: &Served) -> String {
    match served.graphs.first() {
        Some((_, graph)) => format!("{}_onnx", graph.info().engine),
        None => "windrose_wasm".to_owned(),
    }
}

fn tensors(specs: Option<&[TensorSpec]>) -> Vec<TensorMetadata<'_>> {
    specs.unwrap_or_default().iter().map(tensor).collect()
}

fn tensor(spec: &TensorSpec) -> TensorMetadata<'_> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
        Dim::Symbol(_) => -1,
    };
    let shape = spec.shape.as_ref().map(|dims| dims.iter().map(size).collect());
    TensorMetadata {
        name: &spec.name,
        datatype: spec.datatype.name(),
        unranked: shape.is_none(),
        shape: shape.unwrap_or_else(|| vec![-1]),
    }
}
