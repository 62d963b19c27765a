//! The seam to the host: `wasi:nn` in a module, a stand-in of the same shape in native tests.

#[cfg(target_family = "wasm")]
mod wasm;
#[cfg(target_family = "wasm")]
pub(crate) use wasm::{RawGraph, RawTensor};

#[cfg(not(target_family = "wasm"))]
mod native;
#[cfg(not(target_family = "wasm"))]
pub(crate) use native::{RawGraph, RawTensor, register};
