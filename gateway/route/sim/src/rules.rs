//! Other rules of choice, to compare with: each sends a request once and has no failover.

use windrose_route::{MILLISECOND, Nanos, Random, SECOND};

/// What a rule may know about one replica before it was asked anything.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The network's round trip.
    pub distance: Nanos,
}

/// A rule that one gateway uses.
pub trait Rule {
    /// Whom to ask: an index into `replicas`.
    fn choose(&mut self, replicas: &[Known], random: &mut Random, now: Nanos) -> usize;

    /// A request went to this replica.
    fn sent(&mut self, _replica: usize) {}

    /// It answered after so long.
    fn answered(&mut self, _replica: usize, _took: Nanos, _now: Nanos) {}

    /// Replicas to probe beside this request.
    fn probes(&mut self, _replicas: usize, _random: &mut Random) -> Vec<usize> {
        Vec::new()
    }

    /// A probe's answer: requests in flight there, and what one takes there of late.
    fn probed(&mut self, _replica: usize, _in_flight: u32, _latency: Nanos, _now: Nanos) {}
}

/// Makes a rule that knows nothing yet.
pub type Make = fn() -> Box<dyn Rule>;

/// The rules by name, in the order of the tables.
pub const RULES: [(&str, Make); 4] = [
    ("round robin", || Box::<RoundRobin>::default()),
    ("least in flight", || Box::<LeastInFlight>::default()),
    ("peak EWMA, two choices", || Box::<PeakEwma>::default()),
    ("Prequal-like", || Box::<Prequal>::default()),
];

/// What requests take at a replica, by how many others each found there: what a probe tells as the latency.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// Averages in ns, by that number; 0 before the first.
    by_others: Vec<f64>,
}

impl Latencies {
    /// A request that found so many others took so long.
    pub fn took(&mut self, others: u32, took: Nanos) {
        let others = others as usize;
        if self.by_others.len() <= others {
            self.by_others.resize(others + 1, 0.0);
        }
        let known = &mut self.by_others[others];
        *known += (took as f64 - *known) * if *known == 0.0 { 1.0 } else { 0.1 };
    }

    /// What a request takes that finds so many others, by those that found as many, or nearly; `None` before the first.
    pub fn of(&self, others: u32) -> Option<Nanos> {
        let others = others as usize;
        let below = self.by_others.iter().take(others + 1).rev();
        let above = self.by_others.iter().skip(others + 1);
        below.chain(above).find(|known| **known > 0.0).map(|known| *known as Nanos)
    }
}

/// One after the other.
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: usize,
}

impl Rule for RoundRobin {
    fn choose(&mut self, replicas: &[Known], _: &mut Random, _: Nanos) -> usize {
        self.next = (self.next + 1) % replicas.len();
        self.next
    }
}

/// The fewest requests of this gateway in flight; chance among equals.
#[derive(Debug, Default)]
pub struct LeastInFlight {
    in_flight: Vec<u32>,
}

impl Rule for LeastInFlight {
    fn choose(&mut self, replicas: &[Known], random: &mut Random, _: Nanos) -> usize {
        self.in_flight.resize(replicas.len(), 0);
        let start = random.below(replicas.len());
        let turned = (0..replicas.len()).map(|n| (n + start) % replicas.len());
        turned.min_by_key(|index| self.in_flight[*index]).unwrap_or(0)
    }

    fn sent(&mut self, replica: usize) {
        self.in_flight[replica] += 1;
    }

    fn answered(&mut self, replica: usize, _: Nanos, _: Nanos) {
        self.in_flight[replica] -= 1;
    }
}

/// Two at random; the one whose peak EWMA times requests in flight is less.
#[derive(Debug, Default)]
pub struct PeakEwma {
    seen: Vec<(f64, Nanos, u32)>,
}

impl PeakEwma {
    /// Over what time the average forgets.
    const WINDOW: f64 = 10.0 * SECOND as f64;

    fn cost(&self, index: usize, known: Known, now: Nanos) -> f64 {
        let (average, at, in_flight) = self.seen[index];
        let decayed = average * (-(now.saturating_sub(at) as f64) / PeakEwma::WINDOW).exp();
        decayed.max(known.distance as f64) * (f64::from(in_flight) + 1.0)
    }
}

impl Rule for PeakEwma {
    fn choose(&mut self, replicas: &[Known], random: &mut Random, now: Nanos) -> usize {
        self.seen.resize(replicas.len(), (0.0, 0, 0));
        let (one, other) = (random.below(replicas.len()), random.below(replicas.len()));
        let cost = |index: usize| self.cost(index, replicas[index], now);
        if cost(one) <= cost(other) { one } else { other }
    }

    fn sent(&mut self, replica: usize) {
        self.seen[replica].2 += 1;
    }

    fn answered(&mut self, replica: usize, took: Nanos, now: Nanos) {
        let (average, at, in_flight) = &mut self.seen[replica];
        let weight = (-(now.saturating_sub(*at) as f64) / PeakEwma::WINDOW).exp();
        *average = (took as f64).max(*average * weight + took as f64 * (1.0 - weight));
        (*at, *in_flight) = (now, in_flight.saturating_sub(1));
    }
}

/// After Prequal: a pool of probes; of the cold ones the quickest, and when all are hot the one with the fewest in
/// flight. Hot is above a quantile of the pool's requests in flight.
#[derive(Debug)]
pub struct Prequal {
    pool: Vec<Probed>,
    /// The quantile above which a replica is hot.
    hot: f64,
    worst_next: bool,
}

#[derive(Clone, Copy, Debug)]
struct Probed {
    replica: usize,
    in_flight: u32,
    latency: Nanos,
    at: Nanos,
    uses: u32,
}

impl Prequal {
    const POOL: usize = 16;
    const PROBES: usize = 3;
    const USES: u32 = 2;
    const AGE: Nanos = SECOND;
}

impl Default for Prequal {
    fn default() -> Prequal {
        Prequal { pool: Vec::new(), hot: 0.84, worst_next: false }
    }
}

impl Rule for Prequal {
    fn choose(&mut self, replicas: &[Known], random: &mut Random, now: Nanos) -> usize {
        self.pool.retain(|probed| now.saturating_sub(probed.at) < Prequal::AGE && probed.uses < Prequal::USES);
        if self.pool.len() < 2 {
            return random.below(replicas.len());
        }
        let mut loads: Vec<u32> = self.pool.iter().map(|probed| probed.in_flight).collect();
        loads.sort_unstable();
        let limit = loads[((loads.len() - 1) as f64 * self.hot) as usize];
        let latency = |probed: &Probed| probed.latency + replicas[probed.replica].distance;
        let cold = self.pool.iter_mut().filter(|probed| probed.in_flight < limit).min_by_key(|probed| latency(probed));
        let chosen = match cold {
            Some(cold) => Some(cold),
            None => self.pool.iter_mut().min_by_key(|probed| (probed.in_flight, latency(probed))),
        };
        let replica = chosen.map(|probed| {
            // What was just sent there counts before the next probe tells.
            (probed.uses, probed.in_flight) = (probed.uses + 1, probed.in_flight + 1);
            probed.replica
        });
        replica.unwrap_or(0)
    }

    fn probes(&mut self, replicas: usize, random: &mut Random) -> Vec<usize> {
        (0..Prequal::PROBES).map(|_| random.below(replicas)).collect()
    }

    fn probed(&mut self, replica: usize, in_flight: u32, latency: Nanos, now: Nanos) {
        if self.pool.len() >= Prequal::POOL {
            // The worst and the oldest leave in turn, or the pool would keep what is bad.
            let worst = self.pool.iter().enumerate().max_by_key(|(_, one)| (one.in_flight, one.latency));
            let oldest = self.pool.iter().enumerate().min_by_key(|(_, one)| one.at);
            let out = if self.worst_next { worst } else { oldest }.map(|(index, _)| index);
            self.worst_next = !self.worst_next;
            self.pool.swap_remove(out.unwrap_or(0));
        }
        let latency = latency.max(MILLISECOND / 100);
        self.pool.push(Probed { replica, in_flight, latency, at: now, uses: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_that_of_as_many_others_or_nearly() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.of(0), None);
        latencies.took(2, 20);
        latencies.took(4, 40);
        assert_eq!([0, 2, 3, 4, 9].map(|others| latencies.of(others)), [20, 20, 20, 40, 40].map(Some));
        latencies.took(4, 50);
        assert_eq!(latencies.of(4), Some(41));
    }
}
