//! What the control API answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windrose_engine::{Calibration, Dim, EngineInfo, GraphSpec, TensorSpec};
use windrose_sandbox::{Grants, Limits};

use crate::control::log::Preparation;
use crate::control::manifest::{Manifest, WantedLimits};
use crate::control::prepare::Event;

/// An error.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
    /// For programs: `invalid_input`, `not_found`, `unauthorized`, ...
    pub kind: String,
    /// Files that must be uploaded first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBlob>,
}

/// A file that a manifest names and that was not uploaded.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MissingBlob {
    /// The field of the manifest.
    pub field: String,
    /// sha256, hex.
    pub digest: String,
}

/// An uploaded file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BlobAnswer {
    /// sha256, hex.
    pub digest: String,
    /// Whether it was not there before.
    pub new: bool,
}

/// The state of the gateway.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusAnswer {
    /// The program's version.
    pub version: String,
    /// Whether everything that is deployed answers.
    pub ready: bool,
    /// The number of the last revision; 0 when nothing was ever deployed.
    pub revision: u64,
    /// Versions that answer.
    pub models_ready: usize,
    /// Versions that are still being loaded after the start.
    pub models_loading: usize,
    /// Versions that could not be loaded.
    pub models_failed: usize,
    /// The engines that are here, the preferred one first.
    pub engines: Vec<EngineView>,
    /// The address of the data listener.
    pub data: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
}

/// An engine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EngineView {
    /// `rten` or `onnxruntime`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it can run on.
    pub providers: Vec<String>,
}

impl From<&EngineInfo> for EngineView {
    fn from(info: &EngineInfo) -> EngineView {
        EngineView { name: info.name.clone(), version: info.version.clone(), providers: info.providers.clone() }
    }
}

/// All models.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ModelsAnswer {
    /// By name.
    pub models: Vec<ModelView>,
}

/// One model.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Its versions, the highest first.
    pub versions: Vec<VersionSummary>,
}

/// One version, in a line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionSummary {
    /// The version.
    pub version: String,
    /// How it stands.
    pub state: VersionState,
    /// Why it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `model`, `http` or `command`, once it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was deployed, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed: Option<String>,
    /// The deployer whose key it was; absent where it was the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployer: Option<String>,
}

/// How a version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// It answers.
    Ready,
    /// It is being loaded after a start.
    Loading,
    /// It could not be loaded.
    Failed,
}

/// One version, with everything that is known.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// The model.
    pub name: String,
    /// In a line.
    #[serde(flatten)]
    pub summary: VersionSummary,
    /// The manifest as it was deployed.
    pub manifest: Option<Manifest>,
    /// How its preparation went.
    pub preparation: Option<Preparation>,
    /// What is in force, once it is loaded.
    pub loaded: Option<LoadedView>,
}

/// What a loaded version is, and what it may do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LoadedView {
    /// sha256 of the module.
    pub module_digest: String,
    /// Whether the module is the built-in one that only hands on.
    pub pass_through: bool,
    /// Whether the module's code is in memory; else the next call brings it back from the cache.
    pub module_resident: bool,
    /// What the module imports, and how that is met.
    pub imports: Vec<ImportView>,
    /// Grants.
    pub grants: Asked<GrantsView, GrantsView>,
    /// Limits of one call.
    pub limits: Asked<WantedLimits, LimitsView>,
    /// Deadlines in force.
    pub timeout: TimeoutView,
    /// What a caller passes and gets; none for http components and commands.
    pub signature: Option<SignatureView>,
    /// The graphs.
    pub graphs: BTreeMap<String, GraphView>,
}

/// What was asked for, and what is in force under the operator's ceiling.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Asked<A, B> {
    /// By the manifest.
    pub asked: A,
    /// In force.
    pub in_force: B,
}

/// Deadlines, milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct TimeoutView {
    /// Of a request that names none.
    pub default_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

/// An import of a module.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportView {
    /// The interface.
    pub name: String,
    /// `provided`, `granted`, or `denied`: linked to an implementation that refuses each call.
    pub status: String,
}

/// Grants.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Grants)]
pub struct GrantsView {
    /// Hosts that may be reached, as `host` or `host:port`.
    pub network: Vec<String>,
    /// Whether `wasi:nn` `load` of the module's own bytes is allowed.
    pub load: bool,
}

impl From<&Grants> for GrantsView {
    fn from(grants: &Grants) -> GrantsView {
        GrantsView { network: grants.network.clone(), load: grants.load }
    }
}

/// Limits of one call.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Limits)]
pub struct LimitsView {
    /// Linear memory, bytes.
    pub memory: u64,
    /// Tensor bytes held by the host.
    pub tensor_memory: u64,
    /// Wall time, milliseconds.
    pub wall_ms: u64,
    /// CPU time of the module, milliseconds.
    pub cpu_ms: u64,
    /// Calls at the same time.
    pub concurrency: u32,
    /// Bytes of one answer.
    pub output: u64,
    /// Bytes of log.
    pub log: u64,
    /// Requests that one instance may answer.
    pub reuse: u32,
}

impl From<&Limits> for LimitsView {
    fn from(limits: &Limits) -> LimitsView {
        let Limits { memory, tensor_memory, wall_ms, cpu_ms, concurrency, output, log, reuse } = limits.clone();
        LimitsView { memory, tensor_memory, wall_ms, cpu_ms, concurrency, output, log, reuse }
    }
}

/// Inputs and outputs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SignatureView {
    /// What a caller passes.
    pub inputs: Vec<TensorView>,
    /// What comes back.
    pub outputs: Vec<TensorView>,
}

/// A declared tensor.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TensorView {
    /// Its name.
    pub name: String,
    /// `FP32`, `INT64`, `BYTES`, ...
    pub datatype: String,
    /// Its dimensions: a number, or the name of one that differs from call to call; none where no rank is declared.
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    pub shape: Option<Vec<Dim>>,
}

impl From<&TensorSpec> for TensorView {
    fn from(spec: &TensorSpec) -> TensorView {
        TensorView { name: spec.name.clone(), datatype: spec.datatype.to_string(), shape: spec.shape.clone() }
    }
}

impl From<&GraphSpec> for SignatureView {
    fn from(spec: &GraphSpec) -> SignatureView {
        SignatureView {
            inputs: spec.inputs.iter().map(TensorView::from).collect(),
            outputs: spec.outputs.iter().map(TensorView::from).collect(),
        }
    }
}

/// A graph and what runs it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GraphView {
    /// sha256 of the ONNX file, hex.
    pub digest: String,
    /// `rten` or `onnxruntime`.
    pub engine: String,
    /// The engine's version.
    pub engine_version: String,
    /// `CPU`, `CUDA`.
    pub provider: String,
    /// Where a GPU was asked for, nodes by the provider that runs them: what `CUDA` does not take runs on the `CPU`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, usize>,
    /// Sessions.
    pub sessions: usize,
    /// Threads of each session.
    pub threads: usize,
    /// `process` where the gateway's own process runs it, `child` where one of its own does.
    pub isolation: String,
    /// Whether the weights are in memory; else the next job waits until they are loaded again.
    pub resident: bool,
    /// How jobs run together.
    pub batching: BatchingView,
    /// What it declares.
    #[serde(flatten)]
    pub signature: SignatureView,
}

/// How jobs of a graph run together, and why so.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchingInForce)]
pub struct BatchingView {
    /// Most rows of one run; with 1, each job runs alone.
    pub max_rows: usize,
    /// How long the oldest job may wait for others, microseconds.
    pub max_delay_us: u64,
    /// Why each job runs alone, where it does.
    pub alone_because: Option<String>,
    /// Whether inputs of different lengths run together, filled up as the manifest says.
    pub padded: bool,
    /// Why they do not, where the manifest says how they could.
    pub unpadded_because: Option<String>,
    /// Engine time by rows of a run, as it was measured when this was deployed.
    pub curve: Vec<CurvePointView>,
}

/// What running a graph with several rows has shown.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Calibration)]
pub struct CalibrationView {
    /// Why each job runs alone; none where rows that ran together gave what each gave alone.
    pub refused: Option<String>,
    /// Why rows of different lengths do not run together although the manifest says how they could.
    pub padding_refused: Option<String>,
    /// Engine time by rows of a run, as far as was measured.
    pub curve: Vec<CurvePointView>,
}

/// One size of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = CurvePoint)]
pub struct CurvePointView {
    /// Rows of the run.
    pub rows: usize,
    /// Engine time of the whole run, microseconds: the shortest of several.
    pub micros: f64,
}

impl From<&Calibration> for CalibrationView {
    fn from(found: &Calibration) -> CalibrationView {
        let curve = found.curve.iter().map(|point| CurvePointView { rows: point.rows, micros: point.micros });
        CalibrationView {
            refused: found.refused.clone(),
            padding_refused: found.padding_refused.clone(),
            curve: curve.collect(),
        }
    }
}

/// The end of a deployment that worked.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeployAnswer {
    /// The model.
    pub name: String,
    /// The version.
    pub version: String,
    /// The revision that it is part of.
    pub revision: u64,
    /// Whether anything changed.
    pub changed: bool,
    /// How the preparation went.
    pub preparation: Preparation,
}

/// What a dry run found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ValidateAnswer {
    /// `model`, `http` or `command`.
    pub kind: String,
    /// sha256 of the module.
    pub module_digest: String,
    /// What it imports.
    pub imports: Vec<ImportView>,
    /// Inputs and outputs.
    pub signature: Option<SignatureView>,
    /// How the preparation went.
    pub preparation: Preparation,
}

/// What a removal did.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteAnswer {
    /// The revision that it made.
    pub revision: u64,
}

/// One line of an answer in `application/x-ndjson`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgressLine<T> {
    /// A stage started or ended.
    Progress(Event),
    /// It worked. The last line.
    Result(T),
    /// It failed. The last line.
    Failed(ErrorBody),
}
