//! A site: engines behind one queue.

use std::collections::VecDeque;

use windrose_route::{Load, Nanos, Random, Replica};

use crate::rules::Latencies;

/// How a site works.
#[derive(Clone, Debug)]
pub struct Model {
    /// As the fleet describes it. `distance` is the network's true round trip.
    pub replica: Replica,
    /// Inferences at the same time.
    pub parallel: u32,
    /// What an inference takes on average.
    pub service: Nanos,
    /// How uneven inferences are: the sigma of a log-normal distribution.
    pub sigma: f64,
    /// How many may wait; more are refused with 429.
    pub queue: usize,
    /// What a 429 says as `Retry-After`.
    pub retry_after: Option<Nanos>,
    /// How many bytes a second the link carries.
    pub bandwidth: f64,
}

/// A site while it runs.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) model: Model,
    /// Jobs that wait; withdrawn ones are skipped when their turn comes.
    pub(crate) queue: VecDeque<usize>,
    /// Of these, those that were not withdrawn.
    pub(crate) waiting: u32,
    pub(crate) busy: u32,
    /// Requests on their way that the oracle counts.
    pub(crate) coming: u32,
    /// One more after each kill: what ran before is gone.
    pub(crate) epoch: u32,
    /// Until then it is cold after a start, and slower.
    pub(crate) cold_until: Nanos,
    /// Between taking a request and its answer.
    pub(crate) latencies: Latencies,
}

impl Site {
    pub(crate) fn new(model: Model) -> Site {
        Site {
            model,
            queue: VecDeque::new(),
            waiting: 0,
            busy: 0,
            coming: 0,
            epoch: 0,
            cold_until: 0,
            latencies: Latencies::default(),
        }
    }

    /// What this inference takes.
    pub(crate) fn service(&self, random: &mut Random, slower: f64, now: Nanos) -> Nanos {
        let sigma = self.model.sigma;
        let cold = if now < self.cold_until { 3.0 } else { 1.0 };
        let factor = (sigma * normal(random) - sigma * sigma / 2.0).exp();
        (self.model.service as f64 * factor * slower * cold) as Nanos
    }

    /// What a request that comes now takes.
    pub(crate) fn latency(&self) -> Nanos {
        self.latencies.of(self.waiting + self.busy).unwrap_or(self.model.service)
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            in_flight: self.waiting + self.busy,
            queued: self.waiting,
            parallel: self.model.parallel,
            engine_time: self.model.service,
        }
    }

    /// When a request that is sent now is expected to be done, as one who sees everything knows.
    pub(crate) fn completion(&self, slower: f64) -> f64 {
        let ahead = f64::from(self.waiting + self.coming + self.busy);
        let parallel = f64::from(self.model.parallel);
        let service = self.model.service as f64 * slower;
        let wait = ((ahead - parallel + 1.0).max(0.0) / parallel) * service;
        self.model.replica.distance as f64 + service + wait
    }
}

/// A standard normal number.
pub fn normal(random: &mut Random) -> f64 {
    let (u, v) = (random.share().max(1e-12), random.share());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// An exponential number of this mean.
pub fn exponential(random: &mut Random, mean: f64) -> f64 {
    -random.share().max(1e-12).ln() * mean
}
