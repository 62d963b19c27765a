//! What buys retries, and what they are spent on.

use windrose_route::{Action, Attempts, Call, Event, MILLISECOND, Nanos, Reason, Router, SECOND, Verdict};

use crate::fleet::{bound, call, four, name, router, settings};

const MS: Nanos = MILLISECOND;

/// Sends a request on until it ends, `verdict` telling what each site says; whether it has an answer, and how many attempts.
fn ends(router: &mut Router, now: &mut Nanos, verdict: impl Fn(&str) -> Verdict) -> (bool, u8) {
    let mut attempts = Attempts::new(call(*now));
    loop {
        match attempts.poll(router, *now) {
            Action::Send { attempt, replica, .. } => {
                *now += 2 * MS;
                let verdict = verdict(&name(router, replica));
                attempts.on(router, attempt, Event::Head(verdict), *now);
                attempts.on(router, attempt, Event::Whole { bytes: 1 }, *now);
            }
            Action::Wait { until } => *now = until,
            Action::Finish { .. } => return (true, attempts.count()),
            Action::Fail(failure) => return (false, failure.attempts),
            other => panic!("{other:?}"),
        }
    }
}

fn answers(router: &mut Router, now: &mut Nanos, count: u32) {
    for _ in 0..count {
        assert_eq!(ends(router, now, |_| Verdict::Answer), (true, 1));
    }
}

#[test]
fn what_nothing_is_sent_for_buys_no_retries() {
    let mut router = router(four(), settings());
    let fails = |router: &mut Router, call: Call, now| match Attempts::new(call).poll(router, now) {
        Action::Fail(failure) => (failure.reason, failure.attempts),
        other => panic!("{other:?}"),
    };
    let before = router.budgets();
    for now in (0..1_000).map(|n| n * MS) {
        assert!(matches!(fails(&mut router, bound(now, &["ch"], &[]), now), (Reason::Law(_), 0)));
    }
    assert_eq!(router.budgets(), before);
    // Nor what is shed here, since every site asked for time.
    let mut now = SECOND;
    let busy = Verdict::Overloaded { until: Some(60 * SECOND) };
    ends(&mut router, &mut now, |_| busy);
    let before = router.budgets();
    for now in (0..1_000).map(|n| now + n * MS) {
        assert_eq!(fails(&mut router, call(now), now), (Reason::Overloaded, 0));
    }
    assert_eq!(router.budgets(), before);
}

#[test]
fn an_input_that_graphs_fail_at_is_tried_at_two_replicas_and_takes_no_others_retries() {
    let (mut router, mut now) = (router(four(), settings()), 0);
    for _ in 0..100 {
        answers(&mut router, &mut now, 5);
        assert_eq!(ends(&mut router, &mut now, |_| Verdict::Graph), (false, 2));
    }
    assert!(router.budgets().0 > 15.0, "{:?}", router.budgets());
    assert_eq!(router.take_changes(), []);
}

#[test]
fn graphs_that_fail_at_everything_are_no_inputs_fault() {
    let (mut router, mut now) = (router(four(), settings()), 0);
    answers(&mut router, &mut now, 20);
    let broken = |site: &str| if site == "a/1" || site == "b/1" { Verdict::Graph } else { Verdict::Answer };
    let lost = (0..50).filter(|_| !ends(&mut router, &mut now, broken).0).count();
    // The first looks like an input's doing. From then on nobody has seen them answer.
    assert!(lost <= 1, "{lost} of 50");
    assert_eq!(ends(&mut router, &mut now, broken), (true, 1), "they are still asked first");
}

#[test]
fn graphs_that_fail_everywhere_are_tried_within_the_budget() {
    let (mut router, mut now, mut extra) = (router(four(), settings()), 0, 0);
    for _ in 0..1_000 {
        let mut attempts = Attempts::new(call(now));
        loop {
            match attempts.poll(&mut router, now) {
                Action::Send { attempt, .. } => {
                    extra += u32::from(attempt.0 > 0);
                    attempts.on(&mut router, attempt, Event::Head(Verdict::Graph), now);
                }
                Action::Fail(_) => break,
                Action::Wait { .. } => break attempts.abandon(&mut router, now),
                other => panic!("{other:?}"),
            }
        }
        now += 10 * MS;
    }
    assert!((100..=160).contains(&extra), "a tenth of 1000, and the reserve: {extra}");
}

#[test]
fn what_another_replica_knows_to_be_wrong_takes_no_others_retries() {
    let (mut router, mut now) = (router(four(), settings()), 0);
    for _ in 0..200 {
        let near = |site: &str| if site == "a/1" { Verdict::Failed } else { Verdict::Rejected };
        assert_eq!(ends(&mut router, &mut now, near), (true, 2));
    }
    assert!(router.budgets().0 > 15.0, "{:?}", router.budgets());
}
