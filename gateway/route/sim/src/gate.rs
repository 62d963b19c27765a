//! A gateway: what it does with requests, and how it drives the machine.

use std::sync::Arc;
use std::time::Instant;

use windrose_route::{
    Action, AttemptId, Attempts, Call, Event as Fate, MAX_ATTEMPTS, NEVER, Nanos, Probe, Random, Reason, ReplicaId,
    Router, Rules, SECOND, Verdict,
};

use crate::event::Event;
use crate::record::Outcome;
use crate::rules::{Known, Rule};
use crate::site::exponential;
use crate::world::{Brain, Owner, Place, Plan, World};

/// How long a probe may take.
const PROBE: Nanos = SECOND;

/// One gateway.
pub(crate) struct Gate {
    pub(crate) router: Router,
    pub(crate) rule: Option<Box<dyn Rule>>,
    /// Handles by the index of the site.
    ids: Vec<ReplicaId>,
    known: Vec<Known>,
    random: Random,
}

/// One client's request.
pub(crate) struct Request {
    gateway: usize,
    at: Nanos,
    /// `None` once everything is over, and for other rules.
    attempts: Option<Box<Attempts>>,
    jobs: [usize; MAX_ATTEMPTS],
    rules: Arc<Rules>,
    timer: Nanos,
    repeatable: bool,
    told: bool,
    wrong: bool,
}

impl Gate {
    pub(crate) fn new(plan: &Plan, seed: u64) -> Gate {
        let mut router = Router::new(plan.settings.clone(), Random::seeded(seed));
        router.update(plan.sites.iter().map(|model| model.replica.clone()).collect(), 0);
        let rule = match plan.brain {
            Brain::Rule(make) => Some(make()),
            Brain::Windrose | Brain::Oracle => None,
        };
        Gate {
            ids: router.ids().collect(),
            known: plan.sites.iter().map(|model| Known { distance: model.replica.distance }).collect(),
            router,
            rule,
            random: Random::seeded(seed ^ 0x5eed),
        }
    }
}

impl World {
    pub(crate) fn arrive(&mut self, gateway: usize) {
        if self.now >= self.plan.until {
            return;
        }
        let surge = |surge: &&(Nanos, Nanos, f64)| (surge.0..surge.1).contains(&self.now);
        let factor = self.plan.surges.iter().find(surge).map_or(1.0, |surge| surge.2);
        let after = exponential(&mut self.random, SECOND as f64 / (self.plan.rate * factor));
        self.agenda.put(self.now + after as Nanos, Event::Arrive { gateway });
        self.record.asked += 1;
        let request = self.requests.len();
        let rules = match self.plan.rules.len() {
            0 => Arc::default(),
            count => Arc::clone(&self.plan.rules[self.random.below(count)]),
        };
        let repeatable = self.plan.once == 0.0 || self.random.share() >= self.plan.once;
        let deadline = self.now + self.plan.patience;
        let call = Call { rules: Arc::clone(&rules), repeatable, hedging: self.plan.hedging, ..Call::until(deadline) };
        let windrose = matches!(self.plan.brain, Brain::Windrose);
        self.requests.push(Request {
            gateway,
            at: self.now,
            attempts: windrose.then(|| Box::new(Attempts::new(call))),
            jobs: [usize::MAX; MAX_ATTEMPTS],
            rules,
            timer: NEVER,
            repeatable,
            told: false,
            wrong: false,
        });
        if windrose { self.drive(request) } else { self.by_rule(request) }
    }

    /// Sends a request by another rule.
    fn by_rule(&mut self, request: usize) {
        let gateway = self.requests[request].gateway;
        let gate = &mut self.gates[gateway];
        let site = match &mut gate.rule {
            Some(rule) => {
                let site = rule.choose(&gate.known, &mut gate.random, self.now);
                rule.sent(site);
                let probed = rule.probes(gate.known.len(), &mut gate.random);
                for site in probed {
                    let (in_flight, latency) = (self.sites[site].load().in_flight, self.sites[site].latency());
                    let back = self.now + self.one_way(site) * 2;
                    self.agenda.put(back, Event::RuleProbe { gateway, site, in_flight, latency });
                }
                site
            }
            None => {
                let completion = |site: &usize| self.sites[*site].completion(self.slower(*site));
                let best = (0..self.sites.len()).min_by(|a, b| completion(a).total_cmp(&completion(b)));
                best.unwrap_or(0)
            }
        };
        self.record.sent += 1;
        self.requests[request].jobs[0] = self.post(Owner::Client(request, 0), gateway, site);
    }

    pub(crate) fn timer(&mut self, request: usize, until: Nanos) {
        if self.requests[request].timer == until {
            self.requests[request].timer = NEVER;
            self.drive(request);
        }
    }

    /// Polls a request's machine and does what it says, until it waits.
    fn drive(&mut self, request: usize) {
        let Some(mut attempts) = self.requests[request].attempts.take() else { return };
        let gateway = self.requests[request].gateway;
        loop {
            let began = self.plan.measure.then(Instant::now);
            match attempts.poll(&mut self.gates[gateway].router, self.now) {
                Action::Send { attempt, replica, .. } => {
                    if let Some(began) = began {
                        self.record.choices.1 += began.elapsed();
                    }
                    self.record.choices.0 += 1;
                    self.send(request, attempt, replica);
                }
                Action::Cancel { attempt } => self.cancel(request, attempt),
                Action::Wait { until } => {
                    if until != NEVER && self.requests[request].timer != until {
                        self.requests[request].timer = until;
                        self.agenda.put(until, Event::Timer { request, until });
                    }
                    break;
                }
                Action::Finish { attempt } => {
                    let replica = attempts.replica_of(attempt);
                    let site = self.gates[gateway].ids.iter().position(|id| Some(*id) == replica);
                    self.tell(request, None, site, attempts.count());
                }
                Action::Fail(failure) => self.tell(request, Some(failure.reason), None, attempts.count()),
                Action::Done => return,
            }
        }
        self.requests[request].attempts = Some(attempts);
    }

    fn send(&mut self, request: usize, attempt: AttemptId, replica: ReplicaId) {
        let gateway = self.requests[request].gateway;
        let Some(site) = self.gates[gateway].ids.iter().position(|id| *id == replica) else { return };
        self.record.sent += 1;
        let forbidden = self.requests[request].rules.permit(self.jurisdiction(site)).is_err();
        self.record.forbidden += u64::from(forbidden);
        let job = self.post(Owner::Client(request, attempt.0), gateway, site);
        self.requests[request].jobs[usize::from(attempt.0)] = job;
    }

    fn cancel(&mut self, request: usize, attempt: AttemptId) {
        let job = self.requests[request].jobs[usize::from(attempt.0)];
        self.jobs[job].awaited = false;
        let site = self.jobs[job].site;
        if self.sites[site].model.replica.nature.withdraws() {
            let at = self.now + self.one_way(site);
            self.agenda.put(at, Event::Withdraw { job });
        }
    }

    /// The client hears of its request.
    fn tell(&mut self, request: usize, failed: Option<Reason>, site: Option<usize>, attempts: u8) {
        let this = &mut self.requests[request];
        self.record.twice += u64::from(std::mem::replace(&mut this.told, true));
        self.record.outcomes.push(Outcome {
            at: this.at,
            took: self.now - this.at,
            failed,
            site,
            attempts,
            wrong: this.wrong,
            repeatable: this.repeatable,
            budgets: self.gates[this.gateway].router.budgets(),
        });
    }

    /// News of a job reach the gateway that sent it.
    pub(crate) fn back(&mut self, job: usize, fate: Fate, wrong: bool) {
        let this = self.jobs[job];
        if !this.awaited {
            return;
        }
        self.jobs[job].awaited = false;
        let answered = matches!(fate, Fate::Whole { .. });
        let (now, gate) = (self.now, &mut self.gates[this.gateway]);
        let id = gate.ids[this.site];
        if answered && self.plan.reports {
            gate.router.report(id, self.sites[this.site].load(), now);
        }
        match this.owner {
            Owner::Other => {}
            Owner::Probe => match fate {
                Fate::Whole { .. } => gate.router.probed(id, if wrong { Probe::Wrong } else { Probe::Right }, now),
                Fate::Head(Verdict::Overloaded { .. }) => {}
                _ => gate.router.probed(id, Probe::Failed, now),
            },
            Owner::Client(request, attempt) => {
                self.requests[request].wrong = wrong;
                if let Some(attempts) = &mut self.requests[request].attempts {
                    attempts.on(&mut gate.router, AttemptId(attempt), fate, now);
                    self.drive(request);
                } else {
                    let took = now - self.requests[request].at;
                    if let Some(rule) = &mut gate.rule {
                        rule.answered(this.site, took, now);
                    }
                    let failed = (!answered).then_some(Reason::Failed);
                    self.tell(request, failed, Some(this.site), 1);
                }
            }
        }
        self.ejections(this.gateway);
    }

    pub(crate) fn probe(&mut self, gateway: usize, site: usize) {
        let Some(every) = self.plan.probes else { return };
        if self.now < self.plan.until {
            let job = self.post(Owner::Probe, gateway, site);
            self.agenda.put(self.now + PROBE, Event::ProbeOver { job });
            self.agenda.put(self.now + every, Event::Probe { gateway, site });
        }
    }

    pub(crate) fn probe_over(&mut self, job: usize) {
        let this = self.jobs[job];
        if this.awaited {
            self.jobs[job].awaited = false;
            let gate = &mut self.gates[this.gateway];
            let waits = this.place == Place::Waiting || this.place == Place::Running;
            // One that waits in a long queue says nothing about whether the site is there.
            if !waits {
                gate.router.probed(gate.ids[this.site], Probe::Failed, self.now);
            }
            self.ejections(this.gateway);
        }
    }

    fn ejections(&mut self, gateway: usize) {
        for change in self.gates[gateway].router.take_changes() {
            if let Some(why) = change.ejected {
                let named = |model: &crate::Model| model.replica.site.name == change.site;
                if let Some(site) = self.plan.sites.iter().position(named) {
                    self.record.ejections.push((change.at, site, why == windrose_route::Ejection::Wrong));
                }
            }
        }
    }
}
