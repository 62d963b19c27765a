//! What one gateway knows about one model's replicas.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::budget::Budgets;
use crate::choose::Scratch;
use crate::explain::{Decision, Refusal};
use crate::health::{Ejection, Health};
use crate::history::History;
use crate::hot::{Hot, Terms};
use crate::law::{Breach, Jurisdiction, Rules};
use crate::limit::Limit;
use crate::random::Random;
use crate::replica::{Load, Nature, Replica, ReplicaId, Serves};
use crate::settings::Settings;
use crate::shares::Shares;
use crate::tally::Blame;
use crate::time::{MILLISECOND, Nanos, SECOND};

/// Changes that are kept until somebody takes them.
const CHANGES: usize = 64;
/// Decisions that are kept: of first attempts at a replica that is well, and of all others, after which somebody may look.
pub(crate) const DECISIONS: usize = 64;
pub(crate) const UNUSUAL: usize = 192;
/// For how long what was observed of a replica is kept after it has left: a site that cannot be reached for a while is
/// no better afterwards than it was before.
const REMEMBERED: Nanos = 300 * SECOND;

/// What one gateway knows about one model's replicas, and how it chooses among them. [`Attempts`](crate::Attempts) uses
/// it for every request of that model; the caller puts it behind a short lock.
#[derive(Debug)]
pub struct Router {
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) slots: Vec<Slot>,
    /// Of each slot what a decision reads; refreshed whenever the slot changes.
    pub(crate) hot: Vec<Hot>,
    /// Of each slot what some policies read; refreshed likewise.
    pub(crate) terms: Vec<Terms>,
    /// Every jurisdiction in the fleet, once; a slot has its index.
    pub(crate) jurisdictions: Vec<Option<Jurisdiction>>,
    pub(crate) budgets: Budgets,
    pub(crate) scratch: Scratch,
    /// Decisions that are kept, each with its number.
    pub(crate) decisions: VecDeque<(u64, Decision)>,
    pub(crate) unusual: VecDeque<(u64, Decision)>,
    /// How many were taken.
    pub(crate) taken: u64,
    /// What answers take beyond the network, over all replicas, in ns; 0 before the first.
    pub(crate) service: f64,
    /// The size of an answer on average, in bytes.
    pub(crate) answer_bytes: f64,
    changes: VecDeque<Change>,
}

/// One replica and what was observed of it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) generation: u32,
    /// `None` when the place is free.
    pub(crate) replica: Option<Replica>,
    /// The site of the replica that has left it, and when.
    left: Option<(Arc<str>, Nanos)>,
    /// Index into `Router::jurisdictions`.
    pub(crate) jurisdiction: u32,
    /// Why it is no candidate for any request, if it is none.
    pub(crate) unfit: Option<Refusal>,
    pub(crate) in_flight: u32,
    pub(crate) load: Option<(Load, Nanos)>,
    pub(crate) history: History,
    pub(crate) health: Health,
    pub(crate) limit: Limit,
    /// Whom it refused for having their share of it.
    pub(crate) shares: Shares,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// It answered an inference, and nothing was there to compare the answer with.
    Answered,
    /// It answered the golden input rightly.
    Right,
    /// It answered the golden input wrongly.
    Wrong,
    /// It did not answer, or with an error.
    Failed,
}

/// Something that a log and a metric should show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Nanos,
    /// The site's name.
    pub site: Arc<str>,
    /// Ejected and why; `None` when it is back.
    pub ejected: Option<Ejection>,
}

/// How a replica stands, for metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Why it is ejected, if it is.
    pub ejected: Option<Ejection>,
    /// This gateway's requests that are there now.
    pub in_flight: u32,
    /// The adaptive limit of those.
    pub limit: u32,
    /// The peak EWMA of its answers; `None` before the first.
    pub latency: Option<Nanos>,
    /// The 99th percentile of its answers, where there are enough.
    pub p99: Option<Nanos>,
    /// When it answered a request last, or one was last given up that took longer than its answers; `None` before the
    /// first.
    pub answered: Option<Nanos>,
}

/// How an attempt ended, as far as its replica is concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    /// With an answer, after so long, asked for with so many others in flight.
    Answered { took: Nanos, beside: u32 },
    /// With nothing that is counted: an answer that was counted before, whose stream has ended, or an error of the caller's or
    /// the module's.
    Uncounted,
    /// With a failure that counts so much.
    Failed { weight: f64 },
    /// Without an answer for so long, which counts so much.
    Unanswered { waited: Nanos, weight: f64 },
    /// With a refusal of what was sent then, beside so many others, for having too much to do; until then if it said so.
    Overloaded { sent: Nanos, beside: u32, until: Option<Nanos> },
    /// It does not serve the model.
    NotHere,
}

impl Router {
    /// A router without replicas. One seed gives one sequence of decisions.
    pub fn new(settings: Settings, random: Random) -> Router {
        let budgets = Budgets::new(&settings);
        Router::sharing(settings, random, budgets)
    }

    /// As [`Router::new`], with the budgets of another version of the model.
    pub fn sharing(settings: Settings, random: Random, budgets: Budgets) -> Router {
        budgets.configure(&settings);
        Router {
            budgets,
            settings,
            random,
            slots: Vec::new(),
            hot: Vec::new(),
            terms: Vec::new(),
            jurisdictions: Vec::new(),
            scratch: Scratch::default(),
            decisions: VecDeque::new(),
            unusual: VecDeque::new(),
            taken: 0,
            service: 0.0,
            answer_bytes: 0.0,
            changes: VecDeque::new(),
        }
    }

    /// Other settings; what was observed stays.
    pub fn configure(&mut self, settings: Settings) {
        self.budgets.configure(&settings);
        self.settings = settings;
        self.judge_all();
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The whole fleet anew. A replica whose site was there keeps its handle and what was observed. One that is back
    /// after a short absence has another handle, and what was observed before; it starts with a small share as one that
    /// is new does, unless no other was there.
    pub fn update(&mut self, replicas: Vec<Replica>, now: Nanos) {
        let cold = self.slots.iter().any(|slot| slot.replica.is_some());
        let mut before = std::mem::take(&mut self.slots);
        for slot in &mut before {
            let stays = |old: &Replica| replicas.iter().any(|new| new.site.name == old.site.name);
            if slot.replica.as_ref().is_some_and(|old| !stays(old)) {
                slot.retire(now);
            }
        }
        self.slots = before;
        for replica in replicas {
            match self.find(&replica.site.name) {
                Some(id) => self.slots[id.slot as usize].take(replica, now),
                None => self.add(replica, cold, now),
            }
        }
        self.judge_all();
    }

    fn add(&mut self, replica: Replica, cold: bool, now: Nanos) {
        let bounds = self.settings.concurrency;
        if let Some(kept) = self.slots.iter_mut().find(|slot| slot.is_kept_for(&replica.site.name, now)) {
            kept.come_back(replica, cold, now);
            return;
        }
        match self.slots.iter().position(|slot| slot.is_free(now)) {
            Some(free) => {
                let generation = self.slots[free].generation;
                self.slots[free] = Slot::new(replica, generation, bounds, Health::new(cold, now));
            }
            None => self.slots.push(Slot::new(replica, 0, bounds, Health::new(cold, now))),
        }
    }

    /// Works out again what does not change from request to request.
    fn judge_all(&mut self) {
        self.jurisdictions.clear();
        for slot in &mut self.slots {
            slot.judge(&self.settings);
            let Some(replica) = &slot.replica else { continue };
            let at = &replica.site.jurisdiction;
            let index = self.jurisdictions.iter().position(|known| known == at).unwrap_or_else(|| {
                self.jurisdictions.push(at.clone());
                self.jurisdictions.len() - 1
            });
            slot.jurisdiction = index as u32;
        }
        let service = self.settings.service as f64;
        self.hot = self.slots.iter().map(|slot| Hot::of(slot, service)).collect();
        self.terms = self.slots.iter().map(|slot| Terms::of(slot, self.settings.service)).collect();
    }

    /// A slot has changed.
    fn refresh(&mut self, id: ReplicaId, now: Nanos) {
        let service = if self.service > 0.0 { self.service } else { self.settings.service as f64 };
        let slow_start = self.settings.slow_start;
        let index = id.slot as usize;
        let read = (self.hot.get_mut(index), self.terms.get_mut(index));
        if let (Some(slot), (Some(hot), Some(terms))) = (at(&mut self.slots, id), read) {
            slot.health.settle(slow_start, now);
            slot.shares.settle(now);
            *hot = Hot::of(slot, service);
            *terms = Terms::of(slot, self.settings.service);
        }
    }

    /// What a replica serves from now on.
    pub fn serves(&mut self, id: ReplicaId, serves: Serves, now: Nanos) {
        let Router { slots, settings, .. } = self;
        let Some(slot) = at(slots, id) else { return };
        if let Some(mut replica) = slot.replica.clone() {
            replica.serves = serves;
            slot.take(replica, now);
            slot.judge(settings);
        }
        self.refresh(id, now);
    }

    /// What a replica reported about its load.
    pub fn report(&mut self, id: ReplicaId, load: Load, now: Nanos) {
        if let Some(slot) = at(&mut self.slots, id) {
            slot.load = Some((load, now));
        }
        self.refresh(id, now);
    }

    /// How a probe of a replica ended.
    pub fn probed(&mut self, id: ReplicaId, probe: Probe, now: Nanos) {
        let jitter = self.random.share();
        let Some(slot) = at(&mut self.slots, id) else { return };
        let before = slot.health.ejected();
        match probe {
            Probe::Answered => slot.health.probed_well(false, now),
            Probe::Right => slot.health.probed_well(true, now),
            Probe::Wrong => {
                slot.health.wrong();
            }
            Probe::Failed => {
                slot.health.failed(1.0, jitter, &self.settings, now);
            }
        }
        self.changed(id, before, now);
    }

    /// Whether a request that these rules bind has somewhere to go: a replica that may answer and is not out, or that
    /// it may try again. One that has too much to do is there all the same. `careful` is a request that could not be
    /// sent again.
    pub fn is_fit(&self, rules: &Rules, careful: bool, now: Nanos) -> bool {
        // However small the share of the traffic is that a replica gets now.
        let admits = |slot: &Slot| slot.health.admits(self.settings.slow_start, 0.0, careful, now);
        self.able(rules).any(|slot| matches!(admits(slot), Ok(()) | Err(Refusal::RetryAfter { .. })))
    }

    /// Whether there is a replica that may answer a request that these rules bind, whatever its health.
    pub fn is_able(&self, rules: &Rules) -> bool {
        self.able(rules).next().is_some()
    }

    fn able<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = &'a Slot> {
        let lawful = move |replica: &Replica| rules.permit(replica.site.jurisdiction.as_ref()).is_ok();
        let may = move |slot: &&Slot| slot.unfit.is_none() && slot.replica.as_ref().is_some_and(lawful);
        self.slots.iter().filter(may)
    }

    /// The handle of the replica at the site of this name.
    pub fn find(&self, site: &str) -> Option<ReplicaId> {
        self.ids().find(|id| self.replica(*id).is_some_and(|replica| *replica.site.name == *site))
    }

    /// The handles of all replicas.
    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.replica.is_some())
            .map(|(index, slot)| ReplicaId { slot: index as u32, generation: slot.generation })
    }

    /// A replica; `None` once it has left.
    pub fn replica(&self, id: ReplicaId) -> Option<&Replica> {
        self.slot(id)?.replica.as_ref()
    }

    /// How a replica stands; `None` once it has left.
    pub fn standing(&self, id: ReplicaId) -> Option<Standing> {
        let slot = self.slot(id)?;
        Some(Standing {
            ejected: slot.health.ejected(),
            in_flight: slot.in_flight,
            limit: slot.limit.now(),
            latency: slot.history.average().map(|ns| ns as Nanos),
            p99: slot.history.p99(),
            answered: slot.history.known().map(|(_, _, _, updated)| updated),
        })
    }

    /// Retries and hedges that the budgets allow at this moment.
    pub fn budgets(&self) -> (f64, f64) {
        self.budgets.left()
    }

    /// The budgets, for the router of another version of the model.
    pub fn shared_budgets(&self) -> Budgets {
        self.budgets.clone()
    }

    /// Takes the ejections and returns since the last time, the oldest first; at most the last 64.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.drain(..).collect()
    }

    pub(crate) fn slot(&self, id: ReplicaId) -> Option<&Slot> {
        self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation && slot.replica.is_some())
    }

    /// How long a hedge waits for this replica.
    pub(crate) fn hedge_delay(&self, id: ReplicaId) -> Nanos {
        let (least, most) = self.settings.hedge_delay;
        let Some(slot) = self.slot(id) else { return most };
        let guess = || {
            let distance = slot.replica.as_ref().map_or(0, |replica| replica.distance);
            distance.saturating_mul(2).saturating_add(self.settings.service.saturating_mul(5))
        };
        slot.history.late().unwrap_or_else(guess).clamp(least, most.max(least))
    }

    /// Whether a replica has a history by which an answer of its own is late.
    pub(crate) fn has_history(&self, id: ReplicaId) -> bool {
        self.slot(id).is_some_and(|slot| slot.history.late().is_some())
    }

    /// A replica refused a tenant for having its share of it; until then if it said so. Where it did not, nothing is kept.
    pub(crate) fn over_share(&mut self, id: ReplicaId, tenant: &Arc<str>, until: Option<Nanos>, now: Nanos) {
        let latest = now.saturating_add(self.settings.retry_after);
        if let (Some(slot), Some(until)) = (at(&mut self.slots, id), until) {
            slot.shares.refuse(tenant, until.min(latest));
        }
        self.refresh(id, now);
    }

    /// One of a tenant's requests at a replica is done, so that it has room for another.
    pub(crate) fn has_room_for(&mut self, id: ReplicaId, tenant: &str, now: Nanos) {
        let Some(slot) = at(&mut self.slots, id).filter(|slot| !slot.shares.is_empty()) else { return };
        slot.shares.admit(tenant);
        self.refresh(id, now);
    }

    /// A request goes out. Gives how many others are in flight there, and whether it is the one that tries whether an
    /// ejected replica is back.
    pub(crate) fn begin(&mut self, id: ReplicaId, now: Nanos) -> (u32, bool) {
        let Some(slot) = at(&mut self.slots, id) else { return (0, false) };
        slot.in_flight += 1;
        let (beside, trial) = (slot.in_flight - 1, slot.health.sent(now));
        self.refresh(id, now);
        (beside, trial)
    }

    /// An attempt gave its answer, and its stream goes on: what is counted of an answer is counted now.
    pub(crate) fn answered(&mut self, id: ReplicaId, ending: Ending, trial: bool, now: Nanos) {
        self.observe(id, ending, trial, now);
    }

    /// An attempt is over. Gives the failure that it was counted as, if it was.
    pub(crate) fn end(&mut self, id: ReplicaId, ending: Ending, trial: bool, now: Nanos) -> Option<Blame> {
        let blame = self.observe(id, ending, trial, now);
        if let Some(slot) = at(&mut self.slots, id) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
            if trial {
                slot.health.trial_over();
            }
        }
        self.refresh(id, now);
        blame
    }

    fn observe(&mut self, id: ReplicaId, ending: Ending, trial: bool, now: Nanos) -> Option<Blame> {
        let jitter = self.random.share();
        let settings = &self.settings;
        let slot = at(&mut self.slots, id)?;
        let before = slot.health.ejected();
        let mut blame = None;
        match ending {
            Ending::Answered { took, beside } => {
                slot.history.answered(took, beside, settings.late, now);
                let distance = slot.replica.as_ref().map_or(0, |replica| replica.distance);
                let beyond = took.saturating_sub(distance).max(1) as f64;
                self.service += (beyond - self.service) * if self.service == 0.0 { 1.0 } else { 1.0 / 16.0 };
                slot.limit.answered(slot.in_flight);
                slot.health.answered(trial, now);
            }
            Ending::Failed { weight } => blame = Some(slot.health.failed(weight, jitter, settings, now)),
            Ending::Unanswered { waited, weight } => {
                slot.history.at_least(waited, now);
                if weight > 0.0 {
                    blame = Some(slot.health.failed(weight, jitter, settings, now));
                }
            }
            Ending::Overloaded { sent, beside, until } => {
                slot.limit.refused(beside, sent, now);
                let latest = now.saturating_add(settings.retry_after);
                let until = until.unwrap_or(now.saturating_add(100 * MILLISECOND)).min(latest);
                slot.health.back_off(until);
            }
            Ending::NotHere => slot.health.not_here(now),
            Ending::Uncounted => {}
        }
        self.changed(id, before, now);
        blame
    }

    /// Takes back a failure that `end` counted: the request itself was to blame.
    pub(crate) fn forgive(&mut self, id: ReplicaId, blame: Blame, now: Nanos) {
        let Some(slot) = at(&mut self.slots, id) else { return };
        let before = slot.health.ejected();
        slot.health.forgiven(blame);
        self.tell(id, before, now);
    }

    fn changed(&mut self, id: ReplicaId, before: Option<Ejection>, now: Nanos) {
        if let Some(slot) = at(&mut self.slots, id)
            && before.is_some()
            && slot.health.ejected().is_none()
        {
            slot.history.forgive();
        }
        self.tell(id, before, now);
    }

    /// Keeps for whoever looks whether a replica is ejected that was not, or the other way round.
    fn tell(&mut self, id: ReplicaId, before: Option<Ejection>, now: Nanos) {
        self.refresh(id, now);
        let Some(slot) = self.slot(id) else { return };
        let (ejected, Some(replica)) = (slot.health.ejected(), &slot.replica) else { return };
        if ejected != before {
            let change = Change { at: now, site: Arc::clone(&replica.site.name), ejected };
            if self.changes.len() >= CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back(change);
        }
    }
}

/// The slot that a handle names, if its replica is still there.
fn at(slots: &mut [Slot], id: ReplicaId) -> Option<&mut Slot> {
    slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation && slot.replica.is_some())
}

impl Slot {
    fn new(replica: Replica, generation: u32, bounds: (u32, u32), health: Health) -> Slot {
        Slot {
            generation,
            replica: Some(replica),
            left: None,
            jurisdiction: 0,
            unfit: None,
            in_flight: 0,
            load: None,
            history: History::new(),
            health,
            limit: Limit::new(bounds),
            shares: Shares::default(),
        }
    }

    /// Takes over what the fleet says now. What became ready starts with a small share.
    fn take(&mut self, replica: Replica, now: Nanos) {
        let served = self.replica.as_ref().is_some_and(|old| old.serves != Serves::Nothing);
        if !served && replica.serves != Serves::Nothing {
            self.health.warm_up(now);
        }
        // Wrong answers are those of what it served: of something else nobody has compared any, and perhaps nobody can.
        let digest = |serves: &Serves| matches!(serves, Serves::Digest(_)).then_some(*serves);
        let before = self.replica.as_ref().and_then(|old| digest(&old.serves));
        let other = before.is_some_and(|before| digest(&replica.serves).is_some_and(|now| now != before));
        if other && self.health.ejected() == Some(Ejection::Wrong) {
            self.health = Health::new(true, now);
        }
        self.replica = Some(replica);
    }

    /// Its replica leaves. What was observed of it stays for a while.
    fn retire(&mut self, now: Nanos) {
        self.generation = self.generation.wrapping_add(1);
        self.left = self.replica.take().map(|replica| (Arc::clone(&replica.site.name), now));
        self.unfit = Some(Refusal::NotReady);
    }

    /// Whether what it holds was observed of the replica at this site, not long ago.
    fn is_kept_for(&self, site: &str, now: Nanos) -> bool {
        self.left.as_ref().is_some_and(|(name, at)| **name == *site && now.saturating_sub(*at) <= REMEMBERED)
    }

    /// Whether any replica may have it.
    fn is_free(&self, now: Nanos) -> bool {
        let is_kept = self.left.as_ref().is_some_and(|(_, at)| now.saturating_sub(*at) <= REMEMBERED);
        self.replica.is_none() && !is_kept
    }

    /// The replica that left it is back. Nobody tells any more how what was under way then ended.
    fn come_back(&mut self, replica: Replica, cold: bool, now: Nanos) {
        (self.replica, self.left) = (Some(replica), None);
        (self.in_flight, self.load) = (0, None);
        self.health.come_back(cold, now);
    }

    /// Works out whether it is a candidate for any request at all.
    fn judge(&mut self, settings: &Settings) {
        let Some(replica) = &self.replica else { return };
        let foreign = replica.nature == Nature::Foreign;
        self.unfit = match replica.serves {
            Serves::Nothing => Some(Refusal::NotReady),
            Serves::Unheard => Some(Refusal::Law(Breach::Unheard)),
            Serves::Digest(digest) if !settings.digests.contains(&digest) => Some(Refusal::Digest),
            // Only a foreign server may go without a digest.
            Serves::Unverified if !foreign => Some(Refusal::Digest),
            _ if !replica.grants.cover(settings.needs) => Some(Refusal::Grants),
            _ => None,
        };
    }
}
