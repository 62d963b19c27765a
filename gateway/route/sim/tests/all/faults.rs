//! The thirteen faults of the proof at default settings, with its bounds.

use windrose_route::{MILLISECOND, Nanos, SECOND};
use windrose_route_sim::scenario::{self, FAULT};
use windrose_route_sim::{Record, run};

use crate::each;

const MS: Nanos = MILLISECOND;
/// The round trip of the site that is next when the nearest fails.
const NEXT: Nanos = 30 * MS;

fn all(number: usize, check: impl Fn(u64, &Record) + Sync) {
    each(52_000..52_020, |seed| {
        let record = run(scenario::fault(number, seed).unwrap().1);
        assert_eq!(record.failures(), 0, "fault {number}, seed {seed}");
        assert_eq!((record.twice, record.outcomes.len() as u64), (0, record.asked), "fault {number}, seed {seed}");
        check(seed, &record);
    });
}

#[test]
fn no_request_fails_in_any_of_the_thirteen() {
    for number in 1..=13 {
        all(number, |seed, record| {
            let wrong = record.outcomes.iter().filter(|one| one.wrong).map(|one| one.at + one.took).max();
            match number {
                8 => assert!(wrong.unwrap_or(0) <= FAULT.0 + 2 * SECOND, "fault {number}, seed {seed}"),
                _ => assert_eq!(wrong, None, "fault {number}, seed {seed}"),
            }
        });
    }
    assert!(scenario::fault(14, 0).is_none());
}

#[test]
fn no_request_fails_where_a_site_dies_as_traffic_begins() {
    each(53_000..53_200, |seed| {
        let record = run(scenario::young_and_crowded(seed));
        assert_eq!(record.failures(), 0, "seed {seed}");
        assert_eq!((record.twice, record.outcomes.len() as u64), (0, record.asked), "seed {seed}");
    });
}

#[test]
fn the_first_seven_stay_within_the_next_sites_round_trip() {
    for number in 1..=7 {
        all(number, |seed, record| {
            let (p99, slowest) = (record.quantile(0.99, FAULT.0, FAULT.1), record.quantile(1.0, FAULT.0, FAULT.1));
            assert!(p99 <= NEXT + 20 * MS, "fault {number}, seed {seed}: p99 {p99}");
            assert!(slowest <= 3 * NEXT + 50 * MS, "fault {number}, seed {seed}: slowest {slowest}");
            // Back to normal 300 ms after the fault began: not one in a hundred is slower than the next site.
            let settled = record.quantile(0.99, FAULT.0 + 300 * MS, FAULT.1);
            assert!(settled <= NEXT + 20 * MS, "fault {number}, seed {seed}: settled {settled}");
            let from = FAULT.1 + 2 * SECOND;
            let later: Vec<_> = record.outcomes.iter().filter(|one| one.at >= from).collect();
            let near = later.iter().filter(|one| one.site == Some(0)).count();
            assert!(near as f64 > 0.95 * later.len() as f64, "fault {number}, seed {seed}: {near} of {}", later.len());
        });
    }
}

#[test]
fn a_quiet_fleet_finds_back_to_a_site_that_is_well_again() {
    // Two requests a second at each gateway, and no probes: only these can find out.
    for number in [2, 3, 5] {
        each(54_000..54_100, |seed| {
            let mut plan = scenario::fault(number, seed).unwrap().1;
            (plan.rate, plan.probes, plan.until) = (2.0, None, 24 * SECOND);
            let record = run(plan);
            assert_eq!(record.failures(), 0, "fault {number}, seed {seed}");
            let back = record.outcomes.iter().filter(|one| one.at >= FAULT.1 && one.site == Some(0));
            let back = back.map(|one| one.at - FAULT.1).min();
            assert!(back.is_some_and(|back| back < 5 * SECOND), "fault {number}, seed {seed}: {back:?}");
        });
    }
}

#[test]
fn only_the_site_that_fails_is_ejected() {
    // A far site loses every race that it runs as a hedge; that is no fault.
    for number in 1..=8 {
        all(number, |seed, record| {
            let others: Vec<_> = record.ejections.iter().filter(|one| one.1 != 0).collect();
            assert!(others.is_empty(), "fault {number}, seed {seed}: {others:?}");
            assert!(record.ejections.iter().any(|one| one.1 == 0), "fault {number}, seed {seed}");
        });
    }
}
