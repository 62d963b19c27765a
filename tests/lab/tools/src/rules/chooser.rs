//! Who chooses: a rule of the simulator, or the router of the gateway.

use std::sync::Arc;

use windrose_route::{
    Action, AttemptId, Attempts, Call, Digest, Event, Grants, Hedging, Load, MILLISECOND, Nanos, Nature, Price, Random,
    Replica, ReplicaId, Router, Serves, Settings, Site,
};
use windrose_route_sim::rules::{Known, Latencies, Rule};

/// What every replica serves, as far as the router is concerned.
const DIGEST: Digest = [1; 32];
/// The network's round trip as the fleet file of the tests has it.
const DISTANCE: Nanos = MILLISECOND;

/// One who chooses, and what it has seen.
pub struct Chooser {
    brain: Brain,
    random: Random,
    known: Vec<Known>,
    /// By replica: what answers took, which a probe's answer does not say by itself.
    latencies: Vec<Latencies>,
}

enum Brain {
    Rule(Box<dyn Rule>),
    Windrose(Box<Router>, Vec<ReplicaId>),
}

/// A request that has a replica.
pub struct Chosen {
    /// Its index.
    pub replica: usize,
    at: Nanos,
    attempts: Option<Box<Attempts>>,
}

// === impl Chooser ===

impl Chooser {
    /// A rule of the simulator, over so many replicas.
    pub fn rule(rule: Box<dyn Rule>, replicas: usize, seed: u64) -> Chooser {
        Chooser::new(Brain::Rule(rule), replicas, seed)
    }

    /// The gateway's router over so many replicas. Each request has one attempt, as with the other rules: what retries
    /// and hedges add is another question.
    pub fn windrose(replicas: usize, seed: u64) -> Chooser {
        let settings = Settings { digests: vec![DIGEST], attempts: 1, ..Settings::default() };
        let mut router = Router::new(settings, Random::seeded(seed));
        router.update((0..replicas).map(replica).collect(), 0);
        let ids = router.ids().collect();
        Chooser::new(Brain::Windrose(Box::new(router), ids), replicas, seed)
    }

    fn new(brain: Brain, replicas: usize, seed: u64) -> Chooser {
        Chooser {
            brain,
            random: Random::seeded(seed),
            known: vec![Known { distance: DISTANCE }; replicas],
            latencies: vec![Latencies::default(); replicas],
        }
    }

    /// Whom to ask; `None` where nobody is to be asked.
    pub fn choose(&mut self, deadline: Nanos, now: Nanos) -> Option<Chosen> {
        match &mut self.brain {
            Brain::Rule(rule) => {
                let replica = rule.choose(&self.known, &mut self.random, now);
                rule.sent(replica);
                Some(Chosen { replica, at: now, attempts: None })
            }
            Brain::Windrose(router, ids) => {
                let call = Call { hedging: Hedging::Never, ..Call::until(deadline) };
                let mut attempts = Box::new(Attempts::new(call));
                let Action::Send { replica: id, .. } = attempts.poll(router, now) else { return None };
                let replica = ids.iter().position(|one| *one == id)?;
                Some(Chosen { replica, at: now, attempts: Some(attempts) })
            }
        }
    }

    /// What became of a request, and the load that its answer told.
    pub fn ended(&mut self, chosen: Chosen, event: Event, load: Option<Load>, now: Nanos) {
        let (replica, took) = (chosen.replica, now - chosen.at);
        if let (Event::Whole { .. }, Some(load)) = (event, load) {
            self.latencies[replica].took(load.in_flight, took);
        }
        match &mut self.brain {
            Brain::Rule(rule) => rule.answered(replica, took, now),
            Brain::Windrose(router, ids) => {
                if let Some(load) = load {
                    router.report(ids[replica], load, now);
                }
                let Some(mut attempts) = chosen.attempts else { return };
                attempts.on(router, AttemptId(0), event, now);
                while !matches!(attempts.poll(router, now), Action::Done | Action::Wait { .. }) {}
            }
        }
    }

    /// Replicas to probe beside a request.
    pub fn probes(&mut self) -> Vec<usize> {
        match &mut self.brain {
            Brain::Rule(rule) => rule.probes(self.known.len(), &mut self.random),
            Brain::Windrose(..) => Vec::new(),
        }
    }

    /// A probe's answer.
    pub fn probed(&mut self, replica: usize, load: Load, now: Nanos) {
        let latency = self.latencies[replica].of(load.in_flight).unwrap_or(load.engine_time);
        if let Brain::Rule(rule) = &mut self.brain {
            rule.probed(replica, load.in_flight, latency, now);
        }
    }
}

fn replica(index: usize) -> Replica {
    let site = Site {
        name: index.to_string().into(),
        cloud: "lab".into(),
        region: "lab".into(),
        jurisdiction: None,
        price: Price::default(),
    };
    Replica {
        site: Arc::new(site),
        nature: Nature::Peer,
        serves: Serves::Digest(DIGEST),
        grants: Grants::NONE,
        distance: DISTANCE,
        weight: 1,
    }
}

#[cfg(test)]
mod tests {
    use windrose_route::Verdict;
    use windrose_route_sim::rules::RULES;

    use super::*;

    /// All who are compared, over two replicas.
    fn all() -> Vec<Chooser> {
        let rules = RULES.into_iter().map(|(_, make)| Chooser::rule(make(), 2, 7));
        rules.chain([Chooser::windrose(2, 7)]).collect()
    }

    #[test]
    fn whatever_becomes_of_requests_somebody_is_asked() {
        let load = Load { in_flight: 1, queued: 0, parallel: 1, engine_time: MILLISECOND };
        let failed = Event::Head(Verdict::Failed);
        let overloaded = Event::Head(Verdict::Overloaded { until: None });
        for mut chooser in all() {
            for round in 0..400u64 {
                let now = round * 100 * MILLISECOND;
                let Some(chosen) = chooser.choose(now + MILLISECOND, now) else { panic!("nobody in round {round}") };
                let ends = [Event::Whole { bytes: 10 }, failed, Event::TimedOut, overloaded, Event::Reset];
                chooser.ended(chosen, ends[round as usize % ends.len()], Some(load), now + MILLISECOND);
                for replica in chooser.probes() {
                    chooser.probed(replica, load, now + MILLISECOND);
                }
            }
        }
    }

    #[test]
    fn whoever_looks_at_answers_turns_to_the_quicker_replica() {
        for (index, mut chooser) in all().into_iter().enumerate().skip(2) {
            let mut quick = 0;
            for round in 0..1_000u64 {
                let now = round * 10 * MILLISECOND;
                let chosen = chooser.choose(now + 1_000 * MILLISECOND, now).unwrap();
                let slow = chosen.replica == 1;
                quick += u32::from(!slow);
                let took = if slow { 9 } else { 2 } * MILLISECOND;
                let load = Load { in_flight: 0, queued: 0, parallel: 1, engine_time: took };
                chooser.ended(chosen, Event::Whole { bytes: 10 }, Some(load), now + took);
                for replica in chooser.probes() {
                    chooser.probed(replica, load, now + took);
                }
            }
            assert!(quick > 600, "rule {index}: {quick} of 1000");
        }
    }
}
