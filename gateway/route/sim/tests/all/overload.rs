//! More than all sites together can do.

use windrose_route::{Reason, SECOND};
use windrose_route_sim::{Plan, run, scenario};

use crate::each;

/// Four sites that can do 100 a second each, asked for 200 in all, and for 1,200 in between.
fn storm(seed: u64) -> Plan {
    let mut plan = scenario::four(seed);
    for model in &mut plan.sites {
        (model.parallel, model.service, model.queue) = (2, 20_000_000, 32);
    }
    plan.rate = 100.0;
    plan.surges = vec![(4 * SECOND, 10 * SECOND, 6.0)];
    plan.until = 20 * SECOND;
    plan
}

#[test]
fn overload_is_shed_retries_are_bounded_and_it_ends_with_the_surge() {
    each(3_000..3_020, |seed| {
        let plan = storm(seed);
        let settings = plan.settings.clone();
        let record = run(plan);
        let within = |from: u64, to: u64| {
            let came = move |one: &&windrose_route_sim::Outcome| (from * SECOND..to * SECOND).contains(&one.at);
            let all = record.outcomes.iter().filter(came).count();
            (all, record.outcomes.iter().filter(came).filter(|one| one.failed.is_none()).count())
        };
        // 400 a second are possible; most of that must come out while three times as much goes in.
        let (asked, answered) = within(4, 10);
        assert!(asked > 6_000, "seed {seed}");
        assert!(answered as f64 > 6.0 * 400.0 * 0.7, "seed {seed}: {answered} of {asked}");
        // Budgets: their shares of the requests that were sent at all, and for each gateway the reserve of 300 ms of a
        // rate of 600. What is shed before it is sent buys nothing.
        let begun = record.outcomes.iter().filter(|one| one.attempts > 0).count();
        assert!(begun < record.outcomes.len(), "seed {seed}: nothing was shed");
        let reserve = 2.0 * 2.0 * 0.3 * 600.0;
        let bound = begun as f64 * (1.0 + settings.retries + settings.hedges) + reserve;
        assert!((record.sent as f64) < bound, "seed {seed}: {} for {begun} of {}", record.sent, record.asked);
        // No request waits for its deadline: what cannot be done is refused.
        let late = record.outcomes.iter().filter(|one| one.failed == Some(Reason::Deadline)).count();
        assert_eq!(late, 0, "seed {seed}");
        let (asked, answered) = within(13, 20);
        assert_eq!(asked, answered, "seed {seed}: it did not end with the surge");
    });
}
