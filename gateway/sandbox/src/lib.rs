//! The sandbox: WebAssembly modules, their instances, their limits and our own `wasi:nn` host.
//!
//! A [`Sandbox`] compiles (or takes from its authenticated cache) a [`Module`]; a module bound to the graphs, assets,
//! limits and grants of one model is a [`Program`]; every call of a program runs in a fresh instance, unless the
//! model asked for instances that answer several requests of one tenant. This crate knows `wasi:http` as an interface of
//! guests, and nothing of listeners or of the protocols that the gateway speaks.

mod cache;
mod code;
mod command;
mod engine;
mod error;
mod exchange;
mod files;
mod imports;
mod infer;
mod initialise;
mod kept;
mod limits;
mod module;
mod names;
mod net;
mod nn;
mod output;
mod program;
mod sockets;
mod stage;
mod state;
mod ticker;
mod value;
mod words;

pub use cache::Ages;
pub use error::{CallError, Limit, ModuleError};
pub use initialise::Initialised;
pub use limits::{Grants, Limits};
pub use module::{Import, ImportStatus, Module, ModuleKind, PoolMetrics, Sandbox, SandboxConfig};
pub use program::{CallContext, CommandOutput, HttpBody, Program, ProgramConfig};
pub use value::{Description, InferRequest, InferResponse, Parameter};

/// The module of a graph that was deployed without one: it names the graph `model`, hands its inputs to it and returns
/// what it computes.
pub const PASSTHROUGH: &[u8] = include_bytes!("../passthrough/passthrough.wasm");
