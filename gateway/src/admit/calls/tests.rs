//! The calls of a model with two workers that take a fixed time for each, in simulated time.

use std::collections::VecDeque;

use super::*;

const WORKERS: usize = 2;
const SERVICE: Duration = Duration::from_millis(5);
/// What the workers can do in a second.
const CAPACITY: f64 = 400.0;

/// A model under load.
struct Model {
    calls: Calls,
    start: Instant,
    /// Milliseconds since the start.
    now: f64,
    /// When each worker's call ends, and when that call came.
    running: Vec<(f64, f64)>,
    /// When the calls that wait have come.
    waiting: VecDeque<f64>,
    seed: u64,
}

/// What became of a load.
#[derive(Debug, Default)]
struct Seen {
    asked: usize,
    refused: usize,
    /// How long each answer took, in milliseconds.
    took: Vec<f64>,
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
        let (running, waiting) = (Vec::new(), VecDeque::new());
        Model { calls: Calls::new(64), start: Instant::now(), now: 0.0, running, waiting, seed: 7 }
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
            seen.took.push(ends - self.running.swap_remove(at).1);
            self.begin();
        }
        self.now = until;
    }

    fn begin(&mut self) {
        while self.running.len() < WORKERS
            && let Some(came) = self.waiting.pop_front()
        {
            self.running.push((self.now + SERVICE.as_secs_f64() * 1e3, came));
        }
    }

    fn ask(&mut self, seen: &mut Seen) {
        let in_flight = self.running.len() + self.waiting.len();
        let now = self.start + Duration::from_secs_f64(self.now / 1e3);
        seen.asked += 1;
        if self.calls.judge(in_flight, now, |_| self.running.len()) {
            self.waiting.push_back(self.now);
            self.begin();
        } else {
            seen.refused += 1;
        }
    }

    /// Calls that come at random, so many for each that the workers can answer, for some seconds.
    fn open(&mut self, load: f64, seconds: f64) -> Seen {
        let (mut seen, end) = (Seen::default(), self.now + seconds * 1e3);
        while self.now < end {
            let gap = -self.random().ln() * 1e3 / (CAPACITY * load);
            self.advance(self.now + gap, &mut seen);
            self.ask(&mut seen);
        }
        seen
    }

    /// As many clients as there may be calls, each of which asks again when it is answered, for five seconds; `more` is what
    /// happens between.
    fn closed(&mut self, more: impl Fn(&mut Model, &mut Seen)) -> Seen {
        let mut seen = Seen::default();
        for _ in 0..64 {
            self.ask(&mut seen);
        }
        for _ in 0..2_000 {
            let before = seen.took.len();
            self.advance(self.now + 2.5, &mut seen);
            for _ in before..seen.took.len() {
                self.ask(&mut seen);
            }
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
        assert!(seen.p99() <= 5.0 * SERVICE.as_secs_f64() * 1e3, "{load} times the load: {} ms", seen.p99());
        let used = seen.took.len() as f64 / (10.0 * CAPACITY);
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
    let seen = Model::new().closed(|_, _| {});
    assert_eq!(seen.refused, 0, "of {}", seen.asked);
}

#[test]
fn one_client_too_many_is_refused_alone() {
    let mut model = Model::new();
    let seen = model.closed(|model, seen| {
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
        assert_eq!(seen.refused, 200 - 64);
        model.advance(model.now + 500.0, &mut seen);
    }
}

#[test]
fn places_are_given_back() {
    let calls = Calls::new(2);
    let places = [calls.enter(|n| n), calls.enter(|n| n)];
    assert!(places.iter().all(Option::is_some) && calls.enter(|n| n).is_none() && !calls.has_room(|n| n));
    drop(places);
    assert!(calls.has_room(|n| n) && calls.free() == 2);
}
