//! Budgets: extra attempts as a share of requests, with a reserve for the start of an outage.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::settings::Settings;
use crate::time::{Nanos, SECOND};

/// What a budget holds at least, so that a quiet model survives an outage as well.
const LEAST_RESERVE: f64 = 16.0;

/// Over what time the rate of requests is averaged.
const RATE_WINDOW: f64 = 5.0 * SECOND as f64;

/// Over what time a budget forgets that it spent more than it may hold now, after a fall of traffic. Longer than the
/// rate's window, so that what random arrivals raise the rate by for a moment does not become a larger share.
const FORGIVEN: f64 = 4.0 * RATE_WINDOW;

/// Extra attempts: each request allows its share of one. Beyond that as many may be taken at once as requests arrive in
/// the reserve's time, so that each of those may be tried once more before the ejection of what failed has taken effect.
///
/// What was spent is counted, and not what is left: the reserve follows the rate of the requests, and a rise of it must
/// neither come late nor be spent twice.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    share: f64,
    reserve: f64,
    spent: f64,
    capacity: f64,
    /// Requests within the window, older ones counting less; steady.
    recent: f64,
    /// Requests within the reserve's time; follows a rise at once.
    latest: f64,
    last: Nanos,
}

/// The budgets of one model. The routers of its versions share them, so that a new version begins with what is left and not
/// with a reserve of its own; the times that those routers are told must count from one moment.
#[derive(Clone, Debug)]
pub struct Budgets(Arc<Mutex<Both>>);

/// Both kinds of extra attempts.
#[derive(Debug)]
struct Both {
    retries: Budget,
    hedges: Budget,
}

// === impl Budgets ===

impl Budgets {
    pub(crate) fn new(settings: &Settings) -> Budgets {
        Budgets(Arc::new(Mutex::new(Both::new(settings))))
    }

    /// Other shares. Nothing changes where they are the same.
    pub(crate) fn configure(&self, settings: &Settings) {
        let (mut both, other) = (self.both(), Both::new(settings));
        let terms = |both: &Both| [&both.retries, &both.hedges].map(|budget| (budget.share, budget.reserve));
        if terms(&both) != terms(&other) {
            *both = other;
        }
    }

    /// A request is sent for the first time.
    pub(crate) fn request(&self, now: Nanos) {
        let mut both = self.both();
        both.retries.request(now);
        both.hedges.request(now);
    }

    /// Takes a retry, if there is one.
    pub(crate) fn take_retry(&self) -> bool {
        self.both().retries.take()
    }

    /// Puts so many retries back.
    pub(crate) fn give_back_retries(&self, count: u8) {
        let mut both = self.both();
        both.retries.spent = (both.retries.spent - f64::from(count)).max(0.0);
    }

    /// Takes a hedge, if there is one.
    pub(crate) fn take_hedge(&self) -> bool {
        self.both().hedges.take()
    }

    /// What the merely late leave of the retries for that which fails for certain.
    pub(crate) fn kept_retries(&self) -> f64 {
        self.both().retries.kept()
    }

    /// How many retries and hedges are left.
    pub(crate) fn left(&self) -> (f64, f64) {
        let both = self.both();
        (both.retries.left(), both.hedges.left())
    }

    /// Held for a few instructions.
    fn both(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Both {
    fn new(settings: &Settings) -> Both {
        Both {
            retries: Budget::new(settings.retries, settings.reserve),
            hedges: Budget::new(settings.hedges, settings.reserve),
        }
    }
}

// === impl Budget ===

impl Budget {
    pub(crate) fn new(share: f64, reserve: Nanos) -> Budget {
        let reserve = reserve as f64;
        Budget { share, reserve, spent: 0.0, capacity: LEAST_RESERVE, recent: 0.0, latest: 0.0, last: 0 }
    }

    /// A request is sent for the first time.
    pub(crate) fn request(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.last) as f64;
        // What is left of something that is forgotten over a time.
        let kept = |over: f64| over / (over + passed).max(1.0);
        self.last = now;
        self.recent = self.recent * kept(RATE_WINDOW) + 1.0;
        self.latest = self.latest * kept(self.reserve) + 1.0;
        self.capacity = (self.recent / RATE_WINDOW * self.reserve).max(LEAST_RESERVE);
        if self.reserve > 0.0 {
            self.capacity = self.capacity.max(self.latest);
        }
        let too_much = (self.spent - self.capacity).max(0.0);
        self.spent = (self.spent - too_much * (1.0 - kept(FORGIVEN)) - self.share).max(0.0);
    }

    /// Takes one extra attempt, if there is one.
    pub(crate) fn take(&mut self) -> bool {
        let there = self.left() >= 1.0;
        if there {
            self.spent += 1.0;
        }
        there
    }

    /// What the merely late leave for that which fails for certain: half of the reserve.
    pub(crate) fn kept(&self) -> f64 {
        self.capacity / 2.0
    }

    /// How many extra attempts are left.
    pub(crate) fn left(&self) -> f64 {
        (self.capacity - self.spent).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::time::MILLISECOND;

    #[test]
    fn the_reserve_carries_every_request_of_its_time_and_no_more() {
        let mut budget = Budget::new(0.1, 300 * MILLISECOND);
        let mut now = 0;
        for _ in 0..20_000 {
            now += 2 * MILLISECOND;
            budget.request(now);
        }
        let mut carried = 0;
        for _ in 0..5_000 {
            now += 2 * MILLISECOND;
            budget.request(now);
            carried += u32::from(budget.take());
        }
        // 150 requests in 300 ms; then a tenth of the requests.
        let least = 150 + 5_000 / 10 - 10;
        assert!((least..=least + 30).contains(&carried), "{carried}");
    }

    /// Random arrivals at a rate, for a time; what `each` takes at each is summed.
    fn arrive(budget: &mut Budget, random: &mut Random, now: &mut Nanos, rate: f64, seconds: f64) -> (u32, u32) {
        let end = *now + (seconds * SECOND as f64) as Nanos;
        let (mut requests, mut taken) = (0, 0);
        while *now < end {
            *now += (-(1.0 - random.share()).ln() / rate * SECOND as f64) as Nanos;
            budget.request(*now);
            requests += 1;
            taken += u32::from(budget.take());
        }
        (requests, taken)
    }

    #[test]
    fn an_outage_that_lasts_costs_the_share_and_no_more() {
        for (seed, rate) in [(1, 3.0), (2, 50.0), (3, 500.0), (4, 3_000.0)] {
            let (mut budget, mut random, mut now) = (Budget::new(0.1, 300 * MILLISECOND), Random::seeded(seed), 0);
            arrive(&mut budget, &mut random, &mut now, rate, 20.0);
            let (requests, taken) = arrive(&mut budget, &mut random, &mut now, rate, 20_000.0 / rate);
            let share = f64::from(taken) / f64::from(requests);
            assert!((0.09..=0.11).contains(&share), "{rate} a second: {share}");
        }
    }

    #[test]
    fn the_reserve_is_there_a_second_after_traffic_rose() {
        for seed in 0..100 {
            let (mut budget, mut now) = (Budget::new(0.1, 300 * MILLISECOND), 0);
            let mut random = Random::seeded(seed);
            let mut request = |budget: &mut Budget, rate: f64| {
                now += (-(1.0 - random.share()).ln() / rate * SECOND as f64) as Nanos;
                budget.request(now);
            };
            (0..20).for_each(|_| request(&mut budget, 10.0));
            (0..500).for_each(|_| request(&mut budget, 500.0));
            // 150 arrive in 300 ms; random arrivals vary by a few more than their root.
            assert!(budget.left() >= 110.0, "seed {seed}: {}", budget.left());
            while budget.take() {}
            // Traffic fell: what was spent at the higher rate is forgiven, not at once and not never.
            (0..600).for_each(|_| request(&mut budget, 10.0));
            assert!(budget.left() >= 1.0, "seed {seed}: {}", budget.left());
        }
    }

    #[test]
    fn a_quiet_model_has_a_reserve_too() {
        let mut budget = Budget::new(0.1, 300 * MILLISECOND);
        budget.request(SECOND);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 16);
        assert!(budget.left() < 1.0);
    }
}
