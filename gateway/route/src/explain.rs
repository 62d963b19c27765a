//! Why a decision was what it was: plain data, for people.

use std::fmt;
use std::sync::Arc;

use crate::law::Breach;
use crate::replica::ReplicaId;
use crate::time::Nanos;

/// Why a replica was not asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// The law of the data.
    Law(Breach),
    /// It serves a digest that the deployment does not allow.
    Digest,
    /// Nobody can verify what it serves, and the request asked for that.
    Unverified,
    /// The module was not granted there what it needs.
    Grants,
    /// It does not serve the model now.
    NotReady,
    /// The request came from another gateway: it is answered here or nowhere.
    Forwarded,
    /// It cannot withdraw a job, so it is no place for a hedge.
    KeepsJobs,
    /// This request was there before.
    Tried,
    /// It answered a golden input wrongly.
    Wrong,
    /// It failed too often.
    Ejected {
        /// Until then.
        until: Nanos,
    },
    /// It said when to come back.
    RetryAfter {
        /// Then.
        until: Nanos,
    },
    /// It said when the tenant whose request it is may come back; it may have room for others.
    OverShare {
        /// Then.
        until: Nanos,
    },
    /// It has as many requests as it can take.
    Full {
        /// The adaptive limit.
        limit: u32,
    },
    /// It is cold or has just returned and gets a part of its traffic only.
    Warming {
        /// From 0 to 1.
        share: f64,
    },
}

impl Refusal {
    /// One word for metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Law(_) => "jurisdiction",
            Refusal::Digest => "digest",
            Refusal::Unverified => "unverified",
            Refusal::Grants => "grants",
            Refusal::NotReady => "not_ready",
            Refusal::Forwarded => "forwarded",
            Refusal::KeepsJobs => "keeps_jobs",
            Refusal::Tried => "tried",
            Refusal::Wrong => "wrong",
            Refusal::Ejected { .. } => "ejected",
            Refusal::RetryAfter { .. } => "retry_after",
            Refusal::OverShare { .. } => "over_share",
            Refusal::Full { .. } => "full",
            Refusal::Warming { .. } => "warming",
        }
    }

    /// Whether nothing may be sent there whatever else fails.
    pub fn is_final(self) -> bool {
        !matches!(self, Refusal::Tried | Refusal::Wrong | Refusal::Ejected { .. } | Refusal::Warming { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Law(breach) => write!(f, "jurisdiction: {breach}"),
            Refusal::Digest => f.write_str("it serves a digest that the deployment does not allow"),
            Refusal::Unverified => f.write_str("its digest cannot be verified"),
            Refusal::Grants => f.write_str("the module was granted less there than elsewhere"),
            Refusal::NotReady => f.write_str("it does not serve the model now"),
            Refusal::Forwarded => f.write_str("the request came from another gateway and is not forwarded again"),
            Refusal::KeepsJobs => f.write_str("it cannot withdraw a job, so nothing is hedged there"),
            Refusal::Tried => f.write_str("the request was there before"),
            Refusal::Wrong => f.write_str("it answered a golden input wrongly"),
            Refusal::Ejected { .. } => f.write_str("ejected after failures"),
            Refusal::RetryAfter { .. } => f.write_str("it asked to come back later"),
            Refusal::OverShare { .. } => f.write_str("it asked this tenant to come back later"),
            Refusal::Full { limit } => write!(f, "it has {limit} requests, its limit"),
            Refusal::Warming { share } => write!(f, "warming up: {:.0}% of its traffic", share * 100.0),
        }
    }
}

/// What a decision was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A request's first attempt.
    First,
    /// An attempt after one failed.
    Retry,
    /// An attempt beside one that is late.
    Hedge,
}

/// One replica in a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Considered {
    /// Which.
    pub replica: ReplicaId,
    /// The score, an expected latency in ns, or why it was refused.
    pub verdict: Result<f64, Refusal>,
}

/// How many candidates a kept [`Decision`] shows.
pub const SHOWN: usize = 8;

/// A decision that was taken, as the router keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// When.
    pub at: Nanos,
    /// What for.
    pub purpose: Purpose,
    /// What the request is called, and whose it is, as its [`Call`](crate::Call) says.
    pub request: Option<Arc<str>>,
    pub tenant: Option<Arc<str>>,
    /// Who was asked; `None` when nobody could be.
    pub chosen: Option<ReplicaId>,
    /// True when every healthy replica was out and one was asked all the same.
    pub last_resort: bool,
    /// How many were looked at: of a large fleet some, drawn at random.
    pub candidates: u32,
    /// The first [`SHOWN`] of them.
    pub considered: [Option<Considered>; SHOWN],
}

/// One candidate of an [`Explanation`].
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The site's name.
    pub site: Arc<str>,
    /// The score, an expected latency in ns, or why it was refused.
    pub verdict: Result<f64, Refusal>,
    /// What one request is thought to cost there.
    pub price: f64,
    /// This gateway's requests that are there now.
    pub in_flight: u32,
    /// The adaptive limit of those.
    pub limit: u32,
    /// The 99th percentile of its answers, where there are enough.
    pub p99: Option<Nanos>,
    /// How long a hedge would wait for it.
    pub hedge_delay: Nanos,
}

/// What would happen to a request now, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Every replica of the model.
    pub candidates: Vec<Candidate>,
    /// The index of the one that would be asked; `None` when nobody could be.
    pub chosen: Option<usize>,
    /// True when every healthy replica is out and one would be asked all the same.
    pub last_resort: bool,
}
