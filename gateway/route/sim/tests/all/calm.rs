//! Nothing is wrong.

use windrose_route::{MILLISECOND, SECOND};
use windrose_route_sim::{run, scenario};

use crate::each;

#[test]
fn in_calm_nothing_fails_little_runs_twice_and_nobody_is_ejected() {
    each(1_000..1_040, |seed| {
        let record = run(scenario::four(seed));
        assert_eq!(record.outcomes.len() as u64, record.asked, "seed {seed}");
        assert_eq!((record.failures(), record.twice, record.forbidden), (0, 0, 0), "seed {seed}");
        assert!(record.extra_work() < 0.05, "seed {seed}: {}", record.extra_work());
        assert_eq!(record.ejections, [], "seed {seed}");
        let near = record.outcomes.iter().filter(|one| one.site == Some(0)).count();
        assert!(near as f64 > record.outcomes.len() as f64 * 0.98, "seed {seed}: {near}");
        // The nearest site's round trip is 2 ms and an inference 4 ms.
        assert!(record.quantile(0.5, SECOND, 18 * SECOND) < 8 * MILLISECOND, "seed {seed}");
    });
}

#[test]
fn little_runs_twice_in_the_first_second_of_traffic_too() {
    for rate in [250.0, 500.0, 700.0] {
        each(1_100..1_140, |seed| {
            let mut plan = scenario::four(seed);
            (plan.rate, plan.until) = (rate, SECOND);
            let record = run(plan);
            assert!(record.extra_work() < 0.05, "{rate} a second, seed {seed}: {}", record.extra_work());
            assert_eq!(record.failures(), 0, "{rate} a second, seed {seed}");
        });
    }
}

#[test]
fn one_seed_is_one_run() {
    for number in [1, 8, 11] {
        let plan = || scenario::fault(number, 5).unwrap().1;
        assert_eq!(run(plan()).outcomes, run(plan()).outcomes);
    }
}
