//! Requests that fail wherever they go, many at a time: no replica is out for them once they are answered.

use std::collections::BTreeSet;

use proptest::prelude::*;
use windrose_route::{
    Action, AttemptId, Attempts, Call, Ejection, Event, MILLISECOND, NEVER, Nanos, Probe, Random, Replica, Router,
    Settings, Verdict,
};

use crate::fleet::{call, name, peer, router, settings};

const MS: Nanos = MILLISECOND;

/// What a request comes to at a replica that is well.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    /// An error of the server's, as if it were the server's fault.
    Poison,
}

/// A request, what was sent for it that is not answered yet, and when it wants to be polled.
struct Request {
    kind: Kind,
    attempts: Attempts,
    sent: Vec<(AttemptId, String)>,
    asked: BTreeSet<String>,
    due: Nanos,
    over: bool,
}

/// One gateway with requests in flight. What happens next is drawn.
struct Gate {
    router: Router,
    random: Random,
    now: Nanos,
    dead: Option<&'static str>,
    requests: Vec<Request>,
}

impl Gate {
    fn new(sites: usize, seed: u64, dead: Option<&'static str>) -> Gate {
        // Nothing is to end for want of a budget.
        let settings = Settings { retries: 10.0, ..settings() };
        let router = router(fleet(sites), settings);
        Gate { router, random: Random::seeded(seed), now: 0, dead, requests: Vec::new() }
    }

    fn begin(&mut self, kind: Kind) {
        let attempts = Attempts::new(call(self.now));
        self.requests.push(Request {
            kind,
            attempts,
            sent: Vec::new(),
            asked: BTreeSet::new(),
            due: self.now,
            over: false,
        });
        self.drive(self.requests.len() - 1);
    }

    fn drive(&mut self, index: usize) {
        let (request, now) = (&mut self.requests[index], self.now);
        loop {
            match request.attempts.poll(&mut self.router, now) {
                Action::Send { attempt, replica, .. } => {
                    let site = name(&self.router, replica);
                    request.asked.insert(site.clone());
                    request.sent.push((attempt, site));
                }
                Action::Cancel { attempt } => request.sent.retain(|(sent, _)| *sent != attempt),
                Action::Wait { until } => return request.due = until,
                Action::Finish { .. } | Action::Fail(_) => {}
                Action::Done => return (request.over, request.due) = (true, NEVER),
            }
        }
    }

    /// Something that was sent, drawn from all of it, is answered; or what waits comes to its time.
    fn step(&mut self) {
        self.now += 1 + self.random.below(MS as usize) as Nanos;
        let requests = || self.requests.iter().enumerate().filter(|(_, one)| !one.over);
        let open: Vec<(usize, usize)> =
            requests().flat_map(|(at, one)| (0..one.sent.len()).map(move |sent| (at, sent))).collect();
        let index = if open.is_empty() {
            let Some((index, next)) = requests().min_by_key(|(_, one)| one.due) else { return };
            self.now = self.now.max(next.due);
            index
        } else {
            let (index, sent) = open[self.random.below(open.len())];
            let request = &mut self.requests[index];
            let (attempt, site) = request.sent.swap_remove(sent);
            let fails = request.kind == Kind::Poison || self.dead == Some(&*site);
            let verdict = if fails { Verdict::Failed } else { Verdict::Answer };
            for event in [Event::Head(verdict), Event::Whole { bytes: 1 }] {
                request.attempts.on(&mut self.router, attempt, event, self.now);
            }
            index
        };
        self.drive(index);
    }

    fn finish(&mut self) {
        while self.requests.iter().any(|one| !one.over) {
            self.step();
        }
    }

    /// Whether nothing failed at one replica alone, of which nobody knows whose fault it is.
    fn is_clear(&self) -> bool {
        self.requests.iter().all(|one| one.kind == Kind::Good || one.asked.len() > 1)
    }

    fn out(&self) -> Vec<String> {
        let is_out = |id: &_| self.router.standing(*id).is_some_and(|standing| standing.ejected.is_some());
        self.router.ids().filter(is_out).map(|id| name(&self.router, id)).collect()
    }
}

fn fleet(sites: usize) -> Vec<Replica> {
    ["a", "b", "c", "d", "e"][..sites]
        .iter()
        .zip(1..)
        .map(|(site, far)| peer(site, far * far * 10 * MS, "eu"))
        .collect()
}

proptest! {
    #[test]
    fn nobody_is_out_for_requests_that_fail_everywhere(
        sites in 2usize..6, seed: u64, poison in prop::collection::vec((any::<bool>(), 0usize..4), 1..30),
    ) {
        let mut gate = Gate::new(sites, seed, None);
        for (good, steps) in poison {
            gate.begin(if good { Kind::Good } else { Kind::Poison });
            (0..steps).for_each(|_| gate.step());
        }
        gate.finish();
        prop_assume!(gate.is_clear());
        prop_assert_eq!(gate.out(), Vec::<String>::new());
    }

    #[test]
    fn a_dead_replica_stays_out_and_alone_whatever_else_fails(
        seed: u64, poison in prop::collection::vec((prop::bool::weighted(0.7), 0usize..4), 1..30),
    ) {
        let mut gate = Gate::new(3, seed, Some("a"));
        // Several at a time, since one after the other they go elsewhere before it has failed often enough.
        while gate.out().is_empty() {
            (0..3).for_each(|_| gate.begin(Kind::Good));
            gate.finish();
            prop_assert!(gate.requests.len() < 100, "it is never noticed");
        }
        for (good, steps) in poison {
            gate.begin(if good { Kind::Good } else { Kind::Poison });
            (0..steps).for_each(|_| gate.step());
        }
        gate.finish();
        prop_assume!(gate.is_clear());
        prop_assert_eq!(gate.out(), ["a"]);
    }
}

#[test]
fn three_at_a_time_leave_nobody_out() {
    let mut gate = Gate::new(3, 1, None);
    (0..3).for_each(|_| gate.begin(Kind::Poison));
    // They go from one replica to the next together.
    let (mut most, mut changes) = (0, Vec::new());
    while gate.requests.iter().any(|one| !one.over) {
        gate.step();
        most = most.max(gate.out().len());
        changes.extend(gate.router.take_changes());
    }
    assert!(most > 0, "three failures eject until more is known");
    assert_eq!(gate.out(), [""; 0]);
    // Whoever looks is told of each that it is back.
    let back = changes.iter().filter(|change| change.ejected.is_none()).count();
    assert_eq!(back * 2, changes.len());
    // And each has its whole share at once: nothing is left of what never was.
    let explained = gate.router.explain(&call(gate.now), gate.now);
    assert!(explained.candidates.iter().all(|one| one.verdict.is_ok()), "{explained:?}");
}

#[test]
fn only_failures_at_which_several_were_are_taken_back() {
    let mut gate = Gate::new(1, 1, None);
    gate.begin(Kind::Poison);
    gate.finish();
    assert_eq!(gate.out(), ["a"], "one replica alone failed: nobody knows why");
}

#[test]
fn what_probes_found_out_is_no_requests_fault() {
    for (probe, why) in [(Probe::Wrong, Ejection::Wrong), (Probe::Failed, Ejection::Failures)] {
        let mut gate = Gate::new(3, 1, None);
        (0..3).for_each(|_| gate.begin(Kind::Poison));
        let id = gate.router.find("a").unwrap();
        (0..3).for_each(|_| gate.router.probed(id, probe, 0));
        gate.finish();
        assert_eq!(gate.out(), ["a"], "{probe:?}");
        assert_eq!(gate.router.standing(id).and_then(|standing| standing.ejected), Some(why));
    }
}

#[test]
fn an_error_of_the_callers_makes_no_replica_look_quick_or_well() {
    let mut router = router(fleet(1), settings());
    let answers = |router: &mut Router, verdict, took, now| {
        let mut attempts = Attempts::new(Call { repeatable: false, ..call(now) });
        let Action::Send { attempt, .. } = attempts.poll(router, now) else { panic!("it was not sent") };
        attempts.on(router, attempt, Event::Head(verdict), now + took);
        attempts.on(router, attempt, Event::Whole { bytes: 1 }, now + took);
        assert!(matches!(attempts.poll(router, now + took), Action::Finish { .. } | Action::Fail(_)));
        now + took
    };
    let now = (0..50).fold(0, |now, _| answers(&mut router, Verdict::Answer, 20 * MS, now));
    let id = router.find("a").unwrap();
    let before = router.standing(id);
    let mut now = (0..50).fold(now, |now, _| answers(&mut router, Verdict::Rejected, MS / 10, now));
    assert_eq!(router.standing(id), before);
    // One that fails at what it should answer is noticed, whatever it refuses between.
    for _ in 0..3 {
        now = answers(&mut router, Verdict::Failed, MS, now);
        now = (0..50).fold(now, |now, _| answers(&mut router, Verdict::Rejected, MS / 10, now));
    }
    assert_eq!(router.standing(id).and_then(|standing| standing.ejected), Some(Ejection::Failures));
}
