//! What a decision costs: at most 2 microseconds at four candidates, and 20 at a thousand.
//!
//! `decision` is the first poll of a request, that chooses and sends, and giving it up again; `request` is everything that
//! the machine does for a request that is answered at once. `law` binds the request so that two in eight sites are lawful,
//! and `rare` so that one site is: every replica has to be looked at. So has it under `cheapest`, `local-first` and `weights`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use windrose_route::{
    Action, Attempts, Call, Event, Grants, Jurisdiction, Load, MILLISECOND, Nanos, Nature, Policy, Price, Random,
    Replica, Router, Rules, SECOND, Serves, Settings, Site, Source, Verdict,
};

const PLACES: [&str; 8] = ["eu", "us", "in", "br", "jp", "za", "au", "ch"];
/// Whose law holds at one site only.
const RARE: &str = "is";

/// A router of so many replicas, each of which has answered.
fn warm(count: usize) -> (Router, Nanos) {
    let mut random = Random::seeded(count as u64);
    let mut router = Router::new(Settings { digests: vec![[1; 32]], ..Settings::default() }, Random::seeded(1));
    let replica = |index: usize| Replica {
        site: Arc::new(Site {
            name: format!("s/{index}").into(),
            cloud: "s".into(),
            region: "r".into(),
            jurisdiction: Jurisdiction::new(if index == 3 { RARE } else { PLACES[index % 8] }).ok(),
            price: Price::default(),
        }),
        nature: Nature::Peer,
        serves: Serves::Digest([1; 32]),
        grants: Grants::NONE,
        distance: MILLISECOND * (1 + index as u64 % 90),
        weight: 1,
    };
    router.update((0..count).map(replica).collect(), 0);
    let mut now = 0;
    for _ in 0..count * 100 {
        now += MILLISECOND / 10;
        request(&mut router, &Call::until(now + SECOND), now, MILLISECOND + random.bits() % MILLISECOND);
    }
    for id in router.ids().collect::<Vec<_>>() {
        router.report(id, Load { in_flight: 3, queued: 1, parallel: 4, engine_time: MILLISECOND }, now);
    }
    (router, now)
}

fn decision(router: &mut Router, call: &Call, now: Nanos) -> Action {
    let mut attempts = Attempts::new(call.clone());
    let action = attempts.poll(router, now);
    attempts.abandon(router, now);
    action
}

fn request(router: &mut Router, call: &Call, now: Nanos, took: Nanos) -> Action {
    let mut attempts = Attempts::new(call.clone());
    if let Action::Send { attempt, .. } = attempts.poll(router, now) {
        black_box(attempts.poll(router, now));
        attempts.on(router, attempt, Event::Head(Verdict::Answer), now + took);
        attempts.on(router, attempt, Event::Whole { bytes: 200 }, now + took);
    }
    attempts.poll(router, now + took)
}

/// A call that only these places may answer.
fn bound(places: &[&str]) -> Call {
    let allow = places.iter().filter_map(|name| Jurisdiction::new(name).ok()).collect();
    let rules = Arc::new(Rules::none().and(Source::Manifest, Some(allow), Vec::new()));
    Call { rules, ..Call::until(Nanos::MAX) }
}

fn bench(criterion: &mut Criterion) {
    for count in [4, 16, 1_000] {
        let (mut router, start) = warm(count);
        let mut now = start;
        let mut decide = |router: &mut Router, name: &str, call: &Call| {
            criterion.bench_function(&format!("decision/{count}/{name}"), |bencher| {
                bencher.iter(|| {
                    now += 1_000;
                    black_box(decision(router, call, now))
                });
            });
        };
        let free = Call::until(Nanos::MAX);
        decide(&mut router, "free", &free);
        decide(&mut router, "law", &bound(&PLACES[..2]));
        decide(&mut router, "rare", &bound(&[RARE]));
        let fastest = router.settings().clone();
        let cheapest = Policy::Cheapest { p99: 50 * MILLISECOND };
        for (name, policy) in
            [("cheapest", cheapest), ("local-first", Policy::LocalFirst), ("weights", Policy::Weights)]
        {
            router.configure(Settings { policy, ..fastest.clone() });
            decide(&mut router, name, &free);
        }
        router.configure(fastest);
        criterion.bench_function(&format!("request/{count}"), |bencher| {
            bencher.iter(|| {
                now += 1_000;
                black_box(request(&mut router, &free, now, MILLISECOND))
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
