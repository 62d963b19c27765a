//! What one call may use, and what a module was granted.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net;

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
    /// What both grant. A host of the ceiling without a port allows each port of it.
    pub fn min(&self, ceiling: &Grants) -> Grants {
        self.within(ceiling, &[])
    }

    /// As [`Grants::min`], where the gateway's own listeners are `closed`: of them it grants what the ceiling itself names
    /// by address and port.
    pub fn within(&self, ceiling: &Grants, closed: &[SocketAddr]) -> Grants {
        let allowed = |asked: &&String| ceiling.network.iter().any(|most| net::covers(most, asked, closed));
        let network = self.network.iter().filter(allowed).cloned().collect();
        Grants { network, load: self.load && ceiling.load }
    }

    /// Whether anything that acts outside was granted. A module that was granted nothing of the kind has no side effects.
    pub fn acts_outside(&self) -> bool {
        !self.network.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_grant_holds() {
        let grants = |network: &[&str]| Grants { network: network.iter().map(|h| (*h).into()).collect(), load: false };
        let closed = ["127.0.0.1:8001".parse().unwrap(), "0.0.0.0:8000".parse().unwrap(), "[::]:8002".parse().unwrap()];
        let cases = [
            ("example.com", "example.com:80", true),
            ("example.com", "EXAMPLE.com", true),
            ("Example.com.", "example.COM:443", true),
            ("example.com:443", "Example.com:443", true),
            ("example.com:443", "example.com:80", false),
            ("example.com:443", "example.com", false),
            ("example.com", "sub.example.com", false),
            ("example.com", "example.com.evil.org", false),
            ("example.com", "example.com:99999", false),
            ("127.0.0.1", "127.0.0.1:18899", true),
            ("127.0.0.1", "127.0.0.2:18899", false),
            ("::1", "[::1]:9000", true),
            ("[::1]", "::1", true),
            ("::ffff:127.0.0.1", "127.0.0.1:18899", true),
            // The gateway's own.
            ("127.0.0.1", "127.0.0.1:8001", false),
            ("127.0.0.1", "127.0.0.1:8000", false),
            ("::1", "[::1]:8002", false),
            ("127.0.0.1", "[::ffff:127.0.0.1]:8001", false),
            ("127.0.0.1:8001", "127.0.0.1:8001", true),
            ("127.0.0.1", "127.0.0.1", true),
        ];
        for (ceiling, asked, granted) in cases {
            let both = grants(&[asked]).within(&grants(&["other.example", ceiling]), &closed);
            assert_eq!(both.network, if granted { vec![asked] } else { vec![] }, "{asked} under {ceiling}");
        }
    }
}
