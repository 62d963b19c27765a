//! The loop: events, sites and links.

use std::sync::Arc;

use windrose_route::{
    Event as Fate, Hedging, Jurisdiction, MILLISECOND, Nanos, Random, Rules, SECOND, Settings, Verdict,
};

use crate::event::{Agenda, Event};
use crate::fault::{Fault, Kind};
use crate::gate::{Gate, Request};
use crate::record::Record;
use crate::rules::Make;
use crate::site::{Model, Site, exponential};

/// How long a site is slower after a start.
const COLD: Nanos = 300 * MILLISECOND;
/// When a lost answer is first sent again.
const RESEND: Nanos = 200 * MILLISECOND;

/// Who chooses.
#[derive(Clone, Copy, Debug)]
pub enum Brain {
    /// The machine of `windrose-route`.
    Windrose,
    /// Another rule, made anew for each gateway.
    Rule(Make),
    /// One who sees every queue at this moment and what is on its way, and takes the least expected completion.
    Oracle,
}

/// What there is, and what happens.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where every random number comes from.
    pub seed: u64,
    /// How many gateways; each has its own clients and its own view.
    pub gateways: usize,
    /// Requests a second at each of them.
    pub rate: f64,
    /// The rate times a factor, within a time.
    pub surges: Vec<(Nanos, Nanos, f64)>,
    /// Requests come in until then; the run ends when the last is done.
    pub until: Nanos,
    /// The routers' settings.
    pub settings: Settings,
    /// The sites.
    pub sites: Vec<Model>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// How long clients wait.
    pub patience: Nanos,
    /// The share of requests that may not be repeated.
    pub once: f64,
    /// Each request is bound by one of these.
    pub rules: Vec<Arc<Rules>>,
    /// Where hedges may go.
    pub hedging: Hedging,
    /// The size of an answer.
    pub bytes: u64,
    /// How often each gateway sends each site a golden input.
    pub probes: Option<Nanos>,
    /// Whether answers tell the load.
    pub reports: bool,
    /// Who chooses.
    pub brain: Brain,
    /// Whether the real time of decisions is measured.
    pub measure: bool,
}

/// Whose job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A client's request, and its attempt.
    Client(usize, u8),
    Probe,
    /// Somebody who is not simulated.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Coming,
    Waiting,
    Running,
    Gone,
}

/// One inference on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) owner: Owner,
    pub(crate) gateway: usize,
    pub(crate) site: usize,
    pub(crate) place: Place,
    /// The gateway still waits for it.
    pub(crate) awaited: bool,
    came: Nanos,
    /// Others that it found at its site.
    beside: u32,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Nanos,
    pub(crate) agenda: Agenda,
    pub(crate) random: Random,
    pub(crate) sites: Vec<Site>,
    pub(crate) gates: Vec<Gate>,
    pub(crate) requests: Vec<Request>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) record: Record,
    /// What runs now, by site.
    running: Vec<Vec<usize>>,
}

/// Lets a plan happen.
pub fn run(plan: Plan) -> Record {
    let mut world = World::new(plan);
    while let Some((at, event)) = world.agenda.next() {
        world.now = at;
        world.happen(event);
    }
    world.record
}

impl World {
    fn new(plan: Plan) -> World {
        let mut random = Random::seeded(plan.seed);
        let gates = (0..plan.gateways).map(|_| Gate::new(&plan, random.bits())).collect();
        let mut world = World {
            now: 0,
            agenda: Agenda::default(),
            sites: plan.sites.iter().cloned().map(Site::new).collect(),
            running: vec![Vec::new(); plan.sites.len()],
            gates,
            random,
            requests: Vec::new(),
            jobs: Vec::new(),
            record: Record::default(),
            plan,
        };
        for gateway in 0..world.plan.gateways {
            world.agenda.put(0, Event::Arrive { gateway });
            if let Some(every) = world.plan.probes {
                for site in 0..world.sites.len() {
                    let at = (every as f64 * world.random.share()) as Nanos;
                    world.agenda.put(at, Event::Probe { gateway, site });
                }
            }
        }
        for (fault, this) in world.plan.faults.iter().enumerate() {
            world.agenda.put(this.from, Event::Edge { fault, begins: true });
            world.agenda.put(this.to, Event::Edge { fault, begins: false });
        }
        world
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { gateway } => self.arrive(gateway),
            Event::Timer { request, until } => self.timer(request, until),
            Event::AtSite { job } => self.at_site(job),
            Event::Served { job, epoch } => self.served(job, epoch),
            Event::Back { job, fate, wrong } => {
                let Job { gateway, site, .. } = self.jobs[job];
                if self.find(site, gateway, |kind| kind == Kind::Silent).is_none() {
                    self.back(job, fate, wrong);
                }
            }
            Event::Withdraw { job } => self.withdraw(job),
            Event::Probe { gateway, site } => self.probe(gateway, site),
            Event::ProbeOver { job } => self.probe_over(job),
            Event::RuleProbe { gateway, site, in_flight, latency } => {
                if let Some(rule) = &mut self.gates[gateway].rule {
                    rule.probed(site, in_flight, latency, self.now);
                }
            }
            Event::Other { fault } => self.other(fault),
            Event::Edge { fault, begins } => self.edge(fault, begins),
        }
    }

    /// The first fault of this site that a gateway sees now and `which` wants.
    fn find(&self, site: usize, gateway: usize, which: impl Fn(Kind) -> bool) -> Option<Kind> {
        let here = |fault: &&Fault| fault.site == site && fault.is_on(gateway, self.now) && which(fault.kind);
        self.plan.faults.iter().find(here).map(|fault| fault.kind)
    }

    /// One way to a site or back, without what an answer's size takes.
    pub(crate) fn one_way(&mut self, site: usize) -> Nanos {
        let half = self.sites[site].model.replica.distance / 2;
        half + exponential(&mut self.random, half as f64 * 0.02 + 20_000.0) as Nanos
    }

    /// How much slower a site is now than it should be.
    pub(crate) fn slower(&self, site: usize) -> f64 {
        match self.find(site, usize::MAX, |kind| matches!(kind, Kind::Slow(_))) {
            Some(Kind::Slow(factor)) => factor,
            _ => 1.0,
        }
    }

    /// Sends a job to a site.
    pub(crate) fn post(&mut self, owner: Owner, gateway: usize, site: usize) -> usize {
        let job = self.jobs.len();
        self.jobs.push(Job { owner, gateway, site, place: Place::Coming, awaited: true, came: self.now, beside: 0 });
        self.sites[site].coming += 1;
        let at = self.now + self.one_way(site);
        self.agenda.put(at, Event::AtSite { job });
        job
    }

    fn at_site(&mut self, job: usize) {
        let Job { gateway, site, .. } = self.jobs[job];
        self.sites[site].coming -= 1;
        if self.find(site, gateway, |kind| matches!(kind, Kind::Silent | Kind::Mute)).is_some() {
            self.jobs[job].place = Place::Gone;
        } else if self.find(site, gateway, |kind| kind == Kind::Killed).is_some() {
            self.reply(job, Fate::ConnectFailed);
        } else if self.find(site, gateway, |kind| kind == Kind::Draining).is_some() {
            self.reply(job, Fate::Refused);
        } else if self.fails(site, gateway, true) {
            self.reply(job, Fate::Head(Verdict::Failed));
        } else {
            self.enter(job);
        }
    }

    /// Whether an error fault strikes.
    fn fails(&mut self, site: usize, gateway: usize, early: bool) -> bool {
        match self.find(site, gateway, |kind| matches!(kind, Kind::Errors { fast, .. } if fast == early)) {
            Some(Kind::Errors { share, .. }) => self.random.share() < share,
            _ => false,
        }
    }

    /// A job takes its place in a site's queue, unless that is full.
    fn enter(&mut self, job: usize) {
        let site = &mut self.sites[self.jobs[job].site];
        (self.jobs[job].came, self.jobs[job].beside) = (self.now, site.load().in_flight);
        if site.busy < site.model.parallel {
            self.start(job);
        } else if (site.waiting as usize) < site.model.queue {
            site.queue.push_back(job);
            site.waiting += 1;
            self.jobs[job].place = Place::Waiting;
        } else {
            let until = site.model.retry_after.map(|after| self.now + after);
            self.reply(job, Fate::Head(Verdict::Overloaded { until }));
        }
    }

    fn start(&mut self, job: usize) {
        let Job { site, owner, .. } = self.jobs[job];
        self.jobs[job].place = Place::Running;
        self.record.executed += u64::from(matches!(owner, Owner::Client(..)));
        let slower = self.slower(site);
        let this = &mut self.sites[site];
        this.busy += 1;
        let took = this.service(&mut self.random, slower, self.now);
        let epoch = this.epoch;
        self.running[site].push(job);
        self.agenda.put(self.now + took, Event::Served { job, epoch });
    }

    fn served(&mut self, job: usize, epoch: u32) {
        let Job { site, gateway, came, beside, owner, .. } = self.jobs[job];
        if self.sites[site].epoch != epoch {
            return;
        }
        self.running[site].retain(|one| *one != job);
        let this = &mut self.sites[site];
        this.busy -= 1;
        this.latencies.took(beside, self.now - came);
        while let Some(next) = self.sites[site].queue.pop_front() {
            if self.jobs[next].place == Place::Waiting {
                self.sites[site].waiting -= 1;
                self.start(next);
                break;
            }
        }
        if owner == Owner::Other {
            self.jobs[job].place = Place::Gone;
        } else if self.fails(site, gateway, false) {
            self.reply(job, Fate::Head(Verdict::Failed));
        } else {
            self.reply(job, Fate::Whole { bytes: self.plan.bytes });
        }
    }

    /// An answer, or what stands for one, leaves its site.
    fn reply(&mut self, job: usize, fate: Fate) {
        let Job { site, gateway, .. } = self.jobs[job];
        self.jobs[job].place = Place::Gone;
        let mut after = self.one_way(site);
        if let Fate::Whole { bytes } = fate {
            after += (bytes as f64 / self.sites[site].model.bandwidth * SECOND as f64) as Nanos;
        }
        if let Some(Kind::Late(late)) = self.find(site, gateway, |kind| matches!(kind, Kind::Late(_))) {
            after += late;
        }
        if let Some(Kind::Loss(share)) = self.find(site, gateway, |kind| matches!(kind, Kind::Loss(_))) {
            let mut again = RESEND;
            while self.random.share() < share {
                (after, again) = (after + again, again * 2);
            }
        }
        let wrong = self.find(site, gateway, |kind| kind == Kind::Wrong).is_some();
        let fate = match self.find(site, gateway, |kind| matches!(kind, Kind::Cut(_))) {
            Some(Kind::Cut(share)) if matches!(fate, Fate::Whole { .. }) && self.random.share() < share => Fate::Cut,
            _ => fate,
        };
        // What leaves while packets are dropped is lost; so is what would arrive then.
        if self.find(site, gateway, |kind| kind == Kind::Silent).is_none() {
            self.agenda.put(self.now + after, Event::Back { job, fate, wrong });
        }
    }

    fn withdraw(&mut self, job: usize) {
        let Job { site, place, .. } = self.jobs[job];
        if place == Place::Waiting {
            self.jobs[job].place = Place::Gone;
            self.sites[site].waiting -= 1;
        }
    }

    fn other(&mut self, fault: usize) {
        let Fault { site, to, kind, .. } = self.plan.faults[fault];
        let Kind::Crowded(rate) = kind else { return };
        if self.now < to {
            let job = self.jobs.len();
            let (owner, place) = (Owner::Other, Place::Coming);
            self.jobs.push(Job { owner, gateway: usize::MAX, site, place, awaited: false, came: self.now, beside: 0 });
            let this = &self.sites[site];
            if this.waiting as usize >= this.model.queue && this.busy >= this.model.parallel {
                self.jobs[job].place = Place::Gone;
            } else {
                self.enter(job);
            }
            let after = exponential(&mut self.random, SECOND as f64 / rate);
            self.agenda.put(self.now + after as Nanos, Event::Other { fault });
        }
    }

    fn edge(&mut self, fault: usize, begins: bool) {
        let Fault { site, kind, .. } = self.plan.faults[fault];
        match (kind, begins) {
            (Kind::Crowded(_), true) => self.other(fault),
            (Kind::Killed, true) => {
                let this = &mut self.sites[site];
                this.epoch += 1;
                (this.busy, this.waiting) = (0, 0);
                let mut lost: Vec<usize> = this.queue.drain(..).collect();
                lost.retain(|job| self.jobs[*job].place == Place::Waiting);
                lost.append(&mut self.running[site]);
                for job in lost {
                    if self.jobs[job].owner == Owner::Other {
                        self.jobs[job].place = Place::Gone;
                    } else {
                        self.reply(job, Fate::Reset);
                    }
                }
            }
            (Kind::Killed, false) => self.sites[site].cold_until = self.now + COLD,
            _ => {}
        }
    }

    /// Whose law holds at a site.
    pub(crate) fn jurisdiction(&self, site: usize) -> Option<&Jurisdiction> {
        self.sites[site].model.replica.site.jurisdiction.as_ref()
    }
}
