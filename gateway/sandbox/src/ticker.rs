//! Time: one thread for the process advances the epoch and ends the calls whose time is up.
//!
//! A call registers a [`Watch`] and runs under [`Watch::guard`]. Wall time is checked by the thread, so a call that is
//! parked in an engine or in a sleep ends as well; CPU time is counted slice by slice while the call is polled, so a
//! parked one is not charged.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, EngineWeak, UpdateDeadline};

use crate::stage::{Stage, Troupe};
use crate::{CallError, Limit};

/// The resolution of every limit on time, and the longest that a guest holds an executor's thread.
pub(crate) const TICK: Duration = Duration::from_millis(2);
/// What a call computes, beside the tick that it was met by, until it takes turns with others.
const LONG: Duration = Duration::from_millis(1);
/// Ticks without a call after which the thread sleeps. Waking it costs a call a system call.
const IDLE_TICKS: u32 = 1000;

/// The process's ticker. Dropping the last one ends its thread.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

struct Shared {
    engines: Mutex<Vec<EngineWeak>>,
    ticks: AtomicU64,
    calls: Mutex<Calls>,
    stage: Arc<Stage>,
    asleep: AtomicBool,
    wake: Condvar,
    stop: AtomicBool,
}

/// The calls that are running: a slab, so that coming and going is two pushes.
#[derive(Default)]
struct Calls {
    slots: Vec<Option<Arc<Watch>>>,
    free: Vec<usize>,
}

impl Ticker {
    /// Starts the thread that advances `engine`'s epoch. It ends when all its engines are gone.
    pub(crate) fn new(engine: &Engine) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared {
            engines: Mutex::new(vec![engine.weak()]),
            ticks: AtomicU64::new(0),
            calls: Mutex::default(),
            stage: Arc::default(),
            asleep: AtomicBool::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let thread = shared.clone();
        std::thread::Builder::new().name("sandbox-ticker".into()).spawn(move || thread.run())?;
        Ok(Ticker { shared })
    }

    /// Advances the epoch of another engine as well.
    pub(crate) fn add(&self, engine: &Engine) {
        self.shared.engines().push(engine.weak());
    }

    /// Watches a call of a tenant until the registration is dropped.
    pub(crate) fn watch(&self, watch: Watch, of: (Arc<Troupe>, Arc<str>)) -> Registration {
        let watch = Arc::new(watch);
        let mut calls = self.shared.calls();
        let index = match calls.free.pop() {
            Some(index) => {
                calls.slots[index] = Some(watch.clone());
                index
            }
            None => {
                calls.slots.push(Some(watch.clone()));
                calls.slots.len() - 1
            }
        };
        drop(calls);
        if self.shared.asleep.load(Ordering::Acquire) {
            self.shared.wake.notify_one();
        }
        Registration { watch, shared: self.shared.clone(), index, of }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engines(&self) -> MutexGuard<'_, Vec<EngineWeak>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            let engines: Vec<Engine> = self.engines().iter().filter_map(EngineWeak::upgrade).collect();
            if engines.is_empty() {
                return;
            }
            engines.iter().for_each(Engine::increment_epoch);
            drop(engines);
            self.ticks.fetch_add(1, Ordering::Relaxed);
            self.stage.tick();
            let now = Instant::now();
            let mut calls = self.calls();
            for watch in calls.slots.iter().flatten() {
                if watch.deadline <= now {
                    watch.end(watch.at_deadline);
                }
            }
            idle = if calls.free.len() == calls.slots.len() { idle + 1 } else { 0 };
            if idle >= IDLE_TICKS {
                calls.slots.clear();
                calls.free.clear();
                self.asleep.store(true, Ordering::Release);
                while calls.slots.is_empty() && !self.stop.load(Ordering::Acquire) {
                    // The timeout covers a call that came between the flag and the wait.
                    let waited = self.wake.wait_timeout(calls, Duration::from_secs(1));
                    calls = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                self.asleep.store(false, Ordering::Release);
                idle = 0;
            }
        }
    }
}

/// What ended a call from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum End {
    Deadline = 1,
    Memory,
    TensorMemory,
    CpuTime,
    WallTime,
    Output,
    Log,
    Stack,
}

impl End {
    const ALL: [End; 8] =
        [End::Deadline, End::Memory, End::TensorMemory, End::CpuTime, End::WallTime, End::Output, End::Log, End::Stack];
}

impl From<End> for CallError {
    fn from(end: End) -> CallError {
        CallError::Limit(match end {
            End::Deadline => return CallError::Deadline,
            End::Memory => Limit::Memory,
            End::TensorMemory => Limit::TensorMemory,
            End::CpuTime => Limit::CpuTime,
            End::WallTime => Limit::WallTime,
            End::Output => Limit::Output,
            End::Log => Limit::Log,
            End::Stack => Limit::Stack,
        })
    }
}

/// One call, as its time and its limits see it.
pub(crate) struct Watch {
    /// When it is over whatever it does.
    pub(crate) deadline: Instant,
    /// What that means: the caller's deadline or the model's own limit.
    at_deadline: End,
    /// CPU time that it may use.
    cpu: Duration,
    /// An [`End`], or 0 while nothing has ended it.
    ended: AtomicU8,
    /// The guest ran across a tick: from here on its CPU time is read from the clock.
    busy: AtomicBool,
    /// The tick in which the current poll began.
    polled_at: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Watch {
    /// A call that may take `wall` and `cpu`, and that the caller gives up at `deadline`.
    pub(crate) fn new(deadline: Instant, wall: Duration, cpu: Duration) -> Watch {
        let limit = Instant::now() + wall;
        let (deadline, at_deadline) =
            if deadline <= limit { (deadline, End::Deadline) } else { (limit, End::WallTime) };
        Watch {
            deadline,
            at_deadline,
            cpu,
            ended: AtomicU8::new(0),
            busy: AtomicBool::new(false),
            polled_at: AtomicU64::new(0),
            waker: Mutex::new(None),
        }
    }

    /// Ends the call, unless something else has. Its future is dropped when it is polled next, which is now.
    pub(crate) fn end(&self, why: End) {
        if self.ended.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// What ended the call, if anything has.
    pub(crate) fn ended(&self) -> Option<End> {
        let code = self.ended.load(Ordering::Acquire);
        End::ALL.into_iter().find(|end| *end as u8 == code)
    }

    fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(old) if old.will_wake(waker) => {}
            _ => *slot = Some(waker.clone()),
        }
    }
}

/// Keeps a call watched.
pub(crate) struct Registration {
    watch: Arc<Watch>,
    shared: Arc<Shared>,
    index: usize,
    /// Whose guest it is, and for which tenant.
    of: (Arc<Troupe>, Arc<str>),
}

impl Registration {
    /// The watch itself.
    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// A clock for the store's epoch callback.
    pub(crate) fn pacer(&self) -> Pacer {
        Pacer { watch: self.watch.clone(), shared: self.shared.clone() }
    }

    /// Runs `call` to its end or to the end of its time, whichever is first. What ended it wins over what it returned.
    pub(crate) async fn guard<T>(&self, mut call: Pin<&mut impl Future<Output = T>>) -> Result<T, End> {
        // What it has used, and how much of that was read from the clock: it may have met a tick by chance.
        let (mut used, mut read) = (Duration::ZERO, Duration::ZERO);
        let watch = &*self.watch;
        let (troupe, tenant) = &self.of;
        let mut way = troupe.is_suspected().then(|| troupe.way(&self.shared.stage, tenant));
        let ended = poll_fn(|cx| {
            if let Some(end) = watch.ended() {
                return Poll::Ready(Err(end));
            }
            watch.set_waker(cx.waker());
            if way.is_none() && read >= LONG {
                way = Some(troupe.way(&self.shared.stage, tenant));
            }
            let mut turn = |cx: &mut Context<'_>| {
                watch.polled_at.store(self.shared.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
                let start = watch.busy.load(Ordering::Relaxed).then(thread_cpu);
                let poll = call.as_mut().poll(cx);
                match start {
                    Some(start) => {
                        let time = thread_cpu().saturating_sub(start);
                        (used, read) = (used + time, read + time);
                    }
                    None if watch.busy.load(Ordering::Relaxed) => used += TICK,
                    None => {}
                }
                poll
            };
            let poll = match &way {
                Some(way) => way.poll(cx, turn),
                None => turn(cx),
            };
            if used > watch.cpu {
                watch.end(End::CpuTime);
            }
            match watch.ended() {
                Some(end) => Poll::Ready(Err(end)),
                None => poll.map(Ok),
            }
        })
        .await;
        troupe.ended(read >= LONG);
        ended
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut calls = self.shared.calls();
        if let Some(slot) = calls.slots.get_mut(self.index) {
            *slot = None;
            calls.free.push(self.index);
        }
    }
}

/// What a store does when a tick has passed in the guest.
pub(crate) struct Pacer {
    watch: Arc<Watch>,
    shared: Arc<Shared>,
}

impl Pacer {
    /// Lets the executor run others; a call that was only parked over the tick goes on.
    pub(crate) fn tick(&self) -> UpdateDeadline {
        if self.watch.polled_at.load(Ordering::Relaxed) == self.shared.ticks.load(Ordering::Relaxed) {
            return UpdateDeadline::Continue(1);
        }
        self.watch.busy.store(true, Ordering::Relaxed);
        UpdateDeadline::Yield(1)
    }
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
