//! Whose turn it is among guests that compute for long.
//!
//! Guests run on the executor's threads, which also read requests and write answers, and an executor serves whatever comes in
//! the order in which it comes: behind sixty guests of a flood that each hold a thread for a while, everybody else waits for
//! all of them. So a call that computes for long needs a core of those that runs of graphs have, for a tick at a time, and
//! waits for it in the same order: that of what callers have used. What does not compute for long passes by.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use windrose_engine::{Caller, Core, Engines, Share, Waits};

/// Ticks within which a call that was given a core is polled. Whoever polls it may have something else to do: the core is
/// for another then.
const STALLED: u64 = 16;
/// Calls of a program that wait for their turn from their beginning on, after one that computed for long.
const SUSPECTED: u32 = 32;

/// The calls of one process that compute for long.
#[derive(Default)]
pub(crate) struct Stage {
    ticks: AtomicU64,
    turns: Mutex<Vec<Weak<Turn>>>,
}

/// A program, as far as the stage is concerned.
pub(crate) struct Troupe {
    engines: Arc<Engines>,
    share: Share,
    /// Of how many calls to come it is suspected that they compute for long.
    suspected: AtomicU32,
}

/// One call's way onto the stage and off it. Dropping it gives its core to another.
pub(crate) struct OnStage(Arc<Turn>);

struct Turn {
    stage: Arc<Stage>,
    caller: Caller,
    place: Mutex<Place>,
}

struct Place {
    phase: Phase,
    /// While it is called or runs.
    core: Option<Core>,
    /// The tick in which it was called.
    called: u64,
    /// Wakes who polls the call.
    outer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It waits for something else.
    Idle,
    /// It could go on, and waits for a core.
    Waiting,
    /// It has a core, and was not polled yet.
    Called,
    Running,
    /// As `Running`, and it can go on at once.
    Woken,
    Done,
}

// === impl Stage ===

impl Stage {
    /// A tick has passed.
    pub fn tick(&self) {
        let now = self.ticks.fetch_add(1, Relaxed) + 1;
        if !now.is_multiple_of(STALLED) {
            return;
        }
        let mut all = Vec::new();
        self.turns().retain(|turn| turn.upgrade().inspect(|turn| all.push(turn.clone())).is_some());
        for turn in all {
            turn.stalls(now);
        }
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn turns(&self) -> MutexGuard<'_, Vec<Weak<Turn>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
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
        let place = Mutex::new(Place { phase: Phase::Idle, core: None, called: 0, outer: None });
        let caller = self.engines.caller(tenant, &self.share);
        let turn = Arc::new(Turn { stage: stage.clone(), caller, place });
        stage.turns().push(Arc::downgrade(&turn));
        OnStage(turn)
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
        self.ends(begin.elapsed(), polled.is_ready());
        polled
    }

    fn begins(&self, outer: &Waker) -> bool {
        let turn = &self.0;
        let mut place = turn.place();
        match &mut place.outer {
            Some(old) => old.clone_from(outer),
            none => *none = Some(outer.clone()),
        }
        if place.phase == Phase::Idle {
            // Its first turn, or it was woken by a way round this.
            turn.caller.returns();
            if let Some(core) = turn.caller.begin() {
                (place.phase, place.core) = (Phase::Running, Some(core));
                return true;
            }
            place.phase = Phase::Waiting;
            drop(place);
            turn.caller.wait(turn.clone());
            place = turn.place();
        }
        let called = place.phase == Phase::Called;
        if called {
            place.phase = Phase::Running;
        }
        called
    }

    fn ends(&self, time: Duration, ready: bool) {
        let turn = &self.0;
        let mut place = turn.place();
        place.phase = match place.phase {
            _ if ready => Phase::Done,
            Phase::Woken => Phase::Waiting,
            _ => Phase::Idle,
        };
        let (core, again) = (place.core.take(), place.phase == Phase::Waiting);
        drop(place);
        if let Some(core) = core {
            turn.caller.end(core, time);
        }
        match again {
            true => turn.ask(),
            false => turn.caller.rests(),
        }
    }
}

impl Drop for OnStage {
    fn drop(&mut self) {
        let turn = &self.0;
        let mut place = turn.place();
        let phase = std::mem::replace(&mut place.phase, Phase::Done);
        let core = place.core.take();
        drop(place);
        if phase == Phase::Waiting {
            turn.caller.forget(turn);
        }
        if !matches!(phase, Phase::Idle | Phase::Done) {
            turn.caller.rests();
        }
        if let Some(core) = core {
            turn.caller.end(core, Duration::ZERO);
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Gets a core for a call that waits for one, now or when it is its turn.
    fn ask(self: &Arc<Self>) {
        match self.caller.begin() {
            Some(core) => {
                if let Err(core) = self.take(core) {
                    self.caller.end(core, Duration::ZERO);
                }
            }
            None => self.caller.wait(self.clone()),
        }
    }

    /// Takes a core and wakes who polls the call; gives it back where the call has gone.
    fn take(&self, core: Core) -> Result<(), Core> {
        let mut place = self.place();
        if place.phase != Phase::Waiting {
            return Err(core);
        }
        (place.phase, place.core, place.called) = (Phase::Called, Some(core), self.stage.ticks.load(Relaxed));
        let outer = place.outer.clone();
        drop(place);
        if let Some(outer) = outer {
            outer.wake();
        }
        Ok(())
    }

    /// Gives the core of a call back that nobody polls. It asks again when somebody does.
    fn stalls(&self, now: u64) {
        let mut place = self.place();
        if place.phase == Phase::Called && now.saturating_sub(place.called) >= STALLED {
            place.phase = Phase::Idle;
            let core = place.core.take();
            drop(place);
            self.caller.rests();
            if let Some(core) = core {
                self.caller.end(core, Duration::ZERO);
            }
        }
    }

    /// As [`Stage::turns`].
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
                self.caller.returns();
                self.ask();
            }
            Phase::Waiting | Phase::Called | Phase::Woken | Phase::Done => {}
        }
    }
}

impl Waits for Turn {
    fn called(self: Arc<Self>) -> bool {
        self.take(Core::own()).is_ok()
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("phase", &self.place().phase).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
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

    /// All cores but one, which somebody else has.
    fn all_but_one(engines: &Engines) -> (Caller, Vec<Core>) {
        let other = engines.caller(&"other".into(), &Share::default());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let held = (1..cores).map(|_| other.begin().expect("a free core")).collect();
        (other, held)
    }

    /// Whether nobody has a core.
    fn is_unused(engines: &Engines) -> bool {
        let (other, mut held) = all_but_one(engines);
        held.extend(other.begin());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let unused = held.len() == cores && held.iter().all(|core| format!("{core:?}") == format!("{:?}", Core::own()));
        held.into_iter().for_each(|core| other.end(core, Duration::ZERO));
        unused
    }

    #[test]
    fn no_more_than_there_are_cores_and_who_is_within_its_share_beside_them() {
        let (engines, stage) = (engines(), Arc::default());
        let (other, held) = all_but_one(&engines);
        let [loud, calm] = ["loud", "calm"].map(|name| troupe(&engines, name));
        let mut flood: Vec<Played> = (0..3).map(|_| Played::new(&loud, &stage)).collect();
        assert!(flood[0].polled(yields), "nobody else wants to");
        assert!(flood[0].is_called());
        assert!(!flood[1].polled(yields) && !flood[2].polled(yields), "the first has the core");
        let mut calm = Played::new(&calm, &stage);
        assert!(calm.polled(|_| Poll::Ready(())), "it has used nothing");
        assert!(!flood[1].is_called());
        assert!(flood[0].polled(yields));
        assert!(flood[1].is_called() && !flood[0].is_called() && !flood[2].is_called(), "who came first");
        drop(flood.remove(1));
        assert!(flood[1].is_called(), "who goes leaves its core");
        assert!(flood[1].polled(|_| Poll::Pending), "it waits for something else now");
        assert!(flood[0].is_called() && flood[0].polled(|_| Poll::Ready(())));
        flood[1].inner.take().expect("it was polled").wake();
        assert!(flood[1].is_called() && flood[1].polled(|_| Poll::Ready(())));
        held.into_iter().for_each(|core| other.end(core, Duration::ZERO));
        assert!(is_unused(&engines));
    }

    #[test]
    fn who_is_called_and_not_polled_does_not_stop_the_rest() {
        let (engines, stage) = (engines(), Arc::<Stage>::default());
        let (other, held) = all_but_one(&engines);
        let troupe = troupe(&engines, "m");
        let [mut first, mut second] = [(); 2].map(|()| Played::new(&troupe, &stage));
        assert!(first.polled(yields) && first.is_called() && !second.polled(yields));
        (0..STALLED).for_each(|_| stage.tick());
        assert!(second.is_called());
        assert!(!first.polled(yields), "it came too late");
        assert!(second.polled(|_| Poll::Ready(())));
        assert!(first.is_called() && first.polled(|_| Poll::Ready(())));
        held.into_iter().for_each(|core| other.end(core, Duration::ZERO));
        assert!(is_unused(&engines));
        drop((first, second));
        (0..STALLED).for_each(|_| stage.tick());
        assert!(stage.turns().is_empty());
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
            let (engines, stage) = (engines(), Arc::<Stage>::default());
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
            prop_assert!(is_unused(&engines));
        }
    }
}
