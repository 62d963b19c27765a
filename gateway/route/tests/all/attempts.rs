//! One request at a time: what leads to which step.

use windrose_route::{
    Action, AttemptId, Attempts, Call, Event, Hedging, MILLISECOND, NEVER, Nanos, Nature, Purpose, Reason, Refusal,
    Replica, Router, SECOND, Settings, Verdict,
};

use crate::fleet::{bound, call, foreign, four, name, peer, router, settings};

const MS: Nanos = MILLISECOND;
const OK: Event = Event::Head(Verdict::Answer);
const WHOLE: Event = Event::Whole { bytes: 200 };
const ERROR: Event = Event::Head(Verdict::Failed);

/// Polls for a send, and gives the attempt and the site's name.
fn sent(attempts: &mut Attempts, router: &mut Router, now: Nanos) -> (AttemptId, String) {
    match attempts.poll(router, now) {
        Action::Send { attempt, replica, .. } => (attempt, name(router, replica)),
        other => panic!("{other:?}"),
    }
}

fn waits(attempts: &mut Attempts, router: &mut Router, now: Nanos) -> Nanos {
    match attempts.poll(router, now) {
        Action::Wait { until } => until,
        other => panic!("{other:?}"),
    }
}

fn fails(attempts: &mut Attempts, router: &mut Router, now: Nanos) -> Reason {
    match attempts.poll(router, now) {
        Action::Fail(failure) => {
            assert_eq!(attempts.poll(router, now), Action::Done);
            failure.reason
        }
        other => panic!("{other:?}"),
    }
}

/// Answers `count` requests of the nearest site, each after `took`; gives the time after.
fn calm(router: &mut Router, count: usize, took: Nanos, mut now: Nanos) -> Nanos {
    for _ in 0..count {
        let mut attempts = Attempts::new(call(now));
        let (attempt, _) = sent(&mut attempts, router, now);
        attempts.on(router, attempt, OK, now + took);
        attempts.on(router, attempt, WHOLE, now + took);
        assert_eq!(attempts.poll(router, now + took), Action::Finish { attempt });
        assert_eq!(attempts.poll(router, now + took), Action::Done);
        now += took;
    }
    now
}

#[test]
fn failures_before_an_answer_are_retried_at_once_elsewhere() {
    for failure in [Event::ConnectFailed, Event::Refused, Event::Reset, ERROR, Event::Cut, Event::TimedOut] {
        let mut router = router(four(), settings());
        let mut attempts = Attempts::new(call(0));
        let (first, site) = sent(&mut attempts, &mut router, 0);
        assert_eq!(site, "a/1");
        if failure == Event::Cut {
            attempts.on(&mut router, first, OK, 2 * MS);
        }
        attempts.on(&mut router, first, failure, 3 * MS);
        let (second, site) = sent(&mut attempts, &mut router, 3 * MS);
        assert_eq!(site, "b/1", "{failure:?}");
        attempts.on(&mut router, second, OK, 33 * MS);
        attempts.on(&mut router, second, WHOLE, 33 * MS);
        assert_eq!(attempts.poll(&mut router, 33 * MS), Action::Finish { attempt: second });
        assert_eq!(attempts.poll(&mut router, 33 * MS), Action::Done);
        // Late events change nothing.
        attempts.on(&mut router, first, WHOLE, 34 * MS);
        assert_eq!(attempts.poll(&mut router, 34 * MS), Action::Done);
        for id in router.ids().collect::<Vec<_>>() {
            assert_eq!(router.standing(id).map(|s| s.in_flight), Some(0), "{failure:?}");
        }
    }
}

#[test]
fn what_cannot_be_repeated_is_sent_again_only_when_nothing_was_sent() {
    let once = |repeatable, replayable| Call { repeatable, replayable, ..call(0) };
    let cases = [
        (once(false, true), Event::ConnectFailed, true),
        (once(true, false), Event::ConnectFailed, true),
        (once(false, false), Event::ConnectFailed, true),
        (once(false, true), Event::Refused, true),
        (once(true, false), Event::Refused, false),
        (once(false, true), Event::Head(Verdict::NotHere), true),
        (once(false, true), Event::Reset, false),
        (once(true, false), Event::Reset, false),
        (once(false, true), ERROR, false),
        (once(false, true), Event::Cut, false),
        (once(false, true), Event::Head(Verdict::Overloaded { until: None }), false),
        (once(true, false), ERROR, false),
    ];
    for (call, event, again) in cases {
        let mut router = router(four(), settings());
        let mut attempts = Attempts::new(call.clone());
        let (first, _) = sent(&mut attempts, &mut router, 0);
        assert_eq!(waits(&mut attempts, &mut router, 0), call.deadline, "nothing is hedged");
        attempts.on(&mut router, first, event, MS);
        let goes_on = matches!(attempts.poll(&mut router, MS), Action::Send { .. });
        assert_eq!(goes_on, again, "{event:?} {call:?}");
    }
}

#[test]
fn what_is_not_there_ran_nothing_at_a_gateway_and_perhaps_something_at_another_server() {
    let cases = [
        (Nature::Local, false, true, true),
        (Nature::Peer, false, true, true),
        (Nature::Peer, true, false, false),
        (Nature::Foreign, false, true, false),
        (Nature::Foreign, true, false, false),
        (Nature::Foreign, true, true, true),
    ];
    for (nature, repeatable, replayable, again) in cases {
        let near = Replica { nature, ..peer("a/1", 2 * MS, "eu") };
        let mut router = router(vec![near, peer("b/1", 30 * MS, "eu")], settings());
        let mut attempts = Attempts::new(Call { repeatable, replayable, ..call(0) });
        let (first, site) = sent(&mut attempts, &mut router, 0);
        assert_eq!(site, "a/1");
        attempts.on(&mut router, first, Event::Head(Verdict::NotHere), MS);
        match attempts.poll(&mut router, MS) {
            Action::Send { .. } => assert!(again, "{nature:?} {repeatable} {replayable}"),
            // The client gets that server's own answer.
            Action::Fail(failure) => {
                assert!(!again, "{nature:?} {repeatable} {replayable}");
                assert_eq!((failure.reason, failure.attempt), (Reason::Failed, Some(first)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_late_answer_is_hedged_and_the_loser_is_cancelled() {
    let mut router = router(four(), settings());
    let now = calm(&mut router, 100, 2 * MS, 0);
    let mut attempts = Attempts::new(call(now));
    let (first, site) = sent(&mut attempts, &mut router, now);
    assert_eq!(site, "a/1");
    let late = waits(&mut attempts, &mut router, now);
    assert!((2 * MS..4 * MS).contains(&(late - now)), "{}", late - now);
    let Action::Send { attempt, replica, purpose } = attempts.poll(&mut router, late) else { panic!() };
    assert_eq!((purpose, name(&router, replica).as_str()), (Purpose::Hedge, "b/1"));
    let answered = late + 30 * MS;
    attempts.on(&mut router, attempt, OK, answered);
    attempts.on(&mut router, attempt, WHOLE, answered);
    assert_eq!(attempts.poll(&mut router, answered), Action::Cancel { attempt: first });
    assert_eq!(attempts.poll(&mut router, answered), Action::Finish { attempt });
    assert_eq!(attempts.poll(&mut router, answered), Action::Done);
}

#[test]
fn a_third_follows_when_the_hedge_is_late_as_well() {
    let mut router = router(four(), settings());
    let mut now = calm(&mut router, 100, 2 * MS, 0);
    let mut attempts = Attempts::new(call(now));
    let mut sites = Vec::new();
    while sites.len() < 3 {
        match attempts.poll(&mut router, now) {
            Action::Send { replica, .. } => sites.push(name(&router, replica)),
            Action::Wait { until } => now = until,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sites, ["a/1", "b/1", "c/1"]);
}

#[test]
fn hedges_go_only_where_a_job_can_be_withdrawn_unless_asked() {
    let fleet = || vec![peer("a/1", 2 * MS, "eu"), foreign("f/1", 30 * MS, "eu")];
    for (hedging, hedged) in [(Hedging::Withdrawable, false), (Hedging::Never, false), (Hedging::Anywhere, true)] {
        let mut router = router(fleet(), settings());
        let now = calm(&mut router, 100, 2 * MS, 0);
        let mut attempts = Attempts::new(Call { hedging, ..call(now) });
        let (first, _) = sent(&mut attempts, &mut router, now);
        let late = waits(&mut attempts, &mut router, now);
        if hedged {
            assert_eq!(sent(&mut attempts, &mut router, late).1, "f/1");
        } else {
            // It is given up later instead, and sent again.
            let given_up = waits(&mut attempts, &mut router, late);
            assert!((50 * MS..70 * MS).contains(&(given_up - now)));
            assert_eq!(sent(&mut attempts, &mut router, given_up).1, "f/1");
            assert_eq!(attempts.poll(&mut router, given_up), Action::Cancel { attempt: first });
        }
    }
}

#[test]
fn after_bytes_went_to_the_client_nothing_is_tried() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut router, 0);
    attempts.on(&mut router, first, OK, 2 * MS);
    attempts.on(&mut router, first, Event::Overflow, 2 * MS);
    assert_eq!(attempts.poll(&mut router, 2 * MS), Action::Finish { attempt: first });
    assert_eq!(waits(&mut attempts, &mut router, 2 * MS), NEVER);
    let id = attempts.replica_of(first).unwrap();
    assert_eq!(router.standing(id).unwrap().in_flight, 1);
    attempts.on(&mut router, first, Event::Cut, 20 * SECOND);
    assert_eq!(attempts.poll(&mut router, 20 * SECOND), Action::Done);
    assert_eq!(router.standing(id).unwrap().in_flight, 0);
}

#[test]
fn the_deadline_ends_everything() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(Call { hedging: Hedging::Never, repeatable: false, ..Call::until(5 * MS) });
    let (first, _) = sent(&mut attempts, &mut router, 0);
    assert_eq!(waits(&mut attempts, &mut router, 0), 5 * MS);
    assert_eq!(attempts.poll(&mut router, 5 * MS), Action::Cancel { attempt: first });
    assert_eq!(fails(&mut attempts, &mut router, 5 * MS), Reason::Deadline);
}

#[test]
fn an_abandoned_request_leaves_no_trace() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut router, 0);
    let id = attempts.replica_of(first).unwrap();
    attempts.abandon(&mut router, MS);
    attempts.abandon(&mut router, MS);
    assert_eq!(router.standing(id).unwrap().in_flight, 0);
    assert_eq!(attempts.poll(&mut router, MS), Action::Done);
    attempts.on(&mut router, first, Event::Reset, MS);
    assert_eq!(router.standing(id).unwrap().ejected, None);
}

#[test]
fn the_law_left_none_and_nothing_was_sent() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(bound(0, &["ch"], &[]));
    let reason = fails(&mut attempts, &mut router, 0);
    assert!(matches!(reason, Reason::Law(breach) if breach.to_string() == "not allowed by the manifest"));
    assert_eq!(attempts.count(), 0);
}

#[test]
fn a_retry_stays_within_the_law() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(bound(0, &["eu"], &[]));
    let (mut now, mut seen) = (0, Vec::new());
    while let action = attempts.poll(&mut router, now)
        && !matches!(action, Action::Fail(_))
    {
        match action {
            Action::Send { attempt, replica, .. } => {
                seen.push(name(&router, replica));
                attempts.on(&mut router, attempt, Event::Reset, now);
            }
            Action::Wait { until } => now = until,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), usize::from(Settings::default().attempts));
    assert!(seen.iter().all(|site| site == "a/1" || site == "b/1"), "{seen:?}");
}

#[test]
fn retries_have_a_budget_and_nothing_sent_costs_none() {
    let refuse_all = |event| {
        let mut router = router(four(), settings());
        let mut extra = 0;
        let mut reasons = Vec::new();
        for n in 0..1_000u64 {
            let now = n * 10 * MS;
            let mut attempts = Attempts::new(call(now));
            loop {
                match attempts.poll(&mut router, now) {
                    Action::Send { attempt, .. } => {
                        extra += u32::from(attempt.0 > 0);
                        attempts.on(&mut router, attempt, event, now);
                    }
                    Action::Fail(failure) => break reasons.push(failure.reason),
                    Action::Wait { .. } => break attempts.abandon(&mut router, now),
                    other => panic!("{other:?}"),
                }
            }
        }
        (extra, reasons)
    };
    let (extra, reasons) = refuse_all(ERROR);
    assert!((100..=160).contains(&extra), "a tenth of 1000, and the reserve: {extra}");
    assert!(reasons.contains(&Reason::Budget));
    assert!(refuse_all(Event::ConnectFailed).0 > 1_000);
}

#[test]
fn a_replica_that_asks_for_time_gets_it() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut router, 0);
    attempts.on(&mut router, first, Event::Head(Verdict::of(429, Some(2 * SECOND))), MS);
    assert_eq!(sent(&mut attempts, &mut router, MS).1, "b/1");
    for (at, site) in [(SECOND, "b/1"), (2 * SECOND - 1, "b/1"), (2 * SECOND, "a/1")] {
        assert_eq!(sent(&mut Attempts::new(call(at)), &mut router, at).1, site, "{at}");
    }
    // All of them: the client is told when.
    let mut alone = crate::fleet::router(vec![peer("a/1", MS, "eu")], settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut alone, 0);
    attempts.on(&mut alone, first, Event::Head(Verdict::of(503, Some(SECOND))), MS);
    let Action::Fail(failure) = attempts.poll(&mut alone, MS) else { panic!() };
    assert_eq!((failure.reason, failure.retry_at, failure.attempt), (Reason::Overloaded, Some(SECOND), Some(first)));
    // The first of several, of those alone that the law lets answer.
    let mut several = crate::fleet::router(four(), settings());
    for (site, until) in [("a/1", 9), ("b/1", 5), ("c/1", 2), ("d/1", 7)] {
        let mut attempts = Attempts::new(Call { repeatable: false, ..call(0) });
        let (first, asked) = sent(&mut attempts, &mut several, 0);
        assert_eq!(asked, site);
        attempts.on(&mut several, first, Event::Head(Verdict::of(429, Some(until * SECOND))), 0);
        let Action::Fail(failure) = attempts.poll(&mut several, 0) else { panic!() };
        let free = if site == "d/1" { 2 * SECOND } else { 0 };
        assert_eq!(failure.retry_at, Some(free), "after {site}");
    }
    let mut attempts = Attempts::new(bound(0, &["eu"], &[]));
    let Action::Fail(failure) = attempts.poll(&mut several, 0) else { panic!() };
    assert_eq!((failure.reason, failure.retry_at), (Reason::Overloaded, Some(5 * SECOND)));
}

#[test]
fn a_request_that_every_replica_fails_ejects_nobody() {
    let mut router = router(four(), settings());
    let mut now = 0;
    for _ in 0..30 {
        now = calm(&mut router, 30, 2 * MS, now);
        let mut attempts = Attempts::new(call(now));
        loop {
            match attempts.poll(&mut router, now) {
                Action::Send { attempt, .. } => attempts.on(&mut router, attempt, ERROR, now),
                Action::Wait { until } => now = until,
                Action::Fail(_) => break,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(router.take_changes(), []);
}

#[test]
fn a_request_that_another_replica_knows_to_be_wrong_ejects_nobody_that_failed_at_it() {
    for (verdict, ejects) in [(Verdict::Rejected, false), (Verdict::Module, false), (Verdict::Answer, true)] {
        let mut router = router(four(), settings());
        let mut now = calm(&mut router, 50, 2 * MS, 0);
        for _ in 0..5 {
            let mut attempts = Attempts::new(call(now));
            let (first, _) = sent(&mut attempts, &mut router, now);
            attempts.on(&mut router, first, ERROR, now);
            let (second, _) = sent(&mut attempts, &mut router, now);
            attempts.on(&mut router, second, Event::Head(verdict), now + MS);
            attempts.on(&mut router, second, WHOLE, now + MS);
            assert_eq!(attempts.poll(&mut router, now + MS), Action::Finish { attempt: second });
            now += MS;
        }
        assert_eq!(!router.take_changes().is_empty(), ejects, "{verdict:?}");
    }
}

#[test]
fn an_error_of_the_modules_own_is_passed_on_and_says_nothing_about_its_replica() {
    let mut router = router(four(), settings());
    let now = calm(&mut router, 50, 20 * MS, 0);
    let id = router.find("a/1").unwrap();
    let before = router.standing(id);
    for end in [WHOLE, Event::Overflow].repeat(20) {
        let mut attempts = Attempts::new(call(now));
        let (first, site) = sent(&mut attempts, &mut router, now);
        assert_eq!(site, "a/1");
        attempts.on(&mut router, first, Event::Head(Verdict::Module), now + MS);
        attempts.on(&mut router, first, end, now + MS);
        assert_eq!(attempts.poll(&mut router, now + MS), Action::Finish { attempt: first });
        attempts.on(&mut router, first, Event::Complete, now + MS);
        assert_eq!(attempts.poll(&mut router, now + MS), Action::Done);
    }
    assert_eq!(router.standing(id), before);
    assert_eq!(router.take_changes(), []);
}

#[test]
fn what_is_refused_to_one_tenant_is_tried_elsewhere_and_kept_from_nobody() {
    let mut router = router(four(), settings());
    let now = calm(&mut router, 50, 20 * MS, 0);
    let before = router.standing(router.find("a/1").unwrap());
    let mut attempts = Attempts::new(call(now));
    let (first, site) = sent(&mut attempts, &mut router, now);
    attempts.on(&mut router, first, Event::Head(Verdict::OverShare { until: None }), now);
    assert_eq!(site, "a/1");
    assert_ne!(sent(&mut attempts, &mut router, now).1, "a/1");
    assert_eq!(router.standing(router.find("a/1").unwrap()), before);
    let mut others = Attempts::new(call(now));
    assert_eq!(sent(&mut others, &mut router, now).1, "a/1");
}

#[test]
fn a_lone_replica_that_refused_one_tenant_is_not_asked_again() {
    let mut router = router(vec![peer("a/1", 2 * MS, "eu")], settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut router, 0);
    attempts.on(&mut router, first, Event::Head(Verdict::OverShare { until: None }), MS);
    assert_eq!(fails(&mut attempts, &mut router, MS), Reason::Overloaded);
}

/// A call of a tenant.
fn of(tenant: &str, now: Nanos) -> Call {
    Call { tenant: Some(tenant.into()), ..call(now) }
}

/// Sends a tenant's request to every site, each of which refuses it until then; the time that the client is told.
fn refused_everywhere(router: &mut Router, tenant: &str, until: [Nanos; 2], now: Nanos) -> Option<Nanos> {
    let mut attempts = Attempts::new(of(tenant, now));
    for until in until {
        let (attempt, _) = sent(&mut attempts, router, now);
        attempts.on(router, attempt, Event::Head(Verdict::OverShare { until: Some(until) }), now);
    }
    match attempts.poll(router, now) {
        Action::Fail(failure) => failure.retry_at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tenant_that_every_site_refuses_is_refused_without_asking_them_until_the_first_said() {
    let two = vec![peer("a/1", 2 * MS, "eu"), peer("b/1", 30 * MS, "eu")];
    let mut router = router(two, settings());
    let now = SECOND;
    let until = [now + 400 * MS, now + 150 * MS];
    assert_eq!(refused_everywhere(&mut router, "acme", until, now), Some(until[1]));
    // Nothing is sent, and the answer says when it will be.
    let mut again = Attempts::new(of("acme", now + MS));
    let Action::Fail(failure) = again.poll(&mut router, now + MS) else { panic!("it was sent") };
    assert_eq!((failure.reason, failure.retry_at, failure.attempts), (Reason::Overloaded, Some(until[1]), 0));
    // Never for another tenant, nor for who is none.
    for other in [of("other", now + MS), call(now + MS)] {
        assert_eq!(sent(&mut Attempts::new(other), &mut router, now + MS).1, "a/1");
    }
    // And never beyond what a site said, of that site.
    assert_eq!(sent(&mut Attempts::new(of("acme", until[1])), &mut router, until[1]).1, "b/1");
    assert_eq!(sent(&mut Attempts::new(of("acme", until[0])), &mut router, until[0]).1, "a/1");
}

#[test]
fn a_tenants_answer_ends_what_was_refused_to_it_where_it_came_from() {
    let mut router = router(vec![peer("a/1", 2 * MS, "eu"), peer("b/1", 30 * MS, "eu")], settings());
    let mut runs = Attempts::new(of("acme", 0));
    let (first, _) = sent(&mut runs, &mut router, 0);
    refused_everywhere(&mut router, "acme", [SECOND; 2], MS);
    runs.on(&mut router, first, OK, 2 * MS);
    runs.on(&mut router, first, WHOLE, 2 * MS);
    assert_eq!(sent(&mut Attempts::new(of("acme", 3 * MS)), &mut router, 3 * MS).1, "a/1");
    let explained = router.explain(&of("acme", 3 * MS), 3 * MS);
    assert_eq!(explained.candidates[1].verdict.err(), Some(Refusal::OverShare { until: SECOND }));
}

/// How a request ends whose client waits for so long: the site says that the time is over, or says nothing.
fn runs_out(router: &mut Router, patience: Nanos, told: bool, now: Nanos) -> Reason {
    let mut attempts = Attempts::new(Call { repeatable: false, ..Call::until(now + patience) });
    let (first, _) = sent(&mut attempts, router, now);
    let end = now + patience;
    if told {
        attempts.on(router, first, Event::Head(Verdict::TooLate), end - 1);
        return fails(&mut attempts, router, end - 1);
    }
    assert_eq!(attempts.poll(router, end), Action::Cancel { attempt: first });
    fails(&mut attempts, router, end)
}

#[test]
fn a_deadline_that_is_shorter_than_answers_take_ejects_nobody() {
    for told in [true, false] {
        let reason = if told { Reason::Failed } else { Reason::Deadline };
        // Whether or not anybody knows yet how long they take.
        for (answers, took) in [(0, 0), (50, 20 * MS)] {
            let mut router = router(four(), settings());
            let mut now = calm(&mut router, answers, took, 0);
            for _ in 0..20 {
                assert_eq!(runs_out(&mut router, 15 * MS, told, now), reason);
                now += 20 * MS;
            }
            assert_eq!(router.take_changes(), [], "{told} {answers}");
        }
    }
}

#[test]
fn a_replica_that_is_too_slow_for_any_deadline_is_noticed() {
    for told in [true, false] {
        let mut router = router(four(), settings());
        let mut now = calm(&mut router, 50, 2 * MS, 0);
        let a1 = router.find("a/1").unwrap();
        for _ in 0..3 {
            runs_out(&mut router, 200 * MS, told, now);
            now += 200 * MS;
            // It looks as slow as it is, and gets no request that may go elsewhere.
            assert!(router.standing(a1).and_then(|s| s.latency).is_some_and(|latency| latency >= 190 * MS));
            assert_ne!(sent(&mut Attempts::new(call(now)), &mut router, now).1, "a/1");
        }
    }
}

#[test]
fn a_lone_slow_replica_is_ejected_by_its_own_history() {
    for told in [true, false] {
        let mut router = router(vec![peer("a/1", 2 * MS, "eu")], settings());
        let mut now = calm(&mut router, 50, 2 * MS, 0);
        for _ in 0..3 {
            runs_out(&mut router, 200 * MS, told, now);
            now += 200 * MS;
        }
        assert_eq!(router.take_changes().len(), 1, "{told}");
    }
}

#[test]
fn a_time_that_is_over_is_no_reason_to_ask_another() {
    let mut router = router(four(), settings());
    let now = calm(&mut router, 50, 2 * MS, 0);
    let mut attempts = Attempts::new(call(now));
    let (first, _) = sent(&mut attempts, &mut router, now);
    attempts.on(&mut router, first, Event::Head(Verdict::TooLate), now + MS);
    let Action::Fail(failure) = attempts.poll(&mut router, now + MS) else { panic!("it was sent again") };
    assert_eq!((failure.reason, failure.attempt), (Reason::Failed, Some(first)));
}

#[test]
fn versions_of_a_model_share_one_budget() {
    let spend = |router: &mut Router, now: Nanos| {
        let mut attempts = Attempts::new(call(now));
        let (first, _) = sent(&mut attempts, router, now);
        attempts.on(router, first, ERROR, now);
        let again = matches!(attempts.poll(router, now), Action::Send { .. });
        attempts.abandon(router, now);
        again
    };
    let budgets = router(four(), settings()).shared_budgets();
    // A version each: what one has spent the next has no more.
    let retried = (1..=100).filter(|now| {
        let mut version = Router::sharing(settings(), windrose_route::Random::seeded(9), budgets.clone());
        version.update(four(), 0);
        spend(&mut version, now * SECOND)
    });
    // The reserve of sixteen, and a tenth of the requests.
    let retried = retried.count();
    assert!((20..=30).contains(&retried), "{retried} of 100 were sent again");
    let now = 100 * SECOND;
    let mut other = router(four(), settings());
    assert!(spend(&mut other, now), "another model has");
}

#[test]
fn a_lone_replica_is_asked_again() {
    let mut router = router(vec![peer("a/1", 2 * MS, "eu")], settings());
    let mut attempts = Attempts::new(call(0));
    let (first, _) = sent(&mut attempts, &mut router, 0);
    attempts.on(&mut router, first, Event::Reset, MS);
    let again = waits(&mut attempts, &mut router, MS);
    assert!((MS + 5 * MS..MS + 20 * MS).contains(&again));
    assert_eq!(sent(&mut attempts, &mut router, again).1, "a/1");
}

#[test]
fn a_forwarded_request_is_answered_here_or_nowhere() {
    let mut fleet = four();
    let forwarded = || Call { forwarded: true, ..call(0) };
    let mut elsewhere = router(fleet.clone(), settings());
    assert_eq!(fails(&mut Attempts::new(forwarded()), &mut elsewhere, 0), Reason::NoReplica);
    fleet[2].nature = Nature::Local;
    let mut router = router(fleet, settings());
    assert_eq!(sent(&mut Attempts::new(forwarded()), &mut router, 0).1, "c/1");
}

#[test]
fn what_was_not_there_for_a_moment_is_asked_again() {
    for replica in [peer("a/1", MS, "eu"), foreign("a/1", MS, "eu")] {
        let mut router = router(vec![replica], settings());
        let mut attempts = Attempts::new(call(0));
        let (first, _) = sent(&mut attempts, &mut router, 0);
        attempts.on(&mut router, first, Event::Head(Verdict::NotHere), MS);
        let verdict = |now| router.explain(&call(now), now).candidates[0].verdict;
        assert_eq!(verdict(2 * MS).err(), Some(Refusal::NotReady));
        // Long after the share that it begins with.
        assert!(verdict(60 * SECOND).is_ok());
    }
}
