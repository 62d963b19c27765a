//! The threads that own the sessions of a graph.

mod apart;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::Session;
use crate::batch::{self, Batch};
use crate::check::Checked;
use crate::inline::Inline;
use crate::priority;
use crate::queue::{Answer, Post, Queue, Waiting};
use crate::turnstile::Gate;
use crate::user::{Parts, User};
use crate::{EngineError, Fault, Released, Tensor};

/// What a graph's handle and its workers share. The weights are the sessions' alone, so that they go with the workers.
pub(crate) struct Shared {
    pub queue: Queue,
    /// For runs that need no worker.
    pub inline: Inline,
    /// The inputs of the first job that was answered, where they are wanted.
    pub sample: Option<OnceLock<Vec<Tensor>>>,
}

/// Starts a worker for each session, and adds it to `workers`, which has those that started when no more can. They end when
/// the queue is empty, and closed or its workers dismissed.
pub(crate) fn start(
    sessions: Vec<(Box<dyn Session>, Post)>,
    shared: &Arc<Shared>,
    engine: &str,
    gate: impl Fn() -> Option<Gate>,
    workers: &mut Vec<thread::JoinHandle<()>>,
) -> Result<(), EngineError> {
    shared.queue.set_prompts(sessions.iter().filter(|(_, post)| *post == Post::Prompt).count());
    for (i, (session, post)) in sessions.into_iter().enumerate() {
        let (mine, gate) = (Arc::clone(shared), gate());
        let word = if post == Post::Prompt { "now" } else { "work" };
        let name = format!("{}-{word}-{i}", &engine[..engine.len().min(4)]);
        let started = thread::Builder::new().name(name).spawn(move || serve(session, post, &mine, gate));
        workers.push(started.map_err(|error| EngineError::Unavailable(format!("no thread for a session: {error}")))?);
    }
    Ok(())
}

fn serve(mut session: Box<dyn Session>, post: Post, shared: &Shared, mut gate: Option<Gate>) {
    let mut batch = Batch::new();
    session.serve(&mut |session| {
        // What waits for a device needs no core.
        if post == Post::Regular && gate.is_some() {
            priority::lower();
        }
        if let Some(gate) = &gate {
            let lender = gate.lender();
            session.on_waits(Box::new(move |begins| if begins { lender.lends() } else { lender.takes_back() }));
        }
        while shared.queue.take(&mut batch, &mut gate, post) {
            let waited = run(session, &mut batch, shared);
            if let Some(gate) = &mut gate {
                // Others had the core while this waited.
                let time = gate.used(batch.taken.elapsed().saturating_sub(waited));
                let rows = batch.charges.iter().map(|charge| charge.rows).sum();
                for charge in &batch.charges {
                    gate.charge(&charge.account, time, (charge.rows, rows), charge.weight);
                }
            }
            batch.charges.clear();
        }
    });
}

/// Runs what was taken, unless nobody waits for it any more. Returns how long it has waited for a process to run in.
fn run(session: &mut dyn Session, batch: &mut Batch, shared: &Shared) -> Duration {
    batch.gone.drain(..).for_each(withdraw);
    if batch.jobs.is_empty() {
        return Duration::ZERO;
    }
    let rows: usize = batch.jobs.iter().map(|waiting| rows(&waiting.job)).sum();
    for waiting in &batch.jobs {
        waiting.user.counts.queued(batch.taken - waiting.since);
    }
    let whole = match batch.jobs.len() {
        1 => {
            let released = batch.released;
            batch.jobs.drain(..).all(|waiting| {
                waiting.user.counts.released(released);
                alone(session, waiting, shared)
            })
        }
        _ => together(session, batch, shared),
    };
    let waited = session.waited();
    if whole {
        shared.queue.observe(rows, batch.ready.elapsed().saturating_sub(waited));
    }
    waited
}

/// Rows as they are counted: a job without an axis is one.
fn rows(job: &Checked) -> usize {
    job.rows.unwrap_or(1)
}

/// Ends a job that was not run: its caller has gone, or its deadline has passed.
fn withdraw(gone: Waiting) {
    gone.user.counts.withdrawn.fetch_add(1, Relaxed);
    let _ = gone.reply.send(Err(EngineError::Deadline));
}

/// Runs one job, on its own tensors. False when it was not run to its end.
fn alone(session: &mut dyn Session, waiting: Waiting, shared: &Shared) -> bool {
    session.wanted(waiting.deadline);
    let (answer, time) = execute(session, &waiting.job, &waiting.user, shared);
    answered(waiting, answer, time, shared)
}

/// Gives a job that ran alone its answer. False when it was not run to its end.
fn answered(waiting: Waiting, answer: Answer, time: Duration, shared: &Shared) -> bool {
    let Waiting { reply, job, user, .. } = waiting;
    user.counts.answered(rows(&job), answer.is_ok());
    shared.inline.observe(&job.inputs, time);
    // What was ended early, or has not begun, does not say how long a run takes.
    let early = |fault| matches!(fault, Fault::Time | Fault::Crash | Fault::Deadline | Fault::Unready);
    let whole = !matches!(&answer, Err(error) if early(error.fault()));
    let _ = reply.send(answer);
    // Inputs are freed here and not on the caller's way.
    drop(job);
    whole
}

/// Runs a job on the caller's thread, if it is known to be short and everything is free; `None` where it is to be queued.
pub(crate) fn here(shared: &Shared, user: &User, job: &Checked, now: Instant) -> Option<Answer> {
    let sparse = shared.inline.is_sparse(now);
    shared.inline.run(
        &job.inputs,
        sparse,
        || shared.queue.is_free(user),
        |session, most| {
            let (answer, time) = execute(session, job, user, shared);
            user.counts.answered(rows(job), answer.is_ok());
            user.counts.released((most > 1).then_some(Released::Idle));
            shared.queue.observe(rows(job), time);
            (answer, time)
        },
    )
}

/// Runs a job and counts the run. Returns how long the engine took, too.
fn execute(session: &mut dyn Session, job: &Checked, user: &User, shared: &Shared) -> (Answer, Duration) {
    let counts = &user.counts;
    let started = Instant::now();
    counts.begun();
    let answer = guarded(session, &job.inputs, &job.outputs);
    let time = started.elapsed();
    counts.ended(rows(job), time, time);
    if let Some(sample) = shared.sample.as_ref().filter(|_| answer.is_ok()) {
        sample.get_or_init(|| job.inputs.clone());
    }
    (answer, time)
}

/// Runs several jobs as one, and gives each its own rows. When that fails they run one by one: an input that the graph
/// does not bear fails its own caller only. False when they were not run to the end as one.
fn together(session: &mut dyn Session, batch: &mut Batch, shared: &Shared) -> bool {
    let parts = Parts::of(&batch.jobs);
    parts.released(batch.released);
    session.limit(apart::patience(batch.jobs.iter(), shared));
    session.wanted(last(&batch.jobs));
    let answers = run_together(session, batch, &parts);
    session.limit(None);
    match answers {
        Ok(answers) => {
            for (waiting, answer) in batch.jobs.drain(..).zip(answers) {
                let Waiting { reply, job, user, .. } = waiting;
                user.counts.answered(rows(&job), true);
                let _ = reply.send(Ok(answer));
                drop(job);
            }
            true
        }
        // No input is to blame: each alone would meet the same.
        Err(error) if matches!(error.fault(), Fault::Unready | Fault::Host) => {
            for waiting in batch.jobs.drain(..) {
                waiting.user.counts.answered(rows(&waiting.job), false);
                let _ = waiting.reply.send(Err(error.clone()));
            }
            false
        }
        Err(error) => {
            parts.separated();
            apart::each(session, batch.jobs.drain(..).collect(), &error, shared);
            false
        }
    }
}

/// When the last of these jobs is of no use any more; `None` where one of them always is.
fn last(jobs: &[Waiting]) -> Option<Instant> {
    let later = |last: Option<Instant>, waiting: &Waiting| waiting.deadline.map(|deadline| last.max(Some(deadline)));
    jobs.iter().try_fold(None, later).flatten()
}

fn run_together(session: &mut dyn Session, batch: &Batch, parts: &Parts) -> Result<Vec<Vec<Tensor>>, EngineError> {
    let (jobs, pads) = (&batch.jobs, batch.pads.as_deref());
    let begin = Instant::now();
    let inputs = batch::gathered(jobs, pads)?;
    let started = Instant::now();
    parts.begun();
    let outputs = guarded(session, &inputs, jobs.first().map_or(&[], |first| &first.job.outputs));
    let ended = Instant::now();
    parts.ended(ended - started);
    let answers = batch::scattered(jobs, &outputs?, pads)?;
    parts.copied(started - begin, ended.elapsed());
    Ok(answers)
}

/// Runs the graph; a panic of the engine becomes its error. No engine here keeps state from run to run that a panic could
/// leave half changed: what a run changes is its own.
fn guarded(session: &mut dyn Session, inputs: &[Tensor], outputs: &[usize]) -> Answer {
    let run = AssertUnwindSafe(|| session.run(inputs, outputs));
    catch_unwind(run).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        tracing::error!(panic = why.unwrap_or("unknown"), "the engine panicked");
        Err(EngineError::Failed("the engine panicked while it ran this graph".into()))
    })
}
