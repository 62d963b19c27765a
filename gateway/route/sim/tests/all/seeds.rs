//! Random fleets, random rules, random faults.

use std::sync::atomic::{AtomicUsize, Ordering};

use windrose_route::Reason;
use windrose_route_sim::{run, scenario};

use crate::each;

/// Whether a request may have failed: one lawful site is well all the time, so only what may not be repeated.
fn excused(one: &windrose_route_sim::Outcome) -> bool {
    match one.failed {
        Some(Reason::Failed | Reason::Deadline | Reason::Overloaded | Reason::Budget) => !one.repeatable,
        Some(Reason::Law(_) | Reason::NoReplica) => false,
        None => true,
    }
}

#[test]
fn the_law_and_the_promise_hold_over_three_thousand_seeds() {
    let asked = AtomicUsize::new(0);
    each(100_000..103_000, |seed| {
        let record = run(scenario::random(seed));
        assert_eq!((record.forbidden, record.twice), (0, 0), "seed {seed}");
        assert_eq!(record.outcomes.len() as u64, record.asked, "seed {seed}: exactly one answer for each");
        for one in &record.outcomes {
            assert!(excused(one), "seed {seed}: {one:?}");
        }
        asked.fetch_add(record.outcomes.len(), Ordering::Relaxed);
    });
    assert!(asked.into_inner() > 2_000_000);
}

#[test]
fn where_nobody_is_lawful_nothing_is_sent() {
    use std::sync::Arc;
    use windrose_route::{Jurisdiction, Rules, Source};
    each(200_000..200_050, |seed| {
        let mut plan = scenario::random(seed);
        let nowhere = vec![Jurisdiction::new("nowhere").unwrap()];
        plan.rules = vec![Arc::new(Rules::none().and(Source::Request, Some(nowhere), Vec::new()))];
        let record = run(plan);
        assert_eq!((record.sent, record.executed), (0, 0), "seed {seed}");
        assert!(record.outcomes.iter().all(|one| matches!(one.failed, Some(Reason::Law(_)))), "seed {seed}");
    });
}
