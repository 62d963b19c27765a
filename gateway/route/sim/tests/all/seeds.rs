//! Random fleets, random rules, random faults.

use std::sync::atomic::{AtomicUsize, Ordering};

use windrose_route::Reason;
use windrose_route_sim::{run, scenario};

use crate::each;

/// Whether the machine was entitled to give up: the request may not be repeated, or the budget is spent.
fn excused(one: &windrose_route_sim::Outcome) -> bool {
    match one.failed {
        Some(Reason::Budget) => one.budgets.0 < 1.0,
        Some(Reason::Failed | Reason::Deadline) => !one.repeatable || one.budgets.0 < 1.0,
        Some(Reason::Overloaded) => !one.repeatable || one.budgets.0 < 1.0,
        Some(Reason::Law(_) | Reason::NoReplica) => false,
        None => true,
    }
}

#[test]
fn the_law_and_the_promise_hold_over_three_thousand_seeds() {
    let (failed, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    each(100_000..103_000, |seed| {
        let record = run(scenario::random(seed));
        assert_eq!((record.forbidden, record.twice), (0, 0), "seed {seed}");
        assert_eq!(record.outcomes.len() as u64, record.asked, "seed {seed}: exactly one answer for each");
        for one in &record.outcomes {
            // One lawful site is well all the time, so only what may not be repeated may fail.
            assert!(excused(one), "seed {seed}: {one:?}");
        }
        failed.fetch_add(
            record.outcomes.iter().filter(|o| o.failed.is_some() && o.repeatable).count(),
            Ordering::Relaxed,
        );
        asked.fetch_add(record.outcomes.len(), Ordering::Relaxed);
    });
    let (failed, asked) = (failed.into_inner(), asked.into_inner());
    assert!(asked > 2_000_000);
    // The budget has to be spent for one to fail, and that is rare.
    assert!(failed * 10_000 < asked, "{failed} of {asked}");
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
