//! Whose turn it is among guests that compute for long.
//!
//! Guests run on the executor's threads, which also read requests and write answers, and an executor serves whatever comes in
//! the order in which it comes: behind sixty guests of a flood that each hold a thread for a while, everybody else waits for
//! all of them. So of calls that compute for long no more are with the executor than there are cores, for a tick each. The
//! others wait here, in the order of the time that their callers have used, in guests and in engines. What does not compute
//! for long passes by.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use windrose_engine::{Caller, Engines, Share};

/// Ticks within which one that is with the executor is polled: where none was for so many, one more is let through. Whoever
/// polls a call has something else to do then, and must not stop the rest.
const STALLED: u32 = 16;
/// Calls of a program that wait for their turn from their beginning on, after one that computed for long.
const SUSPECTED: u32 = 32;

/// The guests of one process that compute for long.
pub(crate) struct Stage {
    /// How many are with the executor at the same time.
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those with the executor.
    running: usize,
    /// In the order in which they came.
    waiting: Vec<Arc<Turn>>,
    /// Turns that ended.
    ended: u64,
    /// As of the last tick, and for how many ticks it has been as many.
    seen: (u64, u32),
}

/// A program, as far as the stage is concerned.
pub(crate) struct Troupe {
    engines: Arc<Engines>,
    share: Share,
    /// Of how many calls to come it is suspected that they compute for long.
    suspected: AtomicU32,
}

/// One call's way onto the stage and off it. Dropping it gives its place to another.
pub(crate) struct OnStage(Arc<Turn>);

struct Turn {
    stage: Arc<Stage>,
    caller: Caller,
    weight: u32,
    place: Mutex<Place>,
}

struct Place {
    phase: Phase,
    /// Wakes who polls the call.
    outer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It waits for something else.
    Idle,
    /// It could go on, and waits for its turn.
    Waiting,
    /// It is its turn, and it was not polled yet.
    Called,
    Running,
    /// As `Running`, and it can go on at once.
    Woken,
    Done,
}

// === impl Stage ===

impl Stage {
    /// One for so many cores.
    pub fn new(cores: usize) -> Arc<Stage> {
        Arc::new(Stage { most: cores.max(1), state: Mutex::default() })
    }

    /// Puts a call among those that wait. `polled` is the one that is being polled, which need not be woken.
    fn enter(&self, turn: Arc<Turn>, polled: Option<&Turn>) {
        turn.caller.returns();
        let mut state = self.state();
        state.waiting.push(turn);
        let called = state.call(self.most);
        drop(state);
        wake(called, polled);
    }

    /// A turn is over; of a call that can go on at once the next one is `again`.
    fn leave(&self, again: Option<Arc<Turn>>) {
        let mut state = self.state();
        state.running -= 1;
        state.ended += 1;
        state.waiting.extend(again);
        let called = state.call(self.most);
        drop(state);
        wake(called, None);
    }

    fn forget(&self, turn: &Arc<Turn>) {
        self.state().waiting.retain(|other| !Arc::ptr_eq(other, turn));
    }

    /// A tick has passed.
    pub fn tick(&self) {
        let mut state = self.state();
        let (ended, ticks) = state.seen;
        let stands = !state.waiting.is_empty() && ended == state.ended;
        state.seen = (state.ended, if stands { ticks + 1 } else { 0 });
        if state.seen.1 < STALLED {
            return;
        }
        state.seen.1 = 0;
        let most = state.running + 1;
        let called = state.call(most);
        drop(state);
        wake(called, None);
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Calls who is next until so many are with the executor.
    fn call(&mut self, most: usize) -> Vec<Arc<Turn>> {
        let mut called = Vec::new();
        while self.running < most {
            // Of several that have used the same it is the one that came first.
            let first = self.waiting.iter().enumerate().min_by_key(|(_, turn)| turn.caller.turn()).map(|(at, _)| at);
            let Some(first) = first else { break };
            let turn = self.waiting.remove(first);
            let mut place = turn.place();
            if place.phase == Phase::Waiting {
                place.phase = Phase::Called;
                self.running += 1;
                drop(place);
                called.push(turn);
            }
        }
        called
    }
}

fn wake(called: Vec<Arc<Turn>>, polled: Option<&Turn>) {
    for turn in called.iter().filter(|turn| !polled.is_some_and(|polled| std::ptr::eq(&***turn, polled))) {
        let outer = turn.place().outer.clone();
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}

// === impl Troupe ===

impl Troupe {
    pub fn new(engines: Arc<Engines>, share: Share) -> Troupe {
        Troupe { engines, share, suspected: AtomicU32::new(0) }
    }

    pub fn is_suspected(&self) -> bool {
        self.suspected.load(Relaxed) > 0
    }

    /// Learns from a call that has ended whether it computed for long.
    pub fn ended(&self, long: bool) {
        if long {
            self.suspected.store(SUSPECTED, Relaxed);
        } else if self.is_suspected() {
            // Two at a time may take one too many: it is a guess anyway.
            self.suspected.store(self.suspected.load(Relaxed).saturating_sub(1), Relaxed);
        }
    }

    /// The way of a tenant's call.
    pub fn way(&self, stage: &Arc<Stage>, tenant: &Arc<str>) -> OnStage {
        let (caller, weight) = (self.engines.caller(tenant, &self.share.name), self.share.weight);
        let place = Mutex::new(Place { phase: Phase::Idle, outer: None });
        OnStage(Arc::new(Turn { stage: stage.clone(), caller, weight, place }))
    }
}

// === impl OnStage ===

impl OnStage {
    /// Polls the call if it is its turn. Else whoever polls is woken when it is.
    pub fn poll<T>(&self, cx: &Context<'_>, call: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if !self.begins(cx.waker()) {
            return Poll::Pending;
        }
        let begin = Instant::now();
        let waker = Waker::from(self.0.clone());
        let polled = call(&mut Context::from_waker(&waker));
        self.0.caller.used(begin.elapsed(), self.0.weight);
        self.ends(polled.is_ready());
        polled
    }

    fn begins(&self, outer: &Waker) -> bool {
        let mut place = self.0.place();
        match &mut place.outer {
            Some(old) => old.clone_from(outer),
            none => *none = Some(outer.clone()),
        }
        if place.phase == Phase::Idle {
            // Its first turn, or it was woken by a way round this.
            place.phase = Phase::Waiting;
            drop(place);
            self.0.stage.enter(self.0.clone(), Some(&self.0));
            place = self.0.place();
        }
        let called = place.phase == Phase::Called;
        if called {
            place.phase = Phase::Running;
        }
        called
    }

    fn ends(&self, ready: bool) {
        let mut place = self.0.place();
        place.phase = match place.phase {
            _ if ready => Phase::Done,
            Phase::Woken => Phase::Waiting,
            _ => Phase::Idle,
        };
        let again = (place.phase == Phase::Waiting).then(|| self.0.clone());
        drop(place);
        self.0.stage.leave(again);
    }
}

impl Drop for OnStage {
    fn drop(&mut self) {
        let phase = std::mem::replace(&mut self.0.place().phase, Phase::Done);
        match phase {
            Phase::Called | Phase::Running | Phase::Woken => self.0.stage.leave(None),
            Phase::Waiting => self.0.stage.forget(&self.0),
            Phase::Idle | Phase::Done => {}
        }
    }
}

impl Turn {
    /// As [`Stage::state`].
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        let mut place = self.place();
        match place.phase {
            Phase::Running => place.phase = Phase::Woken,
            Phase::Idle => {
                place.phase = Phase::Waiting;
                drop(place);
                let stage = self.stage.clone();
                stage.enter(self, None);
            }
            Phase::Waiting | Phase::Called | Phase::Woken | Phase::Done => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use proptest::prelude::*;
    use windrose_engine::EnginesConfig;

    use super::*;

    fn engines() -> Arc<Engines> {
        let config =
            EnginesConfig { onnxruntime: windrose_engine::OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
        Arc::new(Engines::new(config).expect("the built-in engine"))
    }

    fn troupe(engines: &Arc<Engines>, name: &str) -> Troupe {
        Troupe::new(engines.clone(), Share { name: name.into(), weight: 1 })
    }

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// One call, and who polls it.
    struct Played {
        way: OnStage,
        woken: Arc<Woken>,
        outer: Waker,
        /// What it was polled with last.
        inner: Option<Waker>,
    }

    impl Played {
        fn new(troupe: &Troupe, stage: &Arc<Stage>) -> Played {
            let woken = Arc::<Woken>::default();
            let outer = Waker::from(woken.clone());
            Played { way: troupe.way(stage, &"tenant".into()), woken, outer, inner: None }
        }

        /// Whether it had its turn, in which it computes for a moment and does `what`.
        fn polled(&mut self, what: impl FnOnce(&Waker) -> Poll<()>) -> bool {
            let (mut ran, inner) = (false, &mut self.inner);
            let _ = self.way.poll(&Context::from_waker(&self.outer), |cx| {
                ran = true;
                *inner = Some(cx.waker().clone());
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(50) {
                    std::hint::spin_loop();
                }
                what(cx.waker())
            });
            ran
        }

        fn is_called(&self) -> bool {
            self.woken.0.swap(0, Relaxed) > 0
        }
    }

    fn yields(waker: &Waker) -> Poll<()> {
        waker.wake_by_ref();
        Poll::Pending
    }

    #[test]
    fn no_more_than_there_are_cores_and_who_has_used_the_least_is_next() {
        let (engines, stage) = (engines(), Stage::new(1));
        let [loud, calm] = ["loud", "calm"].map(|name| troupe(&engines, name));
        let mut flood: VecDeque<Played> = (0..3).map(|_| Played::new(&loud, &stage)).collect();
        assert!(flood[0].polled(yields), "nobody else wants to");
        assert!(flood[0].is_called());
        assert!(!flood[1].polled(yields) && !flood[2].polled(yields), "the first has the core");
        let mut calm = Played::new(&calm, &stage);
        assert!(!calm.polled(yields));
        assert!(flood[0].polled(yields));
        assert!(calm.is_called() && !flood.iter().any(Played::is_called), "it has used nothing");
        assert!(calm.polled(|_| Poll::Pending), "it waits for something else now");
        assert!(flood[1].is_called(), "who came first");
        drop(flood.remove(1));
        assert!(flood[1].is_called(), "who goes leaves its place");
        calm.inner.take().expect("it was polled").wake();
        assert!(!calm.is_called());
        assert!(flood[1].polled(|_| Poll::Ready(())));
        assert!(calm.is_called() && calm.polled(|_| Poll::Ready(())));
        assert!(flood[0].is_called() && flood[0].polled(|_| Poll::Ready(())));
        assert_eq!(stage.state().running, 0);
    }

    #[test]
    fn who_is_called_and_not_polled_does_not_stop_the_rest() {
        let (engines, stage) = (engines(), Stage::new(1));
        let troupe = troupe(&engines, "m");
        let [mut first, mut second] = [(); 2].map(|()| Played::new(&troupe, &stage));
        assert!(first.polled(yields) && !second.polled(yields));
        (0..STALLED).for_each(|_| stage.tick());
        assert!(second.is_called() && second.polled(|_| Poll::Ready(())));
        drop(first);
        assert_eq!(stage.state().running, 0);
        (0..2 * STALLED).for_each(|_| stage.tick());
        assert_eq!(stage.state().running, 0);
    }

    #[test]
    fn a_program_is_suspected_for_some_calls_after_a_long_one() {
        let troupe = troupe(&engines(), "m");
        troupe.ended(false);
        assert!(!troupe.is_suspected());
        troupe.ended(true);
        for _ in 0..SUSPECTED {
            assert!(troupe.is_suspected());
            troupe.ended(false);
        }
        assert!(!troupe.is_suspected());
    }

    /// A future that yields, or waits for others to wake it, so many times.
    struct Steps(Vec<bool>, Arc<Mutex<Vec<Waker>>>);

    impl Future for Steps {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            match self.0.pop() {
                None => Poll::Ready(()),
                Some(true) => yields(cx.waker()),
                Some(false) => {
                    self.1.lock().expect("no panic").push(cx.waker().clone());
                    Poll::Pending
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever wakes whom, and whoever goes in the middle: all others come to their end, and no place is lost.
        #[test]
        fn every_call_ends(calls in prop::collection::vec((prop::collection::vec(any::<bool>(), 0..12), 0u8..10), 1..24)) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
            let (engines, stage) = (engines(), Stage::new(2));
            let troupes = ["a", "b", "c"].map(|name| Arc::new(troupe(&engines, name)));
            let parked = Arc::<Mutex<Vec<Waker>>>::default();
            runtime.block_on(async {
                let tasks: Vec<_> = calls.into_iter().enumerate().map(|(at, (steps, goes))| {
                    let way = troupes[at % 3].way(&stage, &"tenant".into());
                    let mut steps = Steps(steps, parked.clone());
                    let task = tokio::spawn(std::future::poll_fn(move |cx| way.poll(cx, |cx| Pin::new(&mut steps).poll(cx))));
                    if goes == 0 {
                        task.abort();
                    }
                    task
                }).collect();
                let waking = tokio::spawn(async move {
                    loop {
                        parked.lock().expect("no panic").drain(..).for_each(Waker::wake);
                        tokio::task::yield_now().await;
                    }
                });
                for task in tasks {
                    let ended = tokio::time::timeout(Duration::from_secs(20), task).await.expect("it is never its turn");
                    assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
                }
                waking.abort();
            });
            drop(runtime);
            let state = stage.state();
            prop_assert_eq!((state.running, state.waiting.len()), (0, 0));
        }
    }
}
