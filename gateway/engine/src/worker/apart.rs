//! Jobs whose run as one failed: each runs alone, so that an input that fails the graph, ends its process or never comes
//! to an end fails its own caller only.
//!
//! Which input it was shows only when it does so again. An input without an end costs the others the time that its run is
//! given; so while others wait that is half of what they have left, and each further one costs half of the rest. A job
//! that was cut short in that way has done nothing wrong yet: it runs again, last, for as long as any may.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use super::{Shared, alone, answered, execute, withdraw};
use crate::backend::Session;
use crate::queue::Waiting;
use crate::{EngineError, Fault};

/// The least that a run is given, whoever waits: to end one costs a start of the child, which loads the graph.
const LEAST: Duration = Duration::from_secs(1);
/// The least that a run is given, as a multiple of what runs take.
const TIMES: u32 = 8;
/// How long the jobs of one batch wait, together, for a child whose start is put off. The others did not end it.
const RESTARTS: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How long a run may take on whose end these jobs wait, so that there is time left to run each without the others. `None`
/// for as long as any.
pub(super) fn patience<'a>(jobs: impl Iterator<Item = &'a Waiting>, shared: &Shared) -> Option<Duration> {
    let (now, usual) = (Instant::now(), shared.queue.usual()?);
    let first = jobs.filter(|waiting| !waiting.is_gone(now)).filter_map(|waiting| waiting.deadline).min()?;
    Some((first.saturating_duration_since(now) / 2).max(usual.saturating_mul(TIMES)).max(LEAST))
}

/// Runs each of these jobs alone, one of which may have failed with `error` when they ran as one.
pub(super) fn each(session: &mut dyn Session, mut jobs: VecDeque<Waiting>, error: &EngineError, shared: &Shared) {
    let (mut cut_short, mut restarts) = (Vec::new(), RESTARTS);
    session.suspect(error.fault() == Fault::Crash);
    while let Some(waiting) = jobs.pop_front() {
        session.wanted(waiting.deadline);
        await_child(session, &waiting, &mut restarts);
        if waiting.is_gone(Instant::now()) {
            withdraw(waiting);
            continue;
        }
        let is_cut = session.limit(patience(jobs.iter(), shared));
        let (answer, time) = execute(session, &waiting.job, &waiting.user, shared);
        match answer {
            Err(EngineError::TimeLimit) if is_cut => cut_short.push(waiting),
            answer => {
                answered(waiting, answer, time, shared);
            }
        }
    }
    session.limit(None);
    session.suspect(false);
    for waiting in cut_short {
        session.wanted(waiting.deadline);
        await_child(session, &waiting, &mut restarts);
        if waiting.is_gone(Instant::now()) {
            withdraw(waiting);
        } else {
            alone(session, waiting, shared);
        }
    }
}

/// Waits for the child that is to run a job, where its start is put off.
fn await_child(session: &mut dyn Session, waiting: &Waiting, left: &mut Duration) {
    while !left.is_zero() && !waiting.is_gone(Instant::now()) && !session.is_ready() {
        thread::sleep(LOOK);
        *left = left.saturating_sub(LOOK);
    }
}
