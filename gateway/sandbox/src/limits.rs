//! What one call may use, and what a module was granted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one call of a model may use. Every field has a default; the operator's ceiling and the manifest's wish are
/// both of this type, and the smaller of each field holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory of an instance, bytes.
    pub memory: u64,
    /// Tensor bytes that the host holds for one call, inputs and outputs included.
    pub tensor_memory: u64,
    /// Wall time of one call, milliseconds.
    pub wall_ms: u64,
    /// CPU time of the guest in one call, milliseconds; the engine's time is not counted.
    pub cpu_ms: u64,
    /// Calls at the same time.
    pub concurrency: u32,
    /// Bytes of one answer.
    pub output: u64,
    /// Bytes that one call may write to its standard output and error.
    pub log: u64,
    /// Requests that one instance may answer, of one tenant and one after the other; 1 is a fresh instance for each.
    pub reuse: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory: 256 << 20,
            tensor_memory: 256 << 20,
            wall_ms: 30_000,
            cpu_ms: 10_000,
            concurrency: 64,
            output: 64 << 20,
            log: 64 << 10,
            reuse: 1,
        }
    }
}

impl Limits {
    /// The smaller of each field.
    pub fn min(&self, ceiling: &Limits) -> Limits {
        Limits {
            memory: self.memory.min(ceiling.memory),
            tensor_memory: self.tensor_memory.min(ceiling.tensor_memory),
            wall_ms: self.wall_ms.min(ceiling.wall_ms),
            cpu_ms: self.cpu_ms.min(ceiling.cpu_ms),
            concurrency: self.concurrency.min(ceiling.concurrency),
            output: self.output.min(ceiling.output),
            log: self.log.min(ceiling.log),
            reuse: self.reuse.min(ceiling.reuse),
        }
    }

    /// Wall time of one call.
    pub fn wall(&self) -> Duration {
        Duration::from_millis(self.wall_ms)
    }
}

/// What a module was granted. The default grants nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// Hosts that the module may reach, as `host` or `host:port`; an address literal opens that very address, private
    /// ones included.
    pub network: Vec<String>,
    /// Whether `wasi:nn` `load` of arbitrary bytes is allowed.
    pub load: bool,
}

impl Grants {
    /// Whether anything that acts outside was granted. A module that was granted nothing of the kind has no side effects.
    pub fn acts_outside(&self) -> bool {
        !self.network.is_empty()
    }
}
