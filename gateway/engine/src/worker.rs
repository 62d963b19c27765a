//! The threads that own the sessions of a graph.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use crate::backend::Session;
use crate::queue::{Answer, Queue, Waiting};
use crate::{EngineError, GraphCounts};

/// What a graph's handle and its workers share. The weights are the sessions' alone, so that they go with the workers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub queue: Queue,
    pub counts: Counts,
}

/// [`GraphCounts`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    inferences: AtomicU64,
    executions: AtomicU64,
    failures: AtomicU64,
    pub withdrawn: AtomicU64,
    queue_ns: AtomicU64,
    compute_ns: AtomicU64,
}

impl Counts {
    pub fn read(&self) -> GraphCounts {
        GraphCounts {
            inferences: self.inferences.load(Relaxed),
            executions: self.executions.load(Relaxed),
            failures: self.failures.load(Relaxed),
            withdrawn: self.withdrawn.load(Relaxed),
            queue_ns: self.queue_ns.load(Relaxed),
            compute_ns: self.compute_ns.load(Relaxed),
        }
    }
}

/// Starts a worker for each session. They end when the queue is closed and empty.
pub(crate) fn start(sessions: Vec<Box<dyn Session>>, shared: &Arc<Shared>, engine: &str) -> Result<(), EngineError> {
    for (i, session) in sessions.into_iter().enumerate() {
        let mine = Arc::clone(shared);
        let name = format!("{}-work-{i}", &engine[..engine.len().min(4)]);
        let started = thread::Builder::new().name(name).spawn(move || serve(session, &mine));
        if let Err(error) = started {
            shared.queue.close();
            return Err(EngineError::Unavailable(format!("no thread for a session: {error}")));
        }
    }
    Ok(())
}

fn serve(mut session: Box<dyn Session>, shared: &Shared) {
    session.serve(&mut |session| {
        while let Some(waiting) = shared.queue.take() {
            run(session, waiting, shared);
        }
    });
}

/// Runs one job, unless nobody waits for it any more.
fn run(session: &mut dyn Session, waiting: Waiting, shared: &Shared) {
    let counts = &shared.counts;
    let started = Instant::now();
    if waiting.reply.is_closed() {
        counts.withdrawn.fetch_add(1, Relaxed);
        return;
    }
    if waiting.deadline.is_some_and(|deadline| deadline <= started) {
        counts.withdrawn.fetch_add(1, Relaxed);
        let _ = waiting.reply.send(Err(EngineError::Deadline));
        return;
    }
    counts.queue_ns.fetch_add(nanoseconds(started - waiting.since), Relaxed);
    counts.executions.fetch_add(1, Relaxed);
    let answer = guarded(session, &waiting);
    counts.compute_ns.fetch_add(nanoseconds(started.elapsed()), Relaxed);
    let counter = if answer.is_ok() { &counts.inferences } else { &counts.failures };
    counter.fetch_add(1, Relaxed);
    // Inputs are freed here and not on the caller's way.
    let Waiting { reply, job, .. } = waiting;
    let _ = reply.send(answer);
    drop(job);
}

/// Runs a job; a panic of the engine becomes its error. No engine here keeps state from run to run that a panic could
/// leave half changed: what a run changes is its own.
fn guarded(session: &mut dyn Session, waiting: &Waiting) -> Answer {
    let run = AssertUnwindSafe(|| session.run(&waiting.job.inputs, &waiting.job.outputs));
    catch_unwind(run).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        tracing::error!(panic = why.unwrap_or("unknown"), "the engine panicked");
        Err(EngineError::Failed("the engine panicked while it ran this graph".into()))
    })
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
