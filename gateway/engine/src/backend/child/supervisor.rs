//! The life of a graph's child: started, watched, ended, started again.
//!
//! One thread does all of it for as long as the graph is loaded, for two reasons: the child dies with the thread that
//! started it, and whoever waits for a process keeps it from becoming a zombie.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::arena::Arena;
use super::entry::Job;
use super::presence::{Fate, Presence};
use super::restarts::{Life, Restarts};
use super::slots::Slot;
use super::{ChildConfig, socket, wire};
use crate::{EngineError, process};

/// How long it may take to learn how a process ended whose sockets are closed.
const ENDING: Duration = Duration::from_secs(5);
/// How much of the end of standard error is kept, bytes.
const TAIL: usize = 4 << 10;
/// How often it is read once the child has ended: more than a pipe holds.
const PIPE: usize = 64;

/// What sessions and the thread share.
pub(super) struct Supervisor {
    pub config: ChildConfig,
    job: Job,
    /// The graph's file, sealed: no child can change what the next one loads.
    onnx: OwnedFd,
    state: Mutex<State>,
    /// Signalled at every change of the state.
    changed: Condvar,
    slot: Slot,
}

struct State {
    phase: Phase,
    /// The graph is dropped.
    closed: bool,
    /// Numbers the children.
    generation: u64,
    /// The child, while there is one that can be signalled.
    process: Option<Arc<OwnedFd>>,
    /// Why a session had the child ended.
    sentence: Option<Sentence>,
    /// Whose runs are in the child.
    presence: Presence,
    /// Sessions that wait for their turn to run.
    turns: usize,
    /// The graph's nodes by provider, as the last child said that loaded it.
    nodes: BTreeMap<String, usize>,
}

enum Phase {
    /// It starts, or will before long.
    Starting,
    /// The control socket.
    Live(Arc<OwnedFd>),
    /// The next start is put off, since children do not live.
    Waiting,
    /// The first child did not load the graph.
    Never(EngineError),
}

/// Why a session has a child ended.
#[derive(Clone, Debug)]
pub(super) struct Sentence {
    pub why: EngineError,
    /// The session whose run it is ended for; none where any run in it may be to blame.
    pub named: Option<usize>,
}

/// The sessions' share of a supervisor: with the last of them the child ends.
pub(super) struct Handle(pub Arc<Supervisor>);

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.kill();
        self.0.slot.leaves();
        self.0.changed.notify_all();
    }
}

impl State {
    /// Before the first child.
    fn new() -> State {
        State {
            phase: Phase::Starting,
            closed: false,
            generation: 0,
            process: None,
            sentence: None,
            presence: Presence::default(),
            turns: 0,
            nodes: BTreeMap::new(),
        }
    }

    /// Ends the child, if there is one. A descriptor of the process and not its number, which another may have by now.
    fn kill(&self) {
        if let Some(process) = &self.process {
            // It may have ended by itself.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

impl Supervisor {
    /// Starts the first child and waits until it has loaded the graph.
    pub fn start(job: Job, onnx: &[u8], config: ChildConfig, slot: Slot) -> Result<Arc<Supervisor>, EngineError> {
        let onnx = sealed(onnx).map_err(|e| EngineError::Unavailable(format!("no memory for a graph: {e}")))?;
        let (state, changed) = (Mutex::new(State::new()), Condvar::new());
        let supervisor = Arc::new(Supervisor { config, job, onnx, state, changed, slot });
        let mine = Arc::clone(&supervisor);
        let thread = thread::Builder::new().name("engine-child".into()).spawn(move || mine.supervise());
        thread.map_err(|e| EngineError::Unavailable(format!("no thread for a child: {e}")))?;
        let mut state = supervisor.started(supervisor.lock(), supervisor.patience());
        match &state.phase {
            Phase::Never(why) => return Err(why.clone()),
            Phase::Starting => {
                state.closed = true;
                state.kill();
                return Err(stuck(None));
            }
            Phase::Live(_) | Phase::Waiting => {}
        }
        drop(state);
        Ok(supervisor)
    }

    /// The graph's nodes by the provider that runs them, as the child says.
    pub fn nodes(&self) -> BTreeMap<String, usize> {
        self.lock().nodes.clone()
    }

    /// Connects a session to the child that runs now, or to the one that is being started, which is waited for until
    /// then.
    pub fn attach(&self, arena: &Arena, until: Option<Instant>) -> Result<(u64, OwnedFd), EngineError> {
        let mut state = self.lock();
        loop {
            match &state.phase {
                _ if state.closed => return Err(EngineError::Stopped),
                Phase::Starting => {
                    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
                    state = self.started(state, self.patience().min(left));
                    if matches!(state.phase, Phase::Starting) && !state.closed {
                        return Err(stuck(until));
                    }
                }
                Phase::Waiting => {
                    return Err(EngineError::NotReady("the graph's process is started again soon".into()));
                }
                Phase::Never(why) => return Err(why.clone()),
                Phase::Live(control) => {
                    let (control, generation) = (Arc::clone(control), state.generation);
                    drop(state);
                    let connected = socket::pair(self.config.run).and_then(|(ours, theirs)| {
                        let size = arena.size().to_le_bytes();
                        socket::send_with(control.as_fd(), &size, &[theirs.as_fd(), arena.file()])?;
                        Ok(ours)
                    });
                    match connected {
                        Ok(socket) => return Ok((generation, socket)),
                        Err(_) if self.is_over(generation) => state = self.lock(),
                        Err(error) => return Err(EngineError::Unavailable(format!("no way to a child: {error}"))),
                    }
                }
            }
        }
    }

    /// Waits until a session may run in this child: `alone`, or beside others. False when that child is no more.
    ///
    /// Until the session [leaves](Supervisor::leave), others may wait for it.
    pub fn enter(
        &self,
        generation: u64,
        session: usize,
        alone: bool,
        until: Option<Instant>,
    ) -> Result<bool, EngineError> {
        let mut state = self.lock();
        loop {
            if state.generation != generation || !matches!(state.phase, Phase::Live(_)) {
                return Ok(false);
            }
            if state.presence.enter(session, alone) {
                return Ok(true);
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(EngineError::Deadline);
            }
            state.turns += 1;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.turns -= 1;
        }
    }

    /// A session's run is over, or given up.
    pub fn leave(&self, session: usize) {
        let mut state = self.lock();
        if state.presence.leave(session) && state.turns > 0 {
            self.changed.notify_all();
        }
    }

    /// Ends a child for what a session's run did, or what it got.
    pub fn end(&self, generation: u64, sentence: Sentence) {
        let mut state = self.lock();
        if state.generation == generation && state.sentence.is_none() {
            state.sentence = Some(sentence);
            state.kill();
            // Nobody attaches to it any more. Its control socket closes with that, which is why it was killed before.
            state.phase = Phase::Starting;
        }
    }

    /// Whether it is this child that runs now.
    pub fn is_live(&self, generation: u64) -> bool {
        let state = self.lock();
        state.generation == generation && matches!(state.phase, Phase::Live(_))
    }

    /// What comes of the run of a session that had entered a child whose sockets are closed.
    pub fn fate(&self, generation: u64, session: usize) -> Fate {
        let fate = self.over(generation).presence.fate(session);
        fate.unwrap_or_else(|| Fate::Guilty(EngineError::Crashed("closed its sockets".into())))
    }

    /// Whether a child has ended, or will within [`ENDING`].
    pub fn is_over(&self, generation: u64) -> bool {
        self.over(generation).generation != generation
    }

    /// Waits for a child's end, but no longer than [`ENDING`].
    fn over(&self, generation: u64) -> MutexGuard<'_, State> {
        let running = |state: &mut State| state.generation == generation && !state.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), ENDING, running);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the start of a child is over, one way or the other, but no longer than that.
    fn started<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        let starting = |state: &mut State| matches!(state.phase, Phase::Starting) && !state.closed;
        let waited = self.changed.wait_timeout_while(state, patience, starting);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// How long a start may take, which may have been put off by as much: loading is bounded, and then the child is
    /// ended.
    fn patience(&self) -> Duration {
        2 * self.config.load + ENDING
    }

    // === the thread ===

    fn supervise(&self) {
        let (mut restarts, mut loaded) = (Restarts::new(Instant::now()), false);
        loop {
            let began = Instant::now();
            let spawned = self.spawn();
            let start = began.elapsed();
            let why = match spawned {
                Ok((mut child, watched, control)) => {
                    loaded = true;
                    self.set(Phase::Live(Arc::new(control)));
                    let said = watched.tail();
                    // One that merely closed its standard error is of no use either.
                    self.lock().kill();
                    EngineError::Crashed(describe(&mut child, &said))
                }
                Err(error) => error,
            };
            let mut state = self.lock();
            state.process = None;
            if state.closed {
                return;
            }
            if !loaded {
                state.phase = Phase::Never(why);
                self.changed.notify_all();
                return;
            }
            let Sentence { why, named } = state.sentence.take().unwrap_or(Sentence { why, named: None });
            let used = state.presence.judge(&why, named);
            let now = Instant::now();
            let pause = restarts.after(&Life { start, whole: now - began, used }, now);
            let milliseconds = pause.length.as_millis() as u64;
            tracing::warn!(%why, again_in_ms = milliseconds, "a graph's process has ended");
            state.generation += 1;
            state.phase = if pause.refuses { Phase::Waiting } else { Phase::Starting };
            self.changed.notify_all();
            let open = |state: &mut State| !state.closed;
            let (mut state, _) =
                self.changed.wait_timeout_while(state, pause.length, open).unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            state.phase = Phase::Starting;
        }
    }

    fn set(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    /// Starts a child and waits until it has loaded the graph; one that has not is gone when this returns.
    fn spawn(&self) -> Result<(Child, Watched, OwnedFd), EngineError> {
        let host = |error: io::Error| EngineError::Unavailable(format!("a graph's process does not start: {error}"));
        let (control, theirs) = socket::pair(self.config.load).map_err(host)?;
        let mut command = self.config.program.command();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(host)?;
        // The command holds the child's end of the socket: as long as it is open here, the child's death is not seen.
        drop(command);
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map(Arc::new);
        let kill = |child: &mut Child| {
            let _ = child.kill();
        };
        let stderr = child.stderr.take();
        let (Ok(process), Some(stderr)) = (process, stderr) else {
            kill(&mut child);
            let _ = child.wait();
            return Err(EngineError::Unavailable("a graph's process cannot be watched".into()));
        };
        let watched = Watched { process: Arc::clone(&process), stderr };
        {
            let mut state = self.lock();
            state.process = Some(process);
            if state.closed {
                state.kill();
            }
        }
        let answer = self.talk(&control);
        match answer {
            Ok(None) => return Ok((child, watched, control)),
            _ => kill(&mut child),
        }
        let said = watched.tail();
        let how = describe(&mut child, &said);
        Err(match answer {
            Ok(Some(error)) => error,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                EngineError::InvalidGraph(format!("loading it took longer than {:?}", self.config.load))
            }
            _ => EngineError::InvalidGraph(format!("the process that loaded it {how}")),
        })
    }

    /// Gives the child its job; `None` when it has loaded the graph.
    fn talk(&self, control: &OwnedFd) -> io::Result<Option<EngineError>> {
        let job = serde_json::to_vec(&self.job)?;
        socket::send_with(control.as_fd(), &job, &[self.onnx.as_fd()])?;
        let mut answer = [0; 8 << 10];
        match socket::receive_with(control.as_fd(), &mut answer)? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (length, _) => Ok(match wire::decode_loaded(&answer[..length]) {
                Ok(nodes) => {
                    self.lock().nodes = nodes;
                    None
                }
                Err(error) => Some(error),
            }),
        }
    }
}

/// Why there is no child yet, for who has waited.
fn stuck(until: Option<Instant>) -> EngineError {
    match until {
        Some(until) if until <= Instant::now() => EngineError::Deadline,
        _ => EngineError::NotReady("the graph's process does not start".into()),
    }
}

/// Waits for a process that is about to end, and says how it did. Its own words may name files of this machine, and are for
/// the log.
fn describe(child: &mut Child, said: &str) -> String {
    if process::out_of_memory(said) {
        let _ = child.wait();
        return "wanted more memory than it may have".into();
    }
    let last = process::last_line(said);
    if !last.is_empty() {
        tracing::warn!(said = last, "the last words of a graph's process");
    }
    match child.wait() {
        Ok(status) => format!("was {}", process::ended(status)),
        Err(error) => format!("is lost: {error}"),
    }
}

/// A file in memory that nobody can change any more.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create("windrose-graph", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// A child, and what it writes to its standard error.
struct Watched {
    process: Arc<OwnedFd>,
    stderr: ChildStderr,
}

impl Watched {
    /// Reads until the child ends or closes its standard error, and keeps the last of it. What the child has started may
    /// hold the pipe open for longer, and is not waited for.
    fn tail(mut self) -> String {
        let mut kept = Vec::new();
        loop {
            let (said, ended) = self.is_ready(None);
            if ended || !said || !self.read(&mut kept) {
                break;
            }
        }
        // What it wrote before its end; others may go on writing.
        let mut most = PIPE;
        while most > 0 && self.is_ready(Some(&Timespec::default())).0 && self.read(&mut kept) {
            most -= 1;
        }
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// Whether there is something to read, or an end of it, and whether the child has ended; waits for either.
    fn is_ready(&self, most: Option<&Timespec>) -> (bool, bool) {
        let mut both = [PollFd::new(&self.stderr, PollFlags::IN), PollFd::new(&self.process, PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut both, most) {}
        let [said, ended] = both.map(|one| !one.revents().is_empty());
        (said, ended)
    }

    /// Reads some; false at the end.
    fn read(&mut self, kept: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 4096];
        let Ok(count @ 1..) = self.stderr.read(&mut buffer) else { return false };
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * TAIL {
            kept.drain(..kept.len() - TAIL);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::Slots;
    use super::*;

    /// One without a thread, whose child never comes.
    fn waiting_in_vain() -> Supervisor {
        let program = process::Program { path: "/none".into(), arguments: vec![], environment: vec![] };
        let (run, load) = (Duration::from_secs(1), Duration::from_secs(60));
        let config = ChildConfig { program, memory: 1, tensors: 1, run, load, most: 1 };
        let (engines, engine, device) = (crate::EnginesConfig::default(), "none".into(), crate::Device::Cpu);
        let job = Job { engines, engine, device, sessions: 1, threads: 1, memory: 1, tensors: 1 };
        let slot = Slots::new(1).take(|| false).expect("a slot");
        let (state, changed) = (Mutex::new(State::new()), Condvar::new());
        Supervisor { config, job, onnx: sealed(b"").expect("memory"), state, changed, slot }
    }

    #[test]
    fn a_start_that_does_not_end_is_not_waited_for() {
        let supervisor = waiting_in_vain();
        assert!(supervisor.patience() > supervisor.config.load);
        let state = supervisor.started(supervisor.lock(), Duration::ZERO);
        assert!(matches!(state.phase, Phase::Starting));
    }

    #[test]
    fn nobody_waits_for_a_start_or_a_turn_beyond_its_deadline() {
        let supervisor = waiting_in_vain();
        let (arena, now) = (Arena::create().expect("memory"), Some(Instant::now()));
        assert_eq!(supervisor.attach(&arena, now).err(), Some(EngineError::Deadline));
        assert_eq!(supervisor.enter(0, 1, false, None), Ok(false), "there is no child to enter");
        let (control, _theirs) = socket::pair(Duration::from_secs(1)).expect("sockets");
        supervisor.set(Phase::Live(Arc::new(control)));
        assert_eq!(supervisor.enter(0, 1, true, None), Ok(true));
        assert_eq!(supervisor.enter(0, 2, false, now), Err(EngineError::Deadline));
        supervisor.leave(1);
        assert_eq!(supervisor.enter(0, 2, false, now), Ok(true));
    }

    #[test]
    fn nobody_changes_a_sealed_file() {
        let file = std::fs::File::from(sealed(b"graph").expect("memory"));
        assert!((&file).write_all(b"other").is_err() && file.set_len(0).is_err());
    }
}
