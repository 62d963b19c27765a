//! The decision: filters first, then the score, then the policy.

use crate::call::{Call, Hedging};
use crate::explain::{Candidate, Considered, Decision, Explanation, Purpose, Refusal, SHOWN};
use crate::law::Breach;
use crate::replica::{Nature, ReplicaId, Serves};
use crate::router::{DECISIONS, Router, UNUSUAL};
use crate::settings::Policy;
use crate::time::{MILLISECOND, Nanos};

/// Up to so many replicas a decision looks at all of them.
const ALL: usize = 16;
/// Of more it draws so many at random. What a gateway knows of each of a thousand is old, and every gateway would
/// send to the one that looks best.
const DRAWN: usize = 8;
/// Unless so many of those passed, it looks at all.
const ENOUGH: usize = 4;
/// Scores within this factor and this span of the best are equal; the price decides among them.
const BAND: (f32, f32) = (1.05, 0.25 * MILLISECOND as f32);
/// `local-first` leaves this gateway when it is this much slower than the best other, factor and span.
const LOCAL_WORSE: (f32, f32) = (4.0, 100.0 * MILLISECOND as f32);

/// One decision to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) call: &'a Call,
    /// Where this request was before.
    pub(crate) tried: &'a [ReplicaId],
    pub(crate) purpose: Purpose,
    pub(crate) now: Nanos,
}

/// What a decision works with; kept so that nothing is allocated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    /// By jurisdiction: what the request's rules say.
    lawful: Vec<Option<Breach>>,
    /// Who passed: the slot and its score.
    passed: Vec<(u32, f32)>,
}

/// Why nobody was chosen, in the order in which it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Nobody {
    /// A replica that would serve breaks this rule, and none is lawful.
    pub(crate) breach: Option<Breach>,
    /// A lawful one has too much to do; when the first may be asked again, if one said.
    pub(crate) overloaded: bool,
    pub(crate) retry_at: Option<Nanos>,
    /// Lawful ones were there before, and this is all that is against them.
    pub(crate) tried: bool,
    /// A lawful one is there at all, whatever is against it.
    pub(crate) lawful: bool,
}

/// Who is asked when nobody passed.
#[derive(Clone, Copy, Debug)]
struct Last {
    rank: u8,
    slot: u32,
    score: f32,
}

/// The first replicas of a look.
#[derive(Default)]
struct Shown {
    places: [Option<Considered>; SHOWN],
    count: usize,
}

/// Everything that one look over the replicas found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// How many replicas were there.
    candidates: u32,
    nobody: Nobody,
    last: Option<Last>,
    /// The best of those whose golden answers were wrong, and whether any lawful one is not.
    wrong: Option<Last>,
    all_wrong: bool,
}

impl Router {
    /// Chooses whom to ask. Fails with why nobody can be.
    pub(crate) fn choose(&mut self, ask: &Ask<'_>) -> Result<ReplicaId, Nobody> {
        let draw = self.random.share();
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut shown = Shown::default();
        let mut found = None;
        if self.hot.len() > ALL && self.draws(ask) {
            // Where the law may refuse some, more are drawn, for as many to be left.
            let count = if ask.call.rules.is_empty() { DRAWN } else { DRAWN * 4 };
            let drawn = [(); DRAWN * 4].map(|()| self.random.below(self.hot.len()));
            let some = self.look(ask, draw, &mut scratch, (drawn.into_iter().take(count), |one| shown.keep(one)));
            found = (scratch.passed.len() >= ENOUGH).then_some(some);
        }
        let found = found.unwrap_or_else(|| {
            shown = Shown::default();
            self.look(ask, draw, &mut scratch, (0..self.hot.len(), |one| shown.keep(one)))
        });
        let (chosen, last_resort) = self.settle(ask, &found, &scratch.passed);
        self.scratch = scratch;
        self.keep(Decision {
            at: ask.now,
            purpose: ask.purpose,
            request: ask.call.request.clone(),
            tenant: ask.call.tenant.clone(),
            chosen,
            last_resort,
            candidates: found.candidates,
            considered: shown.places,
        });
        chosen.ok_or(found.nobody)
    }

    /// When the first of those that a request may go to takes it, as far as they said when.
    pub(crate) fn free_at(&mut self, call: &Call, now: Nanos) -> Option<Nanos> {
        let ask = Ask { call, tried: &[], purpose: Purpose::First, now };
        let mut scratch = std::mem::take(&mut self.scratch);
        let found = self.look(&ask, 0.0, &mut scratch, (0..self.hot.len(), |_| false));
        let free = if scratch.passed.is_empty() { found.nobody.retry_at } else { Some(now) };
        self.scratch = scratch;
        free
    }

    /// What would happen to a request now, and why. Changes nothing.
    pub fn explain(&self, call: &Call, now: Nanos) -> Explanation {
        let ask = Ask { call, tried: &[], purpose: Purpose::First, now };
        let mut random = self.random.clone();
        let draw = random.share();
        let mut scratch = Scratch::default();
        let mut candidates = Vec::new();
        let mut ids = Vec::new();
        let found = self.look(
            &ask,
            draw,
            &mut scratch,
            (0..self.hot.len(), |considered: Considered| {
                if let Some(candidate) = self.candidate(considered) {
                    candidates.push(candidate);
                    ids.push(considered.replica);
                }
                true
            }),
        );
        let mut pick = self.pick(&ask, &scratch.passed, || random.bits());
        let last_resort = pick.is_none();
        pick = pick.or_else(|| found.last_resort(&ask));
        let chosen = pick.and_then(|slot| ids.iter().position(|id| id.slot == slot));
        Explanation { candidates, chosen, last_resort: last_resort && chosen.is_some() }
    }

    /// The decisions of late, the newest first: the last of all, and further back those that were not a first attempt at a
    /// replica that is well.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        let mut all: Vec<&(u64, Decision)> = self.unusual.iter().chain(&self.decisions).collect();
        all.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        all.into_iter().map(|(_, decision)| decision)
    }

    fn candidate(&self, considered: Considered) -> Option<Candidate> {
        let slot = self.slot(considered.replica)?;
        let replica = slot.replica.as_ref()?;
        Some(Candidate {
            site: replica.site.name.clone(),
            verdict: considered.verdict,
            price: self.price(considered.replica.slot),
            in_flight: slot.in_flight,
            limit: slot.limit.now(),
            p99: slot.history.p99(),
            hedge_delay: self.hedge_delay(considered.replica),
        })
    }

    fn keep(&mut self, decision: Decision) {
        let usual = decision.purpose == Purpose::First && decision.chosen.is_some() && !decision.last_resort;
        let (kept, most) = match usual {
            true => (&mut self.decisions, DECISIONS),
            false => (&mut self.unusual, UNUSUAL),
        };
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back((self.taken, decision));
        self.taken += 1;
    }

    /// Whether the policy is content with some of a large fleet.
    fn draws(&self, ask: &Ask<'_>) -> bool {
        match self.settings.policy {
            Policy::Fastest => true,
            Policy::Cheapest { .. } | Policy::LocalFirst => ask.purpose != Purpose::First,
            Policy::Weights => false,
        }
    }

    /// Looks at the replicas of these indices: fills `scratch.passed`, tells `each` what it found for as long as that
    /// wants more, and gathers the rest. There may be a thousand: whatever is not needed of all is not done for all.
    fn look(
        &self,
        ask: &Ask<'_>,
        draw: f64,
        scratch: &mut Scratch,
        (indices, mut each): (impl Iterator<Item = usize>, impl FnMut(Considered) -> bool),
    ) -> Found {
        scratch.passed.clear();
        scratch.lawful.clear();
        let rules = &ask.call.rules;
        scratch.lawful.extend(self.jurisdictions.iter().map(|at| rules.permit(at.as_ref()).err()));
        let service = if self.service > 0.0 { self.service as f32 } else { self.settings.service as f32 };
        let unusual = ask.call.forwarded || ask.call.verified;
        let hedges = ask.purpose == Purpose::Hedge && ask.call.hedging != Hedging::Anywhere;
        let mut found = Found { all_wrong: true, ..Found::default() };
        let mut wanted = true;
        for index in indices {
            let Some(hot) = self.hot.get(index).filter(|hot| hot.there) else { continue };
            found.candidates += 1;
            // A jurisdiction that nobody judged is one that nobody permitted.
            let breach = scratch.lawful.get(hot.jurisdiction as usize).copied();
            if let Some(Some(breach)) = breach
                && !wanted
            {
                found.nobody.breach.get_or_insert(breach);
                continue;
            }
            let id = ReplicaId { slot: index as u32, generation: hot.generation };
            let refusal = match breach {
                Some(Some(breach)) => Some(Refusal::Law(breach)),
                Some(None) if hot.plain && !hot.full && !unusual && (hot.withdraws || !hedges) => {
                    ask.tried.contains(&id).then_some(Refusal::Tried)
                }
                Some(None) => self.consider(id, ask, draw).err(),
                None => Some(Refusal::NotReady),
            };
            let tries = hot.out && refusal.is_none();
            let score = if tries { hot.score_when_back(ask.now) } else { hot.score(service, ask.now) };
            match refusal {
                None => scratch.passed.push((id.slot, score)),
                Some(refusal) => found.note(refusal, id, ask, score),
            }
            if wanted {
                wanted = each(Considered { replica: id, verdict: refusal.map_or(Ok(f64::from(score)), Err) });
            }
        }
        if !scratch.passed.is_empty() {
            (found.all_wrong, found.nobody.lawful) = (false, true);
        }
        found
    }

    /// The filters after the law, the cheap ones first.
    fn consider(&self, id: ReplicaId, ask: &Ask<'_>, draw: f64) -> Result<(), Refusal> {
        let slot = self.slot(id).ok_or(Refusal::NotReady)?;
        let replica = slot.replica.as_ref().ok_or(Refusal::NotReady)?;
        if let Some(refusal) = slot.unfit {
            return Err(refusal);
        }
        if ask.call.forwarded && replica.nature != Nature::Local {
            return Err(Refusal::Forwarded);
        }
        if ask.call.verified && replica.serves == Serves::Unverified {
            return Err(Refusal::Unverified);
        }
        if ask.purpose == Purpose::Hedge && ask.call.hedging != Hedging::Anywhere && !replica.nature.withdraws() {
            return Err(Refusal::KeepsJobs);
        }
        slot.health.admits(self.settings.slow_start, draw, !ask.call.again(), ask.now)?;
        if let Some(until) = ask.call.tenant.as_ref().and_then(|tenant| slot.shares.until(tenant, ask.now)) {
            return Err(Refusal::OverShare { until });
        }
        if !slot.limit.admits(slot.in_flight) {
            return Err(Refusal::Full { limit: slot.limit.now() });
        }
        if ask.tried.contains(&id) { Err(Refusal::Tried) } else { Ok(()) }
    }

    fn settle(&mut self, ask: &Ask<'_>, found: &Found, passed: &[(u32, f32)]) -> (Option<ReplicaId>, bool) {
        let mut random = self.random.clone();
        let picked = self.pick(ask, passed, || random.bits());
        self.random = random;
        let last_resort = picked.is_none();
        let slot = picked.or_else(|| found.last_resort(ask));
        let id = slot.and_then(|slot| {
            let generation = self.slots.get(slot as usize)?.generation;
            Some(ReplicaId { slot, generation })
        });
        (id, last_resort && id.is_some())
    }

    /// Picks among those who passed, by the policy.
    fn pick(&self, ask: &Ask<'_>, passed: &[(u32, f32)], mut bits: impl FnMut() -> u64) -> Option<u32> {
        let first = ask.purpose == Purpose::First;
        let special = match self.settings.policy {
            Policy::Fastest => None,
            Policy::Cheapest { p99 } if first => self.cheapest(passed, p99),
            Policy::LocalFirst if first => self.local(passed),
            Policy::Weights => self.weighted(passed, bits()),
            _ => None,
        };
        special.or_else(|| self.fastest(passed, bits))
    }

    /// Among those as good as the best: the cheapest, and of several of these the better of two. Of many only some are
    /// compared.
    fn fastest(&self, passed: &[(u32, f32)], mut bits: impl FnMut() -> u64) -> Option<u32> {
        let mut drawn = [(0, 0.0); DRAWN];
        let passed = if passed.len() > ALL {
            for place in &mut drawn {
                let index = ((u128::from(bits()) * passed.len() as u128) >> 64) as usize;
                *place = passed.get(index).copied()?;
            }
            &drawn
        } else {
            passed
        };
        let best = passed.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
        if passed.len() == 1 {
            return Some(best.0);
        }
        let within = best.1 * BAND.0 + BAND.1;
        let (mut lowest, mut equals, mut two) = (f64::INFINITY, 0u64, [best; 2]);
        for &(index, score) in passed.iter().filter(|(_, score)| *score <= within) {
            let price = self.price(index);
            if price < lowest {
                (lowest, equals) = (price, 0);
            }
            if price <= lowest {
                // Two of the equals, each equally likely.
                equals += 1;
                if equals == 1 {
                    two = [(index, score); 2];
                } else {
                    let random = bits();
                    for (place, draw) in two.iter_mut().zip([random & 0xffff_ffff, random >> 32]) {
                        if (draw * equals) >> 32 == 0 {
                            *place = (index, score);
                        }
                    }
                }
            }
        }
        Some(if two[0].1 <= two[1].1 { two[0].0 } else { two[1].0 })
    }

    fn cheapest(&self, passed: &[(u32, f32)], p99: Nanos) -> Option<u32> {
        let keeps = |(index, score): &(u32, f32)| {
            *score <= p99 as f32 && self.terms.get(*index as usize).is_some_and(|terms| terms.p99 <= p99)
        };
        let cost = |(index, score): &(u32, f32)| (self.price(*index), *score);
        let cheaper = |a: &(f64, f32), b: &(f64, f32)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
        passed.iter().filter(|one| keeps(one)).min_by(|a, b| cheaper(&cost(a), &cost(b))).map(|one| one.0)
    }

    fn local(&self, passed: &[(u32, f32)]) -> Option<u32> {
        let best = passed.iter().map(|one| one.1).min_by(f32::total_cmp)?;
        let here = |index: u32| self.terms.get(index as usize).is_some_and(|terms| terms.local);
        let near = |score: f32| score <= best * LOCAL_WORSE.0 + LOCAL_WORSE.1;
        passed.iter().find(|(index, score)| here(*index) && near(*score)).map(|one| one.0)
    }

    fn weighted(&self, passed: &[(u32, f32)], bits: u64) -> Option<u32> {
        let weight = |index: u32| self.terms.get(index as usize).map_or(0, |terms| u64::from(terms.weight));
        let total: u64 = passed.iter().map(|(index, _)| weight(*index)).sum();
        let mut at = ((u128::from(bits) * u128::from(total)) >> 64) as u64;
        passed.iter().find_map(|(index, _)| {
            let weight = weight(*index);
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit.then_some(*index)
        })
    }

    /// What a request costs at the replica of this slot.
    fn price(&self, index: u32) -> f64 {
        self.terms.get(index as usize).map_or(f64::INFINITY, |terms| terms.price(self.answer_bytes))
    }
}

impl Shown {
    /// Keeps one, if there is room. Whether there is room for another.
    fn keep(&mut self, considered: Considered) -> bool {
        if let Some(place) = self.places.get_mut(self.count) {
            *place = Some(considered);
            self.count += 1;
        }
        self.count < SHOWN
    }
}

impl Found {
    /// Notes a replica that did not pass.
    fn note(&mut self, refusal: Refusal, id: ReplicaId, ask: &Ask<'_>, score: f32) {
        let tried = ask.tried.contains(&id);
        let nobody = &mut self.nobody;
        match refusal {
            Refusal::Law(breach) => nobody.breach = nobody.breach.or(Some(breach)),
            Refusal::RetryAfter { until } | Refusal::OverShare { until } => {
                nobody.overloaded = true;
                nobody.retry_at = Some(nobody.retry_at.map_or(until, |at| at.min(until)));
            }
            // Whenever one of its requests ends.
            Refusal::Full { .. } => (nobody.overloaded, nobody.retry_at) = (true, Some(ask.now)),
            Refusal::Tried => nobody.tried = true,
            _ => {}
        }
        nobody.lawful |= !matches!(refusal, Refusal::Law(_));
        let rank = match refusal {
            Refusal::Warming { .. } => u8::from(tried) * 2,
            Refusal::Ejected { .. } => 1 + u8::from(tried) * 2,
            Refusal::RetryAfter { .. } | Refusal::OverShare { .. } | Refusal::Full { .. } | Refusal::Tried => {
                self.all_wrong = false;
                return;
            }
            Refusal::Wrong => u8::from(tried),
            _ => return,
        };
        let this = Last { rank, slot: id.slot, score };
        let place = if matches!(refusal, Refusal::Wrong) {
            &mut self.wrong
        } else {
            self.all_wrong = false;
            &mut self.last
        };
        if place.is_none_or(|last| (this.rank, this.score) < (last.rank, last.score)) {
            *place = Some(this);
        }
    }

    /// Who is asked although nobody passed: ejection never empties the set. A hedge is not worth that. Replicas that
    /// answered golden inputs wrongly are asked only when all did, for then it is the input that is suspect.
    fn last_resort(&self, ask: &Ask<'_>) -> Option<u32> {
        // One that is well and was tried is better than one that is out.
        let last = if self.all_wrong { self.wrong } else { self.last.filter(|l| l.rank == 0 || !self.nobody.tried) };
        let first_try = |last: &Last| last.rank == 0 || ask.purpose != Purpose::Hedge && last.rank < 2;
        last.filter(first_try).map(|last| last.slot)
    }
}
