//! Tensors, graphs and the native engines that run them.
//!
//! This crate has never heard of WebAssembly or HTTP. A caller loads a graph with [`Engines::load`], gets a cheap
//! handle ([`Graph`]) and awaits [`Graph::compute`]. Behind the handle stand a bounded queue and one worker thread
//! per session; runs that are known to be short happen on the caller's own thread.

pub mod backend;
mod batch;
mod calibrate;
mod check;
mod counts;
mod dtype;
mod engines;
mod error;
mod graph;
mod inline;
pub mod onnx;
mod padding;
mod priority;
pub mod process;
mod queue;
mod residency;
mod spec;
mod tensor;
mod turnstile;
mod user;
mod weights;
mod worker;

pub use batch::{BatchPolicy, Released, declared_axis};
pub use calibrate::{Batching, Calibration, CurvePoint, FixedBatching, calibrate};
pub use counts::{GraphCounts, SizeCounts};
pub use dtype::{DataType, Element};
pub use engines::{
    Device, EngineChoice, EngineInfo, Engines, EnginesConfig, GraphOptions, Isolation, OnnxRuntimeLibrary,
};
pub use error::{EngineError, Fault};
pub use graph::{Graph, GraphInfo, Job, Share, default_tenant};
pub use padding::Padding;
pub use residency::{Evict, Held, LastUse, Residency, ResidencyCounts};
pub use spec::{Dim, GraphSpec, TensorSpec};
pub use tensor::{Tensor, TensorError};
pub use turnstile::{Caller, Core, Waits};
pub use weights::Source;
