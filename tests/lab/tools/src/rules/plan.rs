//! What is asked, and when: the same for every rule.

use std::time::Duration;

use windrose_route::{Nanos, Random};
use windrose_route_sim::scenario::{CROWD, Spread};
use windrose_route_sim::{exponential, normal};

/// How uneven inferences are: the sigma of a log-normal distribution, as in the simulator.
const SIGMA: f64 = 0.5;

/// What a plan is made of.
#[derive(Clone, Debug)]
pub struct Load {
    /// How unlike each other the replicas are.
    pub spread: Spread,
    /// How many there are.
    pub replicas: usize,
    /// What they were seen to answer together when each always had something to do, requests a second.
    pub capacity: f64,
    /// How often the graph loops in a request on average.
    pub loops: f64,
    /// For how long requests leave.
    pub seconds: f64,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When, from the beginning.
    pub at: Duration,
    /// How often the graph loops.
    pub loops: u64,
    /// The replica that somebody else asks, whom no rule sees; `None` for a request of ours.
    pub others: Option<usize>,
}

impl Load {
    /// The requests of ours and of others, in the order in which they leave.
    pub fn arrivals(&self, seed: u64) -> Vec<Arrival> {
        let mut random = Random::seeded(seed);
        let until = (self.seconds * 1e9) as Nanos;
        let rate = self.capacity * self.spread.load();
        let mut arrivals = self.stretch((0, until), rate, None, &mut random);
        if self.spread == Spread::Antagonised {
            // Replicas that others come to are alike.
            let rate = self.capacity / self.replicas as f64 * CROWD;
            for (replica, stretch) in self.crowds(until, &mut random) {
                arrivals.extend(self.stretch(stretch, rate, Some(replica), &mut random));
            }
        }
        arrivals.sort_by_key(|arrival| arrival.at);
        arrivals
    }

    /// Where others are, and from when to when: always at one replica, for one to three seconds, and then at another. Were
    /// they at several of so few, nothing would be left to choose.
    fn crowds(&self, until: Nanos, random: &mut Random) -> Vec<(usize, (Nanos, Nanos))> {
        let mut crowds = Vec::new();
        let (mut replica, mut from) = (0, 0);
        while from < until {
            let others = self.replicas.saturating_sub(1).max(1);
            replica = (replica + 1 + (random.share() * others as f64) as usize) % self.replicas;
            let to = from + 1_000_000_000 + (random.share() * 2e9) as Nanos;
            crowds.push((replica, (from, to.min(until))));
            from = to;
        }
        crowds
    }

    /// Requests at a rate, independent of each other.
    fn stretch(
        &self,
        (from, to): (Nanos, Nanos),
        rate: f64,
        others: Option<usize>,
        random: &mut Random,
    ) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let mut at = from;
        loop {
            at += exponential(random, 1e9 / rate) as Nanos;
            if at >= to {
                return arrivals;
            }
            arrivals.push(Arrival { at: Duration::from_nanos(at), loops: loops(self.loops, random), others });
        }
    }
}

/// How often the graph loops in one request, where it does so many times on average.
pub fn loops(mean: f64, random: &mut Random) -> u64 {
    (mean * (SIGMA * normal(random) - SIGMA * SIGMA / 2.0).exp()).max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(spread: Spread) -> Load {
        Load { spread, replicas: 2, capacity: 400.0, loops: 1_000.0, seconds: 60.0 }
    }

    #[test]
    fn requests_keep_the_rate_and_the_mean() {
        let arrivals = load(Spread::Even).arrivals(1);
        assert_eq!(arrivals, load(Spread::Even).arrivals(1));
        assert_ne!(arrivals, load(Spread::Even).arrivals(2));
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at) && arrivals.iter().all(|one| one.others.is_none()));
        let rate = arrivals.len() as f64 / 60.0;
        assert!((rate - 280.0).abs() < 10.0, "{rate}");
        let mean = arrivals.iter().map(|one| one.loops as f64).sum::<f64>() / arrivals.len() as f64;
        assert!((mean - 1_000.0).abs() < 25.0, "{mean}");
    }

    #[test]
    fn others_come_for_a_while_and_take_most_of_one_replica() {
        let arrivals = load(Spread::Antagonised).arrivals(1);
        let ours = arrivals.iter().filter(|one| one.others.is_none()).count() as f64 / 60.0;
        assert!((ours - 240.0).abs() < 10.0, "{ours}");
        let crowds: Vec<&Arrival> = arrivals.iter().filter(|one| one.others.is_some()).collect();
        let rate = crowds.len() as f64 / 60.0 / 200.0;
        assert!((rate - CROWD).abs() < 0.1, "{rate} of one replica's capacity");
        let moves = crowds.windows(2).filter(|pair| pair[0].others != pair[1].others).count();
        assert!((20..=60).contains(&moves), "{moves} moves in a minute");
    }
}
