//! Many requests: whom the router prefers, and what health does to that.

use std::sync::Arc;

use windrose_route::{
    Action, Attempts, Call, Digest, Ejection, Event, Grants, Load, MILLISECOND, Nanos, Nature, Policy, Price, Probe,
    Purpose, Refusal, Replica, Router, Rules, SECOND, Serves, Settings, Verdict,
};

use crate::fleet::{DIGEST, bound, call, foreign, four, name, peer, router, settings};

const MS: Nanos = MILLISECOND;

/// Sends one request at `now` and lets `answer` say what each attempt meets and when. Gives the site that answered.
fn one(
    router: &mut Router,
    now: Nanos,
    mut answer: impl FnMut(&str) -> (Event, Nanos),
) -> Result<String, windrose_route::Reason> {
    let mut attempts = Attempts::new(call(now));
    let mut now = now;
    let mut events: Vec<(Nanos, windrose_route::AttemptId, Event)> = Vec::new();
    let mut winner = None;
    loop {
        match attempts.poll(router, now) {
            Action::Send { attempt, replica, .. } => {
                let (event, took) = answer(&name(router, replica));
                events.push((now + took, attempt, event));
            }
            Action::Cancel { attempt } => events.retain(|event| event.1 != attempt),
            Action::Wait { until } => {
                events.sort_by_key(|event| std::cmp::Reverse(event.0));
                match events.pop_if(|event| event.0 <= until) {
                    Some((at, attempt, event)) => {
                        now = at;
                        attempts.on(router, attempt, event, now);
                    }
                    None => now = until,
                }
            }
            Action::Finish { attempt } => winner = attempts.replica_of(attempt).map(|id| name(router, id)),
            Action::Fail(failure) => return Err(failure.reason),
            Action::Done => return Ok(winner.unwrap()),
        }
    }
}

fn distance(site: &str) -> Nanos {
    match site {
        "a/1" => 2 * MS,
        "b/1" => 30 * MS,
        "c/1" => 80 * MS,
        _ => 180 * MS,
    }
}

fn well(site: &str) -> (Event, Nanos) {
    (Event::Whole { bytes: 200 }, distance(site))
}

fn ejected(router: &Router, site: &str) -> Option<Ejection> {
    router.standing(router.find(site).unwrap()).unwrap().ejected
}

#[test]
fn three_failures_eject_and_the_site_returns_after_the_fault() {
    let mut router = router(four(), settings());
    let mut failures = 0;
    for n in 0..2_000u64 {
        let down = (500..1_000).contains(&n);
        let got = one(&mut router, n * 2 * MS, |site| {
            if site == "a/1" && down {
                failures += 1;
                return (Event::Head(Verdict::Failed), 2 * MS);
            }
            well(site)
        });
        assert!(got.is_ok());
        if n == 510 {
            assert_eq!((failures, ejected(&router, "a/1")), (3, Some(Ejection::Failures)));
        }
    }
    // Three, and one for each time it was tried in that second.
    assert!((4..=8).contains(&failures), "{failures}");
    assert_eq!(ejected(&router, "a/1"), None);
    assert_eq!(one(&mut router, 10 * SECOND, well), Ok("a/1".to_owned()));
    let changes = router.take_changes();
    assert_eq!(changes.first().map(|c| (&*c.site, c.ejected)), Some(("a/1", Some(Ejection::Failures))));
    assert_eq!(changes.last().map(|c| (&*c.site, c.ejected)), Some(("a/1", None)));
}

#[test]
fn lost_races_eject_the_silent_site_and_never_a_far_one() {
    let mut router = router(four(), settings());
    // Far sites answer a little unevenly; the nearest one falls silent for a while, then comes back.
    for n in 0..20_000u64 {
        let now = n * 2 * MS;
        let silent = (5_000..12_000).contains(&n);
        let got = one(&mut router, now, |site| match site {
            "a/1" if silent => (Event::TimedOut, 9 * SECOND),
            "a/1" if n % 40 == 0 => (Event::Whole { bytes: 200 }, 12 * MS),
            site => (Event::Whole { bytes: 200 }, distance(site) + n % 7 * MS / 4),
        });
        assert!(got.is_ok());
        for far in ["b/1", "c/1", "d/1"] {
            assert_eq!(ejected(&router, far), None, "{far} at {n}");
        }
    }
    assert!(router.take_changes().iter().any(|change| change.ejected.is_some()));
    assert_eq!(ejected(&router, "a/1"), None);
}

#[test]
fn half_errors_eject_and_one_in_a_hundred_does_not() {
    for (every, out) in [(2, true), (100, false)] {
        let mut router = router(four(), settings());
        let mut failed = 0;
        for n in 0..1_000u64 {
            let got = one(&mut router, n * 2 * MS, |site| {
                let bad = site == "a/1" && n % every == 0;
                failed += u64::from(bad);
                if bad { (Event::Head(Verdict::Failed), MS / 2) } else { well(site) }
            });
            assert!(got.is_ok());
        }
        let changes = router.take_changes();
        assert_eq!(changes.iter().any(|change| change.ejected.is_some()), out);
        // Errors are quick, and must not attract.
        assert!(failed <= 20, "{failed}");
    }
}

#[test]
fn ejection_never_empties() {
    let mut router = router(four(), settings());
    for n in 0..100u64 {
        let _ = one(&mut router, n * MS, |_| (Event::ConnectFailed, MS));
    }
    assert!(["a/1", "b/1", "c/1", "d/1"].iter().all(|site| ejected(&router, site).is_some()));
    assert!(one(&mut router, 100 * MS, well).is_ok());
    assert!(router.decisions().next().unwrap().last_resort);
}

#[test]
fn decisions_name_their_request_and_the_unusual_ones_are_kept_longer() {
    let mut router = router(four(), settings());
    let named = |name: &str, now| Call { request: Some(name.into()), tenant: Some("acme".into()), ..call(now) };
    let mut odd = Attempts::new(named("odd", MS));
    let Action::Send { attempt, .. } = odd.poll(&mut router, MS) else { panic!() };
    odd.on(&mut router, attempt, Event::ConnectFailed, MS);
    assert!(matches!(odd.poll(&mut router, MS), Action::Send { purpose: Purpose::Retry, .. }));
    odd.abandon(&mut router, MS);
    for n in 0..500u64 {
        let mut usual = Attempts::new(named("usual", (2 + n) * MS));
        assert!(matches!(usual.poll(&mut router, (2 + n) * MS), Action::Send { .. }));
        usual.abandon(&mut router, (2 + n) * MS);
    }
    let kept: Vec<_> = router.decisions().collect();
    assert!(kept.len() < 100 && kept.iter().all(|made| made.tenant.as_deref() == Some("acme")), "{}", kept.len());
    assert!(kept.is_sorted_by_key(|made| std::cmp::Reverse(made.at)));
    let about: Vec<_> = kept.iter().filter(|made| made.request.as_deref() == Some("odd")).collect();
    assert_eq!(about.iter().map(|made| made.purpose).collect::<Vec<_>>(), [Purpose::Retry]);
}

#[test]
fn a_wrong_answer_is_an_outage_until_a_right_one() {
    let mut router = router(four(), settings());
    let near = router.find("a/1").unwrap();
    router.probed(near, Probe::Wrong, SECOND);
    assert_eq!(ejected(&router, "a/1"), Some(Ejection::Wrong));
    for at in [SECOND, 60 * SECOND] {
        assert_eq!(one(&mut router, at, well), Ok("b/1".to_owned()));
        router.probed(near, Probe::Answered, at);
    }
    // Not even when everybody else is down, while one of them could be right.
    let down = |site: &str| if site == "a/1" { well(site) } else { (Event::ConnectFailed, MS) };
    for n in 0..20 {
        assert!(one(&mut router, 61 * SECOND + n * MS, down).is_err());
    }
    router.probed(near, Probe::Right, 70 * SECOND);
    assert_eq!(ejected(&router, "a/1"), None);
    assert_eq!(one(&mut router, 80 * SECOND, well), Ok("a/1".to_owned()));
    // When all are wrong it is the golden input that is.
    for id in router.ids().collect::<Vec<_>>() {
        router.probed(id, Probe::Wrong, 90 * SECOND);
    }
    assert_eq!(one(&mut router, 91 * SECOND, well), Ok("a/1".to_owned()));
}

#[test]
fn wrong_answers_are_those_of_what_was_served() {
    let mut router = router(four(), settings());
    let near = router.find("a/1").unwrap();
    router.probed(near, Probe::Wrong, SECOND);
    router.update(four(), 2 * SECOND);
    assert_eq!(ejected(&router, "a/1"), Some(Ejection::Wrong));
    let mut others = four();
    others[0].serves = Serves::Digest([9; 32]);
    router.update(others, 3 * SECOND);
    assert_eq!(ejected(&router, "a/1"), None, "of this nobody has seen any");
}

#[test]
fn a_new_replica_takes_its_share_slowly() {
    let mut fleet = four();
    let near = fleet.remove(0);
    let mut router = router(fleet.clone(), settings());
    fleet.push(near);
    router.update(fleet, SECOND);
    let mut shares = [0; 4];
    for n in 0..500u64 {
        let got = one(&mut router, SECOND + n * 2 * MS, well).unwrap();
        shares[n as usize / 125] += u64::from(got == "a/1");
    }
    assert!(shares[0] < 50 && shares[0] > 5, "{shares:?}");
    assert!(shares.is_sorted() && shares[3] > 90, "{shares:?}");
    assert_eq!(one(&mut router, 3 * SECOND, well), Ok("a/1".to_owned()));
}

#[test]
fn what_was_seen_of_a_replica_outlives_a_short_absence() {
    let mut router = router(four(), settings());
    for n in 0..40 {
        assert!(one(&mut router, n * 10 * MS, well).is_ok());
    }
    let near = router.find("a/1").unwrap();
    router.probed(near, Probe::Wrong, SECOND);
    let latency = |router: &Router| router.standing(router.find("a/1").unwrap()).unwrap().latency;
    let known = latency(&router);
    assert!(known.is_some());
    let others = || four().split_off(1);
    router.update(others(), SECOND);
    assert_eq!(router.find("a/1"), None);
    // Whoever comes meanwhile does not take its place.
    router.update([others(), vec![peer("e/1", MS, "eu")]].concat(), 2 * SECOND);
    router.update(four(), 60 * SECOND);
    assert_eq!((ejected(&router, "a/1"), latency(&router)), (Some(Ejection::Wrong), known));
    assert_eq!(router.replica(near), None, "a handle never names another one");
    assert_eq!(one(&mut router, 61 * SECOND, well), Ok("b/1".to_owned()));
    // After a long one nobody knows.
    router.update(others(), 62 * SECOND);
    router.update(four(), 600 * SECOND);
    assert_eq!((ejected(&router, "a/1"), latency(&router)), (None, None));
}

#[test]
fn what_was_under_way_when_a_replica_left_does_not_count_when_it_is_back() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(call(0));
    let Action::Send { replica, .. } = attempts.poll(&mut router, 0) else { panic!("nobody is asked") };
    assert_eq!(name(&router, replica), "a/1");
    router.update(four().split_off(1), MS);
    router.update(four(), 2 * MS);
    let in_flight = |router: &Router| router.standing(router.find("a/1").unwrap()).unwrap().in_flight;
    assert_eq!(in_flight(&router), 0);
    attempts.abandon(&mut router, 3 * MS);
    assert_eq!(in_flight(&router), 0);
}

#[test]
fn filters_fail_closed_and_say_why() {
    let other: Digest = [9; 32];
    let cases: Vec<(Replica, &str)> = vec![
        (Replica { serves: Serves::Nothing, ..peer("x", MS, "eu") }, "not_ready"),
        (Replica { serves: Serves::Digest(other), ..peer("x", MS, "eu") }, "digest"),
        (Replica { serves: Serves::Unverified, ..peer("x", MS, "eu") }, "digest"),
        (Replica { grants: Grants(1), ..peer("x", MS, "eu") }, "grants"),
        (foreign("x", MS, "eu"), "grants"),
        (Replica { nature: Nature::Foreign, serves: Serves::Unverified, ..peer("x", MS, "eu") }, "unverified"),
        (Replica { nature: Nature::Foreign, serves: Serves::Unheard, ..peer("x", MS, "eu") }, "jurisdiction"),
        (peer("x", MS, "us"), "jurisdiction"),
        (peer("x", MS, ""), "jurisdiction"),
    ];
    for (replica, why) in cases {
        let settings = Settings { needs: Grants(2), ..settings() };
        let mut router = router(vec![replica.clone(), peer("y", 90 * MS, "eu")], settings);
        let call = Call { verified: true, ..crate::fleet::bound(0, &["eu"], &[]) };
        let explanation = router.explain(&call, 0);
        let verdict = explanation.candidates[0].verdict;
        assert_eq!(verdict.err().map(Refusal::as_str), Some(why), "{replica:?}");
        assert!(verdict.unwrap_err().is_final() && !verdict.unwrap_err().to_string().is_empty());
        assert_eq!((explanation.chosen, explanation.last_resort), (Some(1), false));
        let Action::Send { replica, .. } = Attempts::new(call).poll(&mut router, 0) else { panic!() };
        assert_eq!(name(&router, replica), "y");
    }
}

#[test]
fn policies_choose_as_they_say() {
    let priced = |name: &str, distance, engine_second, weight| {
        let mut replica = peer(name, distance, "eu");
        let price = Price { engine_second, ..Price::default() };
        replica.site = Arc::new(windrose_route::Site { price, ..(*replica.site).clone() });
        Replica { weight, ..replica }
    };
    let fleet = || {
        let mut local = priced("b/1", 30 * MS, 2.0, 0);
        local.nature = Nature::Local;
        vec![priced("a/1", 2 * MS, 9.0, 30), local, priced("c/1", 80 * MS, 1.0, 10), priced("d/1", 180 * MS, 0.1, 0)]
    };
    let shares = |policy| {
        let mut router = router(fleet(), Settings { policy, ..settings() });
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..2_000u64 {
            *counts.entry(one(&mut router, n * 200 * MS, well).unwrap()).or_insert(0) += 1;
        }
        counts
    };
    let all = |site: &str| std::collections::BTreeMap::from([(site.to_owned(), 2_000)]);
    assert_eq!(shares(Policy::Fastest), all("a/1"));
    assert_eq!(shares(Policy::LocalFirst), all("b/1"));
    assert_eq!(shares(Policy::Cheapest { p99: 100 * MS }), all("c/1"));
    assert_eq!(shares(Policy::Cheapest { p99: SECOND }), all("d/1"));
    assert_eq!(shares(Policy::Cheapest { p99: MS }), all("a/1"));
    let weighted = shares(Policy::Weights);
    assert!((1_400..1_600).contains(&weighted["a/1"]) && weighted.len() == 2, "{weighted:?}");
}

#[test]
fn among_equals_the_price_decides_and_then_chance() {
    let mut cheap = peer("b/1", 10 * MS, "eu");
    cheap.site =
        Arc::new(windrose_route::Site { price: Price { request: 0.0, ..Price::default() }, ..(*cheap.site).clone() });
    let mut dear = peer("a/1", 10 * MS, "eu");
    dear.site =
        Arc::new(windrose_route::Site { price: Price { request: 1.0, ..Price::default() }, ..(*dear.site).clone() });
    let mut router =
        router(vec![dear, cheap.clone(), Replica { site: peer("c/1", 0, "eu").site, ..cheap }], settings());
    let mut counts = std::collections::BTreeMap::new();
    for n in 0..1_000u64 {
        let got = one(&mut router, n * 20 * MS, |_| (Event::Whole { bytes: 1 }, 10 * MS)).unwrap();
        *counts.entry(got).or_insert(0) += 1;
    }
    assert!(!counts.contains_key("a/1") && counts["b/1"] > 300 && counts["c/1"] > 300, "{counts:?}");
}

#[test]
fn a_reported_queue_sends_requests_elsewhere_while_it_is_fresh() {
    let mut router = router(four(), settings());
    let near = router.find("a/1").unwrap();
    assert_eq!(one(&mut router, 0, well), Ok("a/1".to_owned()));
    router.report(near, Load { in_flight: 90, queued: 80, parallel: 2, engine_time: 5 * MS }, SECOND);
    assert_eq!(one(&mut router, SECOND, well), Ok("b/1".to_owned()));
    assert_eq!(one(&mut router, 4 * SECOND, well), Ok("a/1".to_owned()));
}

#[test]
fn a_handle_outlives_changes_and_never_names_another() {
    let mut router = router(four(), settings());
    let (near, far) = (router.find("a/1").unwrap(), router.find("d/1").unwrap());
    assert_eq!(one(&mut router, 0, well), Ok("a/1".to_owned()));
    router.update(vec![peer("d/1", 180 * MS, "in"), peer("e/1", MS, "eu")], SECOND);
    assert_eq!(router.replica(near), None);
    assert_eq!(name(&router, far), "d/1");
    router.serves(near, Serves::Nothing, SECOND);
    router.probed(near, Probe::Wrong, SECOND);
    let new = router.find("e/1").unwrap();
    assert_ne!(new, near);
    assert_eq!(router.replica(new).map(|replica| replica.serves), Some(Serves::Digest(DIGEST)));
    assert_eq!(router.standing(new).and_then(|standing| standing.ejected), None);
}

#[test]
fn a_request_has_somewhere_to_go_while_one_that_may_answer_is_not_out() {
    let mut router = router(vec![peer("a/1", 2 * MS, "eu")], settings());
    let free = Rules::none();
    assert!(router.is_fit(&free, false, 0));
    assert!(!router.is_fit(&bound(0, &["us"], &[]).rules, false, 0));
    let id = router.find("a/1").unwrap();
    for _ in 0..3 {
        router.probed(id, Probe::Failed, MS);
    }
    assert!(!router.is_fit(&free, false, 2 * MS) && router.is_able(&free));
    // It may be tried again, and later by a request that could not be sent again.
    assert_eq!([false, true].map(|careful| router.is_fit(&free, careful, SECOND)), [true, false]);
    assert!(router.is_fit(&free, true, 10 * SECOND));
    router.probed(id, Probe::Wrong, SECOND);
    assert!(!router.is_fit(&free, false, 10 * SECOND));
    router.configure(Settings { digests: Vec::new(), ..settings() });
    router.probed(id, Probe::Right, SECOND);
    assert!(!router.is_fit(&free, false, 10 * SECOND) && !router.is_able(&free));
}
