//! Replicas: one model as one site serves it.

use std::sync::Arc;

use crate::law::Jurisdiction;
use crate::time::Nanos;

/// Where a replica is. Everything here comes from the fleet file, never from the site itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The name, such as `aws/eu-west-1`. Unique in a fleet.
    pub name: Arc<str>,
    /// The cloud, such as `aws`.
    pub cloud: Arc<str>,
    /// The region, such as `eu-west-1`.
    pub region: Arc<str>,
    /// Whose law holds there; `None` where nobody said, which no rule permits.
    pub jurisdiction: Option<Jurisdiction>,
    /// What it costs.
    pub price: Price,
}

/// What a site charges, in any one currency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// For a second of engine time.
    pub engine_second: f64,
    /// For a request.
    pub request: f64,
    /// For each GB (10⁹ bytes) that leaves.
    pub gigabyte: f64,
}

impl Price {
    /// What one request costs that holds an engine for `engine` and has `bytes` sent back.
    pub fn of(&self, engine: Nanos, bytes: u64) -> f64 {
        self.request + self.engine_second * engine as f64 * 1e-9 + self.gigabyte * bytes as f64 * 1e-9
    }
}

/// What answers there, as far as it matters for trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nature {
    /// This gateway's own sandbox.
    Local,
    /// Another Windrose gateway: a request that was cancelled leaves its queue before it runs.
    Peer,
    /// Any other server: what was sent runs, whether or not anybody waits.
    Foreign,
}

impl Nature {
    /// Whether a job that waits can be withdrawn.
    pub fn withdraws(self) -> bool {
        !matches!(self, Nature::Foreign)
    }
}

/// What identifies exactly what runs: module and graphs together.
pub type Digest = [u8; 32];

/// What a replica serves under the model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Serves {
    /// Nothing now: it is not ready, or nobody knows.
    Nothing,
    /// This digest, as the peer reported over its proven connection.
    Digest(Digest),
    /// A foreign server: the fleet file names the model for it, and nobody can verify what runs.
    Unverified,
    /// A foreign server, of which nobody can say yet what law binds what it would be sent.
    Unheard,
}

/// What a site's operator lets modules do, or what a module needs: one bit for each grant, whose meaning is the
/// caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants(pub u64);

impl Grants {
    /// No grant.
    pub const NONE: Grants = Grants(0);

    /// Whether everything in `needed` is here.
    pub fn cover(self, needed: Grants) -> bool {
        needed.0 & !self.0 == 0
    }
}

/// A replica as the fleet describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Where.
    pub site: Arc<Site>,
    /// What kind of server.
    pub nature: Nature,
    /// What is ready there now.
    pub serves: Serves,
    /// The ceiling of grants there. A foreign server has none.
    pub grants: Grants,
    /// The network's round trip from here, measured or guessed; what the score starts from before anything was observed.
    pub distance: Nanos,
    /// The share of traffic under [`Policy::Weights`](crate::Policy); relative to the others'.
    pub weight: u32,
}

/// What a replica says about its load, on an answer or to a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that it works on, waiting ones included.
    pub in_flight: u32,
    /// Of these, how many wait for an engine.
    pub queued: u32,
    /// How many it runs at the same time; 0 where it did not say.
    pub parallel: u32,
    /// Engine time of one request, on average; 0 where it did not say.
    pub engine_time: Nanos,
}

/// A replica's handle in its [`Router`](crate::Router). It outlives changes of the fleet; once the replica has left, it
/// names nothing, and never another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_adds_up() {
        let price = Price { engine_second: 2.0, request: 0.5, gigabyte: 4.0 };
        assert!((price.of(250_000_000, 500_000_000) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn grants_cover_what_they_hold() {
        assert!(Grants(0b110).cover(Grants(0b010)));
        assert!(Grants(0b110).cover(Grants::NONE));
        assert!(!Grants(0b110).cover(Grants(0b001)));
        assert!(!Nature::Foreign.withdraws());
    }
}
