//! The bounded queue between callers and the workers of one graph, where jobs become batches.
//!
//! [`Queue::take`] is the only way from jobs to a worker. It picks the caller whose turn it is, gathers what has the key
//! of that caller's oldest job, and lets go of jobs that nobody waits for any more.
//!
//! The queue is bounded in jobs and in time: a job that would be expected to wait longer than its deadline allows, or
//! than the queue may be long, is refused at once, while a retry elsewhere still helps.

mod lanes;
mod staff;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::lanes::Lanes;
use self::staff::Staff;
use crate::batch::{Batch, BatchPolicy, Released};
use crate::check::Checked;
use crate::turnstile::{Gate, Turnstile};
use crate::user::User;
use crate::{EngineError, Residency, Share, Tensor};

/// What a caller gets back: outputs in the order asked for.
pub(crate) type Answer = Result<Vec<Tensor>, EngineError>;

/// A job that waits for a worker.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub job: Checked,
    pub tenant: Arc<str>,
    pub share: Share,
    /// Which user of the graph asks.
    pub user: Arc<User>,
    pub deadline: Option<Instant>,
    /// Where its answer goes; closed when its caller has gone.
    pub reply: oneshot::Sender<Answer>,
    /// When it was queued.
    pub since: Instant,
}

/// Names a job in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// How long a user's part of a queue may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Its jobs that may wait.
    pub jobs: usize,
    /// How long a job may be expected to wait, beside its deadline.
    pub wait: Option<Duration>,
    /// Workers that take from it; at least one.
    pub workers: usize,
}

/// Jobs by caller, with a fixed capacity.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Signalled when a job comes while a worker is parked, and when the queue closes.
    wake: Condvar,
    /// As [`Queue::wake`], for [`Post::Prompt`].
    prompt: Condvar,
    /// Signalled when a worker that waits for more jobs has enough of them.
    enough: Condvar,
    /// Nanoseconds of a worker for one row, of late; 0 before the first run.
    row_ns: AtomicU64,
    /// Nanoseconds of a worker for one run, of late.
    run_ns: AtomicU64,
    /// Runs so far.
    runs: AtomicU64,
    /// Whether there are workers.
    staff: Staff,
    /// Workers of [`Post::Prompt`].
    prompts: AtomicUsize,
    /// What is told when workers that were not dismissed could be.
    residency: OnceLock<Residency>,
}

/// Runs after which the averages say something: the first ones are slow.
const KNOWN: u64 = 16;

#[derive(Debug)]
struct State {
    lanes: Lanes,
    /// The next ticket's number.
    next: u64,
    /// Workers that wait in [`Queue::take`] for any job, and were not signalled.
    parked: usize,
    /// As [`State::parked`], of [`Post::Prompt`].
    resting: usize,
    /// Workers that wait for more jobs to run together.
    gathering: usize,
    /// Workers that have a batch, whose callers may have gone.
    running: usize,
    /// Those of them of [`Post::Prompt`].
    prompting: usize,
    /// Whether workers were to be dismissed while one of them ran.
    refused: bool,
    open: bool,
}

/// What a worker is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Post {
    /// For any job.
    Regular,
    /// For jobs of callers that were idle and are within their share, while others have the cores.
    Prompt,
}

/// What a worker is to do.
enum Plan {
    Run(usize, Released),
    Until(Instant),
    Park,
}

impl Queue {
    /// Of a graph whose runs share `cores` with others.
    pub fn new(cores: Option<Arc<Turnstile>>) -> Queue {
        let lanes = Lanes::new(cores);
        let state = Mutex::new(State {
            lanes,
            next: 0,
            parked: 0,
            resting: 0,
            gathering: 0,
            running: 0,
            prompting: 0,
            refused: false,
            open: true,
        });
        let [wake, prompt, enough] = [const { Condvar::new() }; 3];
        let [row_ns, run_ns, runs] = [const { AtomicU64::new(0) }; 3];
        let (staff, prompts, residency) = (Staff::default(), AtomicUsize::new(0), OnceLock::new());
        Queue { state, wake, prompt, enough, row_ns, run_ns, runs, staff, prompts, residency }
    }

    /// How a user's jobs are gathered from now on.
    pub fn set_policy(&self, user: &User, policy: BatchPolicy) {
        // Under the lock, so that a worker sees it before it waits or is woken.
        let _state = self.lock();
        user.set_policy(policy);
        self.enough.notify_all();
    }

    /// Queues a job, or refuses it at once.
    pub fn push(&self, waiting: Waiting) -> Result<Ticket, EngineError> {
        let mut state = self.lock();
        if !state.open {
            return Err(EngineError::Stopped);
        }
        if state.lanes.jobs() > 0 {
            self.check_wait(&state, &waiting)?;
        }
        let mut evicted = None;
        let (most, policy) = (waiting.user.bounds.jobs, waiting.user.policy());
        if state.lanes.jobs() >= most && state.lanes.jobs_of(&waiting.user) >= most {
            evicted = state.lanes.make_room(&waiting);
            if evicted.is_none() {
                return Err(EngineError::QueueFull);
            }
        }
        let ticket = Ticket(state.next);
        state.next += 1;
        let (first, calm) = state.lanes.push(ticket, waiting);
        let prompt = calm && state.resting > 0 && policy.delay.is_zero();
        // A lane that was empty may be due before what is waited with.
        let due = first || policy.delay.is_zero() || state.lanes.rows() >= policy.max_rows;
        let enough = !prompt && due && state.gathering > 0;
        let wake = !prompt && state.gathering == 0 && state.parked > 0;
        state.resting -= usize::from(prompt);
        state.parked -= usize::from(wake);
        drop(state);
        // After the lock is free, so that the worker does not wake up to wait for it.
        if prompt {
            self.prompt.notify_one();
        }
        if wake {
            self.wake.notify_one();
        }
        if enough {
            self.enough.notify_one();
        }
        if let Some(Waiting { reply, user, .. }) = evicted {
            user.counts.withdrawn.fetch_add(1, Relaxed);
            let _ = reply.send(Err(EngineError::QueueFull));
        }
        Ok(ticket)
    }

    /// Refuses a job that would wait longer than it can, or than anything may here.
    fn check_wait(&self, state: &State, waiting: &Waiting) -> Result<(), EngineError> {
        if self.runs.load(Relaxed) < KNOWN {
            return Ok(());
        }
        let expected = (state.lanes.rows_before(waiting) as u64).saturating_mul(self.row_ns.load(Relaxed));
        let bounds = &waiting.user.bounds;
        let expected = Duration::from_nanos(expected / bounds.workers as u64);
        let late = waiting.deadline.is_some_and(|deadline| waiting.since + expected > deadline);
        if late || bounds.wait.is_some_and(|most| expected > most) {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            return Err(EngineError::QueueLong { millis });
        }
        Ok(())
    }

    /// Takes a job out again. False when a worker has it already.
    pub fn withdraw(&self, ticket: Ticket) -> bool {
        self.lock().lanes.remove(ticket).is_some()
    }

    /// Fills `batch` with what a worker runs next, and what has gone meanwhile; waits for it, and then for its turn at
    /// `gate`, so that what comes in that time runs with it. False when the queue is closed and empty, or its workers were
    /// dismissed.
    pub fn take(&self, batch: &mut Batch, gate: &mut Option<Gate>, post: Post) -> bool {
        let (mut state, mut ready) = (self.lock(), None);
        if std::mem::take(&mut batch.running) {
            state.prompting -= usize::from(post == Post::Prompt);
            state = self.rests(state);
        }
        if self.is_dismissed() {
            return false;
        }
        loop {
            batch.taken = Instant::now();
            let plan = self.plan(&state, batch.taken, post);
            match (&plan, gate.as_mut()) {
                (Plan::Run(lane, _), Some(gate)) => {
                    batch.ready = *ready.get_or_insert(batch.taken);
                    if !gate.try_pass()
                        && let Some((account, beside)) = state.lanes.account(*lane)
                    {
                        // Whose turn it is may be for long: it has a session, and is not gone before.
                        state.running += 1;
                        drop(state);
                        gate.pass(&account, beside);
                        state = self.lock();
                        state = self.rests(state);
                        continue;
                    }
                }
                (Plan::Run(..), None) => batch.ready = batch.taken,
                // Another worker took what this one has waited with.
                (Plan::Until(_) | Plan::Park, gate) => {
                    ready = None;
                    if let Some(gate) = gate {
                        gate.leave();
                    }
                }
            }
            match plan {
                Plan::Run(lane, released) => {
                    let most = state.lanes.policy(lane).max_rows;
                    let full = state.lanes.gather(lane, most, batch, post == Post::Regular);
                    batch.released = (most > 1).then_some(if full { Released::Full } else { released });
                    let other = self.another(&mut state);
                    batch.running = true;
                    state.running += 1;
                    state.prompting += usize::from(post == Post::Prompt);
                    drop(state);
                    if let Some(other) = other {
                        other.notify_one();
                    }
                    return true;
                }
                Plan::Until(due) => {
                    self.call_prompt(&mut state);
                    state.gathering += 1;
                    let wait = due.saturating_duration_since(batch.taken);
                    let woken = self.enough.wait_timeout(state, wait);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                    state.gathering -= 1;
                    if self.is_dismissed() {
                        return false;
                    }
                }
                Plan::Park if !state.open || self.is_dismissed() => return false,
                Plan::Park if post == Post::Prompt => {
                    // What it was woken for is for others now.
                    if let Some(other) = self.another(&mut state) {
                        other.notify_one();
                    }
                    state.resting += 1;
                    state = self.prompt.wait(state).unwrap_or_else(PoisonError::into_inner);
                    if self.is_dismissed() {
                        return false;
                    }
                }
                Plan::Park => {
                    self.call_prompt(&mut state);
                    state.parked += 1;
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                    if self.is_dismissed() {
                        return false;
                    }
                    // A wake-up that nobody asked for leaves this worker counted: `push` then signals once in vain.
                }
            }
        }
    }

    /// A worker has no batch any more. Where that kept others from being dismissed they are now.
    fn rests<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.running -= 1;
        if state.running > 0 || !std::mem::take(&mut state.refused) {
            return state;
        }
        let Some(residency) = self.residency.get() else { return state };
        drop(state);
        residency.trim();
        self.lock()
    }

    /// Calls a prompt worker for what is left to it, and came when it was not called.
    fn call_prompt(&self, state: &mut State) {
        if state.resting > 0 && self.calm(state).is_some() {
            state.resting -= 1;
            self.prompt.notify_one();
        }
    }

    /// Where a worker waits that sees to the jobs that are left: for any job, or for more of some to run together, which
    /// makes none wait that need not.
    fn another(&self, state: &mut State) -> Option<&Condvar> {
        if state.lanes.jobs() == 0 {
            return None;
        }
        if state.parked > 0 {
            state.parked -= 1;
            return Some(&self.wake);
        }
        if state.gathering > 0 {
            return Some(&self.enough);
        }
        let calm = state.resting > 0 && self.calm(state).is_some();
        state.resting -= usize::from(calm);
        calm.then_some(&self.prompt)
    }

    fn plan(&self, state: &State, now: Instant, post: Post) -> Plan {
        let lanes = &state.lanes;
        let lane = match post {
            Post::Regular => lanes.next(|lane| !self.is_prompts(state, lane) && self.release(state, lane, now).is_ok()),
            Post::Prompt => self.calm(state),
        };
        match lane.map(|lane| (lane, self.release(state, lane, now))) {
            Some((lane, Ok(released))) => Plan::Run(lane, released),
            Some((_, Err(due))) => Plan::Until(due),
            None if post == Post::Prompt => Plan::Park,
            None => lanes
                .busy()
                .filter_map(|lane| self.release(state, lane, now).err())
                .min()
                .map_or(Plan::Park, Plan::Until),
        }
    }

    /// The lane that a prompt worker sees to next.
    fn calm(&self, state: &State) -> Option<usize> {
        // What waits for others needs no worker of its own.
        state.lanes.next_calm(|lane| state.lanes.policy(lane).delay.is_zero())
    }

    /// Whether a lane's head is for a prompt worker alone: with any other it would wait for a run of somebody else's to end,
    /// and then have the lower priority.
    fn is_prompts(&self, state: &State, lane: usize) -> bool {
        // Where each of them has something to do, whoever comes first sees to it.
        state.prompting < self.prompts.load(Relaxed)
            && state.lanes.is_pressed(lane)
            && state.lanes.policy(lane).delay.is_zero()
    }

    /// How many of the workers that come next are prompt ones.
    pub fn set_prompts(&self, prompts: usize) {
        self.prompts.store(prompts, Relaxed);
    }

    /// Why the head of a lane may run now, or how long it is to wait for others.
    fn release(&self, state: &State, lane: usize, now: Instant) -> Result<Released, Instant> {
        let policy = state.lanes.policy(lane);
        let Some(head) = state.lanes.head(lane).filter(|_| policy.max_rows > 1 && !policy.delay.is_zero()) else {
            return Ok(Released::Idle);
        };
        let due = head.since + policy.delay;
        if due <= now || !state.open {
            return Ok(Released::Delay);
        }
        if head.job.rows.is_none() || state.lanes.rows_with(lane, policy.max_rows) >= policy.max_rows {
            return Ok(Released::Full);
        }
        let run = Duration::from_nanos(self.run_ns.load(Relaxed).saturating_mul(2));
        match head.deadline.map(|deadline| deadline.checked_sub(run).unwrap_or(now)) {
            Some(latest) if latest <= now => Ok(Released::Deadline),
            Some(latest) => Err(due.min(latest)),
            None => Err(due),
        }
    }

    /// Learns how long a run took, the wait for a core included.
    pub fn observe(&self, rows: usize, run: Duration) {
        let late = |average: &AtomicU64, sample: u64| {
            let old = average.load(Relaxed);
            // Two workers may overwrite each other's sample: it is one of many.
            average.store(if old == 0 { sample } else { old - old / 8 + sample / 8 }, Relaxed);
        };
        let run = u64::try_from(run.as_nanos()).unwrap_or(u64::MAX);
        self.runs.fetch_add(1, Relaxed);
        late(&self.run_ns, run);
        late(&self.row_ns, run / rows.max(1) as u64);
    }

    /// How long a run takes of late; `None` before the first.
    pub fn usual(&self) -> Option<Duration> {
        (self.runs.load(Relaxed) > 0).then(|| Duration::from_nanos(self.run_ns.load(Relaxed)))
    }

    /// Refuses further jobs and lets the workers go when none is left.
    pub fn close(&self) {
        self.lock().open = false;
        self.wake.notify_all();
        self.prompt.notify_all();
        self.enough.notify_all();
    }

    /// Whether a user's job may run at once beside the workers: none waits, and none is to wait for others. Says how many
    /// rows may run together.
    pub fn is_free(&self, user: &User) -> Option<usize> {
        let (state, policy) = (self.lock(), user.policy());
        (state.open && state.lanes.jobs() == 0 && policy.delay.is_zero()).then_some(policy.max_rows)
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lock().lanes.jobs()
    }

    /// Jobs that wait and are of one [`Share::name`].
    pub fn of(&self, name: &str) -> usize {
        self.lock().lanes.of(name)
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
