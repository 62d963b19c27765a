//! The law of the data over random fleets, rules and fates: nothing is ever sent where a rule forbids it.

use std::sync::Arc;

use proptest::prelude::*;
use windrose_route::{
    Action, AttemptId, Attempts, Breach, Call, Event, Grants, Hedging, Jurisdiction, Load, MILLISECOND, Nature, Policy,
    Probe, Reason, Replica, Rules, SECOND, Serves, Settings, Source, Verdict,
};

use crate::fleet::{DIGEST, foreign, four, name, peer, router, settings};

const PLACES: [&str; 4] = ["eu", "us", "ch", ""];

fn place() -> impl Strategy<Value = &'static str> {
    prop::sample::select(PLACES.to_vec())
}

fn replica() -> impl Strategy<Value = Replica> {
    let serves = prop::sample::select(vec![Serves::Digest(DIGEST), Serves::Digest([9; 32]), Serves::Nothing]);
    (place(), 1u64..200, any::<bool>(), serves, 0u64..4, 0u32..3).prop_map(
        |(place, far, ours, serves, grants, weight)| {
            let distance = far * MILLISECOND;
            match (ours, serves) {
                (true, _) => Replica { serves, grants: Grants(grants), weight, ..peer("x", distance, place) },
                (false, Serves::Nothing) => Replica { serves: Serves::Unheard, ..foreign("x", distance, place) },
                (false, _) => foreign("x", distance, place),
            }
        },
    )
}

fn rules() -> impl Strategy<Value = Rules> {
    let places = || prop::collection::vec(prop::sample::select(PLACES[..3].to_vec()), 0..3);
    let layer = (prop::option::of(places()), places());
    prop::collection::vec(layer, 0..3).prop_map(|layers| {
        let read = |names: Vec<&str>| names.into_iter().filter_map(|name| Jurisdiction::new(name).ok()).collect();
        let sources = [Source::Manifest, Source::Tenant, Source::Request];
        let with = |rules: Rules, ((allow, deny), source): ((Option<Vec<&str>>, Vec<&str>), _)| {
            rules.and(source, allow.map(read), read(deny))
        };
        layers.into_iter().zip(sources).fold(Rules::none(), with)
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop::sample::select(vec![
        Event::ConnectFailed,
        Event::Refused,
        Event::Reset,
        Event::Cut,
        Event::TimedOut,
        Event::Overflow,
        Event::Complete,
        Event::Waited { client: SECOND },
        Event::Whole { bytes: 9 },
        Event::Head(Verdict::Answer),
        Event::Head(Verdict::Failed),
        Event::Head(Verdict::Module),
        Event::Head(Verdict::Rejected),
        Event::Head(Verdict::NotHere),
        Event::Head(Verdict::Unlawful),
        Event::Head(Verdict::Graph),
        Event::Head(Verdict::TooLate),
        Event::Head(Verdict::OverShare { until: Some(SECOND) }),
        Event::Head(Verdict::Overloaded { until: Some(SECOND) }),
    ])
}

fn call() -> impl Strategy<Value = Call> {
    let hedging = prop::sample::select(vec![Hedging::Never, Hedging::Withdrawable, Hedging::Anywhere]);
    (rules(), any::<[bool; 4]>(), hedging).prop_map(|(rules, [repeatable, replayable, verified, odd], hedging)| Call {
        rules: Arc::new(rules),
        repeatable,
        replayable,
        hedging,
        verified: verified && odd,
        forwarded: false,
        ..Call::until(SECOND)
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let cheapest = Policy::Cheapest { p99: 50 * MILLISECOND };
    prop::sample::select(vec![Policy::Fastest, cheapest, Policy::LocalFirst, Policy::Weights])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_is_sent_where_a_rule_forbids_it_and_every_request_ends_once(
        fleet in prop::collection::vec(replica(), 0..30),
        call in call(),
        policy in policy(),
        needs in 0u64..4,
        fates in prop::collection::vec((0u8..8, event(), 0u64..200), 0..40),
        states in prop::collection::vec((0usize..30, 0u8..4), 0..20),
    ) {
        let named = |(index, replica): (usize, Replica)| {
            let site = windrose_route::Site { name: format!("s/{index}").into(), ..(*replica.site).clone() };
            Replica { site: Arc::new(site), ..replica }
        };
        let fleet: Vec<Replica> = fleet.into_iter().enumerate().map(named).collect();
        let mut router = router(fleet.clone(), Settings { policy, needs: Grants(needs), ..settings() });
        let ids: Vec<_> = router.ids().collect();
        for (index, state) in states {
            let Some(id) = ids.get(index) else { continue };
            match state {
                0 => router.probed(*id, Probe::Wrong, 0),
                1 => router.report(*id, Load { in_flight: 99, queued: 90, parallel: 1, engine_time: MILLISECOND }, 0),
                _ => (0..3).for_each(|_| router.probed(*id, Probe::Failed, 0)),
            }
        }
        let may = |replica: &Replica| {
            let serves = match replica.serves {
                Serves::Digest(digest) => digest == DIGEST,
                Serves::Unverified => replica.nature == Nature::Foreign && !call.verified,
                Serves::Nothing | Serves::Unheard => false,
            };
            let lawful = call.rules.permit(replica.site.jurisdiction.as_ref()).is_ok();
            lawful && serves && replica.grants.cover(Grants(needs))
        };
        let mut attempts = Attempts::new(call.clone());
        let (mut now, mut sent, mut ended, mut fates) = (0, 0, 0, fates.into_iter());
        loop {
            match attempts.poll(&mut router, now) {
                Action::Send { replica, .. } => {
                    sent += 1;
                    prop_assert!(router.replica(replica).is_some_and(may), "{:?}", router.replica(replica));
                    prop_assert!(ended == 0);
                }
                Action::Cancel { .. } => {}
                Action::Wait { until } => match fates.next() {
                    Some((attempt, event, after)) => {
                        now += after * MILLISECOND;
                        attempts.on(&mut router, AttemptId(attempt), event, now);
                    }
                    None if now <= SECOND => now = until.min(2 * SECOND),
                    None => attempts.abandon(&mut router, now),
                },
                Action::Finish { .. } => ended += 1,
                Action::Fail(failure) => {
                    ended += 1;
                    if let Reason::Law(breach) = failure.reason {
                        prop_assert!(sent == 0 && !fleet.iter().any(may));
                        let sources = [Source::Manifest, Source::Tenant, Source::Request];
                        match breach {
                            Breach::NotAllowed(by) | Breach::Denied(by) | Breach::Unknown(by) => {
                                prop_assert!(sources.contains(&by));
                            }
                            Breach::Unheard => prop_assert!(fleet.iter().any(|one| one.serves == Serves::Unheard)),
                        }
                    }
                }
                Action::Done => break,
            }
        }
        prop_assert_eq!(ended, 1);
        prop_assert!(sent <= usize::from(Settings::default().attempts));
        prop_assert!(ids.iter().all(|id| router.standing(*id).is_some_and(|standing| standing.in_flight == 0)));
    }

    #[test]
    fn what_is_explained_is_what_happens(
        fleet in prop::collection::vec(replica(), 1..12),
        call in call(),
        policy in policy(),
    ) {
        let named = |(index, replica): (usize, Replica)| {
            let site = windrose_route::Site { name: format!("s/{index}").into(), ..(*replica.site).clone() };
            Replica { site: Arc::new(site), ..replica }
        };
        let fleet: Vec<Replica> = fleet.into_iter().enumerate().map(named).collect();
        let mut router = router(fleet, Settings { policy, ..settings() });
        let explanation = router.explain(&call, 0);
        let chosen = explanation.chosen.map(|index| explanation.candidates[index].site.clone());
        let sent = match Attempts::new(call).poll(&mut router, 0) {
            Action::Send { replica, .. } => router.replica(replica).map(|replica| replica.site.name.clone()),
            _ => None,
        };
        prop_assert_eq!(chosen, sent);
    }
}

#[test]
fn a_site_that_says_it_may_not_answer_is_left_for_the_next_and_is_no_worse_for_others() {
    let unlawful = Event::Head(Verdict::Unlawful);
    for repeatable in [true, false] {
        let mut router = router(four(), settings());
        let before = router.find("a/1").and_then(|id| router.standing(id));
        for now in (0..20).map(|n| n * 100 * MILLISECOND) {
            let mut attempts = Attempts::new(Call { repeatable, ..Call::until(now + SECOND) });
            for site in ["a/1", "b/1"] {
                let Action::Send { attempt, replica, .. } = attempts.poll(&mut router, now) else { panic!("{site}") };
                assert_eq!(name(&router, replica), site);
                let event = if site == "a/1" { unlawful } else { Event::Head(Verdict::Answer) };
                attempts.on(&mut router, attempt, event, now);
            }
            attempts.on(&mut router, AttemptId(1), Event::Whole { bytes: 1 }, now + 30 * MILLISECOND);
            assert_eq!(attempts.poll(&mut router, now + 30 * MILLISECOND), Action::Finish { attempt: AttemptId(1) });
        }
        assert_eq!(router.find("a/1").and_then(|id| router.standing(id)), before);
        assert!(router.budgets().0 >= 16.0, "nothing ran: {:?}", router.budgets());
    }
}

#[test]
fn where_every_site_says_it_may_not_answer_the_client_is_told_what_the_last_said() {
    let mut router = router(four(), settings());
    let mut attempts = Attempts::new(Call::until(SECOND));
    for number in 0..4 {
        let Action::Send { attempt, .. } = attempts.poll(&mut router, 0) else { panic!("{number}") };
        attempts.on(&mut router, attempt, Event::Head(Verdict::Unlawful), 0);
    }
    let Action::Fail(failure) = attempts.poll(&mut router, 0) else { panic!("it was sent again") };
    assert_eq!((failure.reason, failure.attempt, failure.attempts), (Reason::Failed, Some(AttemptId(3)), 4));
}
