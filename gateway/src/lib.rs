//! Windrose: an HTTP gateway that serves machine-learning models from sandboxed WebAssembly modules.
//!
//! ARCHITECTURE.md of the project tells the life of a request and what must stay true.

pub mod admit;
pub mod cli;
pub mod config;
pub mod control;
pub mod dispatch;
pub mod error;
pub mod fleet;
pub mod http;
pub mod request;
pub mod serve;
pub mod snapshot;
pub mod telemetry;
