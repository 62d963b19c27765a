//! Bodies that are sent on as they come: what their clients take is none of the replica's time.

use windrose_route::{Action, Attempts, Call, Event, MILLISECOND, Nanos, Reason, Router, SECOND, Verdict};

use crate::fleet::{call, four, router, settings};

const MS: Nanos = MILLISECOND;

/// A request whose body is not held, and how long it has waited for that, before it is answered or its time is over.
fn uploads(router: &mut Router, patience: Nanos, client: Nanos, answered: Option<Verdict>, now: Nanos) {
    let mut attempts = Attempts::new(Call { replayable: false, ..Call::until(now + patience) });
    let Action::Send { attempt, .. } = attempts.poll(router, now) else { panic!("it was not sent") };
    let end = now + patience;
    attempts.on(router, attempt, Event::Waited { client: client / 2 }, end - 2);
    attempts.on(router, attempt, Event::Waited { client }, end - 1);
    match answered {
        Some(verdict) => {
            attempts.on(router, attempt, Event::Head(verdict), end - 1);
            attempts.on(router, attempt, Event::Whole { bytes: 1 }, end - 1);
            assert!(matches!(attempts.poll(router, end - 1), Action::Finish { .. } | Action::Fail(_)));
        }
        None => {
            assert_eq!(attempts.poll(router, end), Action::Cancel { attempt });
            let Action::Fail(failure) = attempts.poll(router, end) else { panic!("it has an answer") };
            assert_eq!(failure.reason, Reason::Deadline);
        }
    }
}

fn known() -> (Router, Nanos) {
    let (mut router, mut now) = (router(four(), settings()), 0);
    for _ in 0..50 {
        let mut attempts = Attempts::new(call(now));
        let Action::Send { attempt, .. } = attempts.poll(&mut router, now) else { panic!("it was not sent") };
        now += 2 * MS;
        attempts.on(&mut router, attempt, Event::Head(Verdict::Answer), now);
        attempts.on(&mut router, attempt, Event::Whole { bytes: 1 }, now);
        assert_eq!(attempts.poll(&mut router, now), Action::Finish { attempt });
    }
    (router, now)
}

fn latency(router: &Router) -> Nanos {
    router.find("a/1").and_then(|id| router.standing(id)?.latency).unwrap_or(0)
}

#[test]
fn a_slow_client_makes_no_replica_look_slow() {
    for answered in [Some(Verdict::Answer), Some(Verdict::TooLate), None] {
        let (mut router, mut now) = known();
        for _ in 0..20 {
            uploads(&mut router, 10 * SECOND, 10 * SECOND - 2 * MS, answered, now);
            now += 10 * SECOND;
        }
        assert!(latency(&router) < 3 * MS, "{answered:?}: {}", latency(&router));
        assert_eq!(router.take_changes(), [], "{answered:?}");
    }
}

#[test]
fn a_replica_that_does_not_read_is_noticed() {
    for answered in [Some(Verdict::Answer), Some(Verdict::TooLate), None] {
        let (mut router, now) = known();
        // Of ten seconds the client took two.
        uploads(&mut router, 10 * SECOND, 2 * SECOND, answered, now);
        assert!(latency(&router) > 7 * SECOND, "{answered:?}: {}", latency(&router));
    }
}
