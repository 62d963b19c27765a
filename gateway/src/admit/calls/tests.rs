//! The calls of a model with two workers that take a fixed time for each, in simulated time.

use std::collections::VecDeque;

use super::*;

const WORKERS: usize = 2;
/// Milliseconds of work for each call.
const SERVICE: f64 = 5.0;

/// A model under load.
struct Model {
    calls: Calls,
    start: Instant,
    /// Milliseconds since the start.
    now: f64,
    /// When each worker's call ends.
    running: Vec<(f64, Call)>,
    waiting: VecDeque<Call>,
    /// Those that wait for a place.
    outside: VecDeque<Call>,
    ended: usize,
    /// Milliseconds of work for each call.
    service: f64,
    /// Whose call began last: the queue serves them in turns.
    served: usize,
    seed: u64,
}

struct Call {
    came: f64,
    tenant: usize,
    _seat: Option<Seated>,
}

/// The default tenant, and others.
fn tenants() -> [Arc<str>; 4] {
    [windrose_engine::default_tenant(), "a".into(), "b".into(), "c".into()]
}

/// What became of a load.
#[derive(Debug, Default)]
struct Seen {
    asked: usize,
    refused: usize,
    /// How long each answer took, in milliseconds.
    took: Vec<f64>,
    /// What each tenant asked, was refused and was answered.
    of: [[usize; 3]; 4],
}

impl Seen {
    fn p99(&self) -> f64 {
        let mut took = self.took.clone();
        took.sort_by(f64::total_cmp);
        took.get(took.len() * 99 / 100).copied().unwrap_or(f64::NAN)
    }
}

impl Model {
    fn new() -> Model {
        Model::of(SERVICE)
    }

    fn of(service: f64) -> Model {
        let (running, waiting, outside) = Default::default();
        let (calls, start) = (Calls::new(64), Instant::now());
        Model { calls, start, now: 0.0, running, waiting, outside, ended: 0, service, served: 0, seed: 7 }
    }

    /// What the workers can do in a second.
    fn capacity(&self) -> f64 {
        WORKERS as f64 * 1e3 / self.service
    }

    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.seed >> 11) as f64 / (1_u64 << 53) as f64).max(f64::MIN_POSITIVE)
    }

    /// Moves on to a time, with what ends until then.
    fn advance(&mut self, until: f64, seen: &mut Seen) {
        loop {
            let ends = self.running.iter().map(|(end, _)| *end).fold(f64::INFINITY, f64::min);
            if ends > until {
                break;
            }
            self.now = ends;
            let at = self.running.iter().position(|(end, _)| *end == ends).expect("it was found");
            let (_, call) = self.running.swap_remove(at);
            seen.took.push(ends - call.came);
            seen.of[call.tenant][2] += 1;
            self.ended += 1;
            self.leave(seen);
            self.waiting.extend(self.outside.pop_front());
            self.begin();
        }
        self.now = until;
        self.leave(seen);
    }

    /// Those that have waited for a place for too long.
    fn leave(&mut self, seen: &mut Seen) {
        let until = self.now - STANDS.as_secs_f64() * 1e3;
        while let Some(call) = self.outside.pop_front_if(|call| call.came < until) {
            self.calls.load().learn(true);
            seen.refused += 1;
            seen.of[call.tenant][1] += 1;
        }
    }

    fn begin(&mut self) {
        while self.running.len() < WORKERS && !self.waiting.is_empty() {
            let at = self.waiting.iter().position(|call| call.tenant != self.served).unwrap_or(0);
            let Some(call) = self.waiting.remove(at) else { return };
            self.served = call.tenant;
            self.running.push((self.now + self.service, call));
        }
    }

    fn ask(&mut self, seen: &mut Seen) {
        self.ask_as(0, seen);
    }

    fn ask_as(&mut self, tenant: usize, seen: &mut Seen) {
        let in_flight = self.running.len() + self.waiting.len();
        let now = self.start + Duration::from_secs_f64(self.now / 1e3);
        let name = &tenants()[tenant];
        seen.asked += 1;
        seen.of[tenant][0] += 1;
        let count = Count { in_flight, outside: self.outside.len(), ended: self.ended };
        if self.calls.judge(name, count, now, |_| self.running.len()) {
            let places = (in_flight, self.calls.most);
            let seat = self.calls.seats.take(name, places, || room(in_flight, |_| self.running.len()), now);
            let whose = if in_flight < self.calls.most { &mut self.waiting } else { &mut self.outside };
            whose.push_back(Call { came: self.now, tenant, _seat: seat.flatten() });
            self.begin();
        } else {
            seen.refused += 1;
            seen.of[tenant][1] += 1;
        }
    }

    /// Calls that come at random, so many for each that the workers can answer, for some seconds.
    fn open(&mut self, load: f64, seconds: f64) -> Seen {
        self.shared(&[load], seconds)
    }

    /// As [`Model::open`], with a load of each tenant.
    fn shared(&mut self, loads: &[f64], seconds: f64) -> Seen {
        let (mut seen, end) = (Seen::default(), self.now + seconds * 1e3);
        let all: f64 = loads.iter().sum();
        while self.now < end {
            let gap = -self.random().ln() * 1e3 / (self.capacity() * all);
            self.advance(self.now + gap, &mut seen);
            let mut at = self.random() * all;
            let whose = loads.iter().position(|load| {
                at -= load;
                at <= 0.0
            });
            self.ask_as(whose.unwrap_or(0), &mut seen);
        }
        seen
    }

    /// So many clients, each of which asks again when it is answered and a second after it was refused, for five seconds;
    /// `more` is what happens between.
    fn closed(&mut self, clients: usize, more: impl Fn(&mut Model, &mut Seen)) -> Seen {
        let mut seen = Seen::default();
        let mut asks: VecDeque<f64> = std::iter::repeat_n(self.now, clients).collect();
        for _ in 0..2_000 {
            let mut later = VecDeque::new();
            while let Some(at) = asks.pop_front() {
                if at > self.now {
                    later.push_back(at);
                    continue;
                }
                let refused = seen.refused;
                self.ask(&mut seen);
                later.extend((seen.refused > refused).then_some(self.now + 1e3));
            }
            asks = later;
            let (answered, refused) = (seen.took.len(), seen.refused);
            self.advance(self.now + 2.5, &mut seen);
            asks.extend(std::iter::repeat_n(self.now, seen.took.len() - answered));
            asks.extend(std::iter::repeat_n(self.now + 1e3, seen.refused - refused));
            more(self, &mut seen);
        }
        seen
    }

    fn pressed(&self) -> bool {
        self.calls.is_pressed()
    }
}

#[test]
fn overload_leaves_the_latency_of_what_is_admitted_and_the_workers_busy() {
    for (load, least) in [(1.1, 0.9), (1.5, 0.97), (3.0, 0.97), (10.0, 0.97)] {
        let mut model = Model::new();
        model.open(load, 5.0);
        assert!(model.pressed(), "{load} times the load");
        let seen = model.open(load, 10.0);
        assert!(seen.p99() <= 5.0 * SERVICE, "{load} times the load: {} ms", seen.p99());
        let used = seen.took.len() as f64 / (10.0 * model.capacity());
        assert!(used > least, "{load} times the load: {used} of what can be done");
    }
}

#[test]
fn pressure_ends_with_the_overload() {
    let mut model = Model::new();
    model.open(3.0, 2.0);
    model.open(0.9, 3.0);
    assert!(!model.pressed());
    let seen = model.open(0.9, 20.0);
    assert_eq!(seen.refused, 0, "of {}", seen.asked);
}

#[test]
fn a_load_that_is_sustained_is_never_refused() {
    for load in [0.5, 0.9, 0.95] {
        let seen = Model::new().open(load, 60.0);
        assert_eq!(seen.refused, 0, "{load} times the load, {} calls", seen.asked);
    }
}

#[test]
fn as_many_clients_as_calls_are_never_refused() {
    let seen = Model::new().closed(64, |_, _| {});
    assert_eq!(seen.refused, 0, "of {}", seen.asked);
}

#[test]
fn more_clients_than_calls_wait_where_calls_end_soon() {
    for (clients, service) in [(128, 0.1), (256, 0.1), (512, 0.1), (256, 0.4), (512, 0.15)] {
        let seen = Model::of(service).closed(clients, |_, _| {});
        assert_eq!(seen.refused, 0, "{clients} of {service} ms, of {}", seen.asked);
        assert!(
            seen.p99() <= clients as f64 * service / WORKERS as f64 + 5.0,
            "{clients} of {service} ms: {}",
            seen.p99()
        );
    }
}

#[test]
fn calls_that_end_late_are_waited_for_by_nobody() {
    let mut model = Model::of(100.0);
    let mut seen = Seen::default();
    for _ in 0..3 {
        (0..200).for_each(|_| model.ask(&mut seen));
        model.advance(model.now + 150.0, &mut seen);
        assert!(model.outside.is_empty());
    }
    let asked = seen.asked;
    for _ in 0..100 {
        model.ask(&mut seen);
    }
    assert!(seen.refused >= asked - 64 && model.outside.len() <= 1, "{} outside", model.outside.len());
}

#[test]
fn one_client_too_many_is_refused_alone() {
    let mut model = Model::new();
    let seen = model.closed(64, |model, seen| {
        // It comes back when it was told to.
        if model.now % 1_000.0 < 2.5 {
            model.ask(seen);
        }
    });
    assert!(!model.pressed());
    assert!(seen.refused <= 6, "{} of {}", seen.refused, seen.asked);
}

#[test]
fn a_burst_waits_rather_than_being_sent_away() {
    let mut model = Model::new();
    for _ in 0..20 {
        let mut seen = Seen::default();
        for _ in 0..200 {
            model.ask(&mut seen);
        }
        model.advance(model.now + 500.0, &mut seen);
        assert!((80..=200 - 64).contains(&seen.refused), "{}", seen.refused);
    }
}

#[test]
fn who_asks_for_less_than_its_share_is_not_refused_for_a_flood_of_others() {
    for (loads, quiet) in [(&[0.0, 3.0, 0.2][..], 2), (&[3.0, 0.0, 0.2], 2), (&[0.0, 5.0, 5.0, 0.15], 3)] {
        let mut model = Model::new();
        model.shared(loads, 2.0);
        let seen = model.shared(loads, 30.0);
        let [asked, refused, _] = seen.of[quiet];
        assert!(asked > 1_000 && refused * 200 <= asked, "{loads:?}: {refused} of {asked}");
        let used = seen.took.len() as f64 / (30.0 * model.capacity());
        assert!(used > 0.97, "{loads:?}: {used} of what can be done");
        assert!(seen.p99() <= 8.0 * SERVICE, "{loads:?}: {} ms", seen.p99());
    }
}

#[test]
fn floods_of_two_tenants_get_the_same() {
    let mut model = Model::new();
    let seen = model.shared(&[0.0, 2.0, 6.0], 30.0);
    let ratio = seen.of[2][2] as f64 / seen.of[1][2] as f64;
    assert!((0.9..1.25).contains(&ratio), "{:?}", seen.of);
}

#[test]
fn a_tenant_alone_leaves_a_place_to_who_comes() {
    let [_, a, b, c] = tenants();
    let calls = Arc::new(Calls::new(16));
    let mut places: Vec<_> = std::iter::repeat_with(|| calls.try_enter(&a, |n| n)).map_while(|place| place).collect();
    assert_eq!(places.len(), 14);
    places.extend([&b, &c].map(|tenant| calls.try_enter(tenant, |n| n).expect("a place is left")));
    assert!(calls.try_enter(&b, |n| n).is_none(), "there is none");
    places.drain(..4);
    assert!(calls.try_enter(&a, |n| n).is_none(), "what is free is for who was refused");
    assert!(calls.try_enter(&b, |n| n).is_some());
    drop(places);
    assert!(calls.try_enter(&a, |n| n).is_some() && calls.free() == 16);
    let one = Arc::new(Calls::new(1));
    assert!(one.try_enter(&a, |n| n).is_some(), "there is nothing to leave");
}

#[test]
fn a_golden_test_takes_no_clients_place() {
    let ([everybody, ..], prober) = (tenants(), Arc::<str>::from(PROBER));
    let calls = Arc::new(Calls::new(1));
    let probe = calls.try_enter(&prober, |n| n).expect("its own place");
    assert!(calls.try_enter(&prober, |n| n).is_none() && !calls.has_room(&prober, |n| n));
    assert!(calls.try_enter(&everybody, |n| n).is_some() && calls.here() == 0);
    drop(probe);
    assert!(calls.has_room(&prober, |n| n) && calls.has_room(&everybody, |n| n));
}

#[test]
fn places_are_given_back() {
    let calls = Arc::new(Calls::new(2));
    let [everybody, ..] = tenants();
    let enter = || calls.try_enter(&everybody, |n| n);
    let has_room = || calls.has_room(&everybody, |n| n);
    let places = [enter(), enter()];
    assert!(places.iter().all(Option::is_some) && enter().is_none() && has_room(), "one may wait");
    drop(places);
    assert!(has_room() && calls.free() == 2);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_given_back_goes_to_who_has_waited_longest() {
    let (calls, [everybody, a, ..]) = (Arc::new(Calls::new(2)), tenants());
    let until = || Instant::now() + Duration::from_secs(1);
    let enter = || Box::pin(calls.enter(&everybody, |n| n, until()));
    let mut places = [enter().await, enter().await];
    let (mut gone, mut first) = (enter(), enter());
    for call in [&mut gone, &mut first] {
        assert!(futures_util::poll!(call).is_pending());
    }
    assert_eq!(calls.here(), 4);
    assert!(enter().await.is_none(), "nobody knows that more than two would end soon");
    drop(gone);
    let mut second = enter();
    assert!(futures_util::poll!(&mut second).is_pending() && calls.here() == 4);
    places[0].take();
    assert!(calls.try_enter(&everybody, |n| n).is_none(), "it is promised");
    assert!(futures_util::poll!(&mut second).is_pending(), "to another");
    let place = first.await;
    assert!(place.is_some() && second.await.is_none() && calls.here() == 2, "none is given back");
    let deadline = Instant::now() + Duration::from_millis(10);
    assert!(calls.enter(&everybody, |n| n, deadline).await.is_none() && calls.here() == 2);
    assert!(calls.enter(&a, |n| n, until()).await.is_none(), "where tenants are told apart nobody waits");
}
