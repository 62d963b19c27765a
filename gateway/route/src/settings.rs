//! What a router can be told. The defaults are meant to be left alone.

use crate::replica::{Digest, Grants};
use crate::time::{MILLISECOND, Nanos, SECOND};

/// Which of the replicas that may answer should.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Policy {
    /// The least expected latency; among equals the cheapest.
    #[default]
    Fastest,
    /// The cheapest of those whose 99th percentile keeps within `p99`; the fastest where none does.
    Cheapest {
        /// The objective.
        p99: Nanos,
    },
    /// This gateway while it can; else the fastest.
    LocalFirst,
    /// Shares of traffic in proportion to [`Replica::weight`](crate::Replica). One of weight 0 answers only when no
    /// other can.
    Weights,
}

/// A router's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How a replica is chosen.
    pub policy: Policy,
    /// The digests that the deployment allows. Empty allows none: only foreign servers, that the fleet file names.
    pub digests: Vec<Digest>,
    /// What the model's module must have been granted where it runs: what it was granted anywhere.
    pub needs: Grants,
    /// The most attempts for one request, the first among them: 1 to [`MAX_ATTEMPTS`](crate::MAX_ATTEMPTS).
    pub attempts: u8,
    /// Retries, as a share of requests.
    pub retries: f64,
    /// Hedges, as a share of requests.
    pub hedges: f64,
    /// How long an outage both budgets carry at once, whatever the shares.
    pub reserve: Nanos,
    /// The share of a replica's own answers within which an answer is not late: after that long a hedge leaves.
    pub late: f64,
    /// The shortest and the longest wait before a hedge.
    pub hedge_delay: (Nanos, Nanos),
    /// Failures in a row that eject.
    pub failures: f64,
    /// How long the first ejection lasts, and the longest one.
    pub ejection: (Nanos, Nanos),
    /// How long a cold or returning replica takes to its full share.
    pub slow_start: Nanos,
    /// What a request is thought to cost beyond the network before anything was observed.
    pub service: Nanos,
    /// The longest `Retry-After` that is believed.
    pub retry_after: Nanos,
    /// The least and the most requests that a replica's adaptive limit lets through at the same time.
    pub concurrency: (u32, u32),
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            policy: Policy::Fastest,
            digests: Vec::new(),
            needs: Grants::NONE,
            attempts: 5,
            retries: 0.1,
            hedges: 0.03,
            reserve: 300 * MILLISECOND,
            late: 0.98,
            hedge_delay: (MILLISECOND, 2 * SECOND),
            failures: 3.0,
            ejection: (250 * MILLISECOND, 800 * MILLISECOND),
            slow_start: 800 * MILLISECOND,
            service: 10 * MILLISECOND,
            retry_after: 30 * SECOND,
            concurrency: (4, 16_384),
        }
    }
}
