//! The parent's end of a session.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{Session, Told, Work};
use super::arena::Arena;
use super::presence::Fate;
use super::socket::{Received, receive_frame, send_frame, wait_for};
use super::supervisor::{Handle, Sentence};
use super::wire::{self, Frame, Kind, Place};
use crate::{DataType, EngineError, Tensor};

/// Longest header of an answer, bytes: more than as many tensors take as a graph may have outputs.
const MAX_HEADER: u32 = 1 << 20;
/// How often a run is begun again that had no part in the end of its child; the last time with nobody else in it.
const AGAIN: u32 = 4;

/// A session whose graph runs in a child.
pub(super) struct Remote {
    index: usize,
    handle: Arc<Handle>,
    arena: Arena,
    /// The declared types of the graph's outputs.
    outputs: Arc<[DataType]>,
    /// The way to the child that ran last.
    channel: Option<Channel>,
    /// How long a run may take, where that is less than any may.
    most: Option<Duration>,
    /// Until when somebody waits for it.
    until: Option<Instant>,
    /// Whether it may end its child.
    suspect: bool,
    /// Who is told of waits.
    told: Option<Box<Told>>,
    /// How long runs have waited for a child, or for their turn in it.
    waited: Cell<Duration>,
}

/// A socket to one child.
struct Channel {
    generation: u64,
    socket: OwnedFd,
    /// How long an answer is waited for.
    patience: Duration,
}

/// Why a run has no answer of the child's.
enum Broken {
    /// The child was gone before it got the run.
    Unsent,
    /// The child is gone.
    Gone,
    /// The run does not come to an end in time.
    Late,
    /// The child says what cannot be, whatever run has brought it to that.
    Nonsense(EngineError),
}

/// A session's turn in the child, or its wait for one: over when this is dropped.
struct Turn {
    handle: Arc<Handle>,
    session: usize,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.handle.0.leave(self.session);
    }
}

type Answer = Result<Vec<Tensor>, EngineError>;

impl Remote {
    pub fn new(index: usize, handle: Arc<Handle>, outputs: Arc<[DataType]>) -> Result<Remote, EngineError> {
        let arena = Arena::create().map_err(|e| EngineError::Unavailable(format!("no shared memory: {e}")))?;
        let (channel, most, until, told) = (None, None, None, None);
        let (suspect, waited) = (false, Cell::default());
        Ok(Remote { index, handle, arena, outputs, channel, most, until, suspect, told, waited })
    }

    /// One run in the child. Tensors that it cannot take are an answer; what breaks the way to it is not.
    fn call(&mut self, socket: &OwnedFd, inputs: &[Tensor], outputs: &[usize]) -> Result<Answer, Broken> {
        let most = self.handle.0.config.tensors;
        let (header, places, end) = match layout(inputs, outputs)
            .filter(|(.., end)| *end <= most.saturating_sub(wire::ROOM))
        {
            Some(laid) => laid,
            None => {
                return Ok(Err(EngineError::InvalidInput(format!("the inputs of a run take at most {most} bytes"))));
            }
        };
        if let Err(error) = self.arena.grow(end + wire::ROOM, most) {
            return Ok(Err(EngineError::Failed(format!("no shared memory: {error}"))));
        }
        let parts = std::iter::once((0, &header[..]))
            .chain(places.iter().map(|p| p.at).zip(inputs.iter().map(|t| &t.data()[..])));
        for (at, bytes) in parts {
            self.arena.write(at, bytes).ok_or(Broken::Gone)?;
        }
        self.say(socket, Kind::Run, header.len() as u32).map_err(|_| Broken::Unsent)?;
        let mut frame = self.hear(socket)?;
        if frame.kind == Kind::Grow {
            // An end of the memory that cannot be had is the run's failure, and told by the child as such.
            let grown = frame.size <= most && self.arena.grow(frame.size, most).is_ok();
            self.say(socket, if grown { Kind::Grown } else { Kind::Refused }, 0)?;
            frame = self.hear(socket)?;
        }
        match frame.kind {
            Kind::Done => self.answer(frame, outputs).map(Ok),
            Kind::Failed => self.failure(frame).map(Err),
            _ => Err(nonsense("a message out of turn")),
        }
    }

    fn say(&self, socket: &OwnedFd, kind: Kind, length: u32) -> Result<(), Broken> {
        send_frame(socket, Frame { kind, length, at: 0, size: self.arena.size() }).map_err(|_: io::Error| Broken::Gone)
    }

    fn hear(&self, socket: &OwnedFd) -> Result<Frame, Broken> {
        match receive_frame(socket) {
            Received::Frame(frame) => Ok(frame),
            Received::End => Err(Broken::Gone),
            Received::Late => Err(Broken::Late),
            Received::Nonsense => Err(nonsense("a message that is none")),
        }
    }

    /// The outputs, each checked after it was copied to where the child cannot change it.
    fn answer(&self, frame: Frame, wanted: &[usize]) -> Result<Vec<Tensor>, Broken> {
        let places = self.header(frame).and_then(|header| wire::decode(&header));
        let (places, none) = places.ok_or_else(|| nonsense("an answer that is none"))?;
        if places.len() != wanted.len() || !none.is_empty() {
            return Err(nonsense("another number of outputs than was asked for"));
        }
        // Places may overlap, as far as the child can say: together they take no more than there is.
        let total = places.iter().try_fold(0u64, |sum, place| sum.checked_add(place.length));
        if total.is_none_or(|total| total > self.arena.size()) {
            return Err(nonsense("outputs that are larger than their memory"));
        }
        places.into_iter().zip(wanted).map(|(place, at)| self.output(place, *at)).collect()
    }

    fn output(&self, place: Place, at: usize) -> Result<Tensor, Broken> {
        if self.outputs.get(at) != Some(&place.datatype) {
            return Err(nonsense("an output of another type than the graph declares"));
        }
        let bytes = self.arena.read(place.at, place.length).ok_or_else(|| nonsense("an output outside the memory"))?;
        // Lengths, booleans and byte strings are checked there, for whoever makes a tensor.
        Tensor::new(place.datatype, place.shape, bytes.into())
            .map_err(|error| nonsense(&format!("an output that does not hold together: {error}")))
    }

    fn failure(&self, frame: Frame) -> Result<EngineError, Broken> {
        let bytes = self.header(frame).ok_or_else(|| nonsense("an error that is none"))?;
        Ok(match wire::decode_error(&bytes) {
            error @ (EngineError::InvalidInput(_) | EngineError::InvalidGraph(_) | EngineError::Failed(_)) => error,
            other => EngineError::Failed(other.to_string()),
        })
    }

    fn header(&self, frame: Frame) -> Option<Vec<u8>> {
        if frame.length > MAX_HEADER {
            return None;
        }
        self.arena.read(frame.at, u64::from(frame.length))
    }

    /// Waits for something, and says so.
    fn waits<T>(&self, wait: impl FnOnce() -> T) -> T {
        let tell = |begins: bool| {
            if let Some(told) = &self.told {
                told(begins);
            }
        };
        tell(true);
        let began = Instant::now();
        let outcome = wait();
        self.waited.set(self.waited.get() + began.elapsed());
        tell(false);
        outcome
    }

    /// Waits for the session's turn in this child, if that is needed. False when that child is no more.
    fn enter(&self, generation: u64, alone: bool, now: Instant) -> Result<bool, EngineError> {
        let enter = |until| self.handle.0.enter(generation, self.index, alone, until);
        match enter(Some(now)) {
            Err(EngineError::Deadline) => self.waits(|| enter(self.until)),
            at_once => at_once,
        }
    }

    /// The channel to the child that runs now.
    fn channel(&mut self) -> Result<Channel, EngineError> {
        let run = self.handle.0.config.run;
        let mut channel = match self.channel.take() {
            Some(channel) => channel,
            None => {
                let attached = self.waits(|| self.handle.0.attach(&self.arena, self.until));
                let (generation, socket) = attached?;
                Channel { generation, socket, patience: run }
            }
        };
        let patience = self.most.unwrap_or(run);
        if channel.patience != patience {
            let refused = |error: io::Error| EngineError::Unavailable(format!("no bound for a run: {error}"));
            wait_for(&channel.socket, patience).map_err(refused)?;
            channel.patience = patience;
        }
        Ok(channel)
    }
}

impl Session for Remote {
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, EngineError> {
        let turn = Turn { handle: Arc::clone(&self.handle), session: self.index };
        let supervisor = &turn.handle.0;
        let (mut alone, mut again) = (self.suspect, AGAIN);
        let began = Instant::now();
        loop {
            let channel = self.channel()?;
            let generation = channel.generation;
            // A child that ends while this waits for its turn there is not this run's: it goes on with the next.
            match self.enter(generation, alone, began) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    // The child keeps its end: it has one for each session, and no other for this.
                    self.channel = Some(channel);
                    return Err(error);
                }
            }
            let fate = match self.call(&channel.socket, inputs, outputs) {
                Ok(answer) => {
                    self.channel = Some(channel);
                    // Memory that is not given back is still bounded.
                    let _ = self.arena.trim();
                    return answer;
                }
                Err(Broken::Late) => {
                    let (why, named) = (EngineError::TimeLimit, Some(self.index));
                    supervisor.end(generation, Sentence { why: why.clone(), named });
                    return Err(why);
                }
                Err(Broken::Unsent) => {
                    // It never was in there.
                    supervisor.leave(self.index);
                    self.waits(|| supervisor.is_over(generation));
                    Fate::Innocent
                }
                Err(Broken::Nonsense(why)) => {
                    supervisor.end(generation, Sentence { why, named: None });
                    self.waits(|| supervisor.fate(generation, self.index))
                }
                Err(Broken::Gone) => self.waits(|| supervisor.fate(generation, self.index)),
            };
            match fate {
                Fate::Guilty(why) => return Err(why),
                Fate::Suspect => alone = true,
                Fate::Innocent if again == 0 => {
                    return Err(EngineError::Crashed("ended again and again before it had run this".into()));
                }
                Fate::Innocent => {
                    again -= 1;
                    alone = alone || again == 0;
                }
            }
        }
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        work(self);
    }

    fn limit(&mut self, most: Option<Duration>) -> bool {
        self.most = most.filter(|most| *most < self.handle.0.config.run);
        self.most.is_some()
    }

    fn wanted(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    fn suspect(&mut self, may_end_it: bool) {
        self.suspect = may_end_it;
    }

    fn on_waits(&mut self, told: Box<Told>) {
        self.told = Some(told);
    }

    fn waited(&mut self) -> Duration {
        self.waited.take()
    }

    fn is_ready(&mut self) -> bool {
        let (channel, supervisor) = (self.channel.take(), &self.handle.0);
        self.channel = channel.filter(|channel| supervisor.is_live(channel.generation));
        match self.channel() {
            Ok(channel) => self.channel = Some(channel),
            Err(EngineError::NotReady(_)) => return false,
            // The run says why.
            Err(_) => {}
        }
        true
    }
}

fn nonsense(what: &str) -> Broken {
    Broken::Nonsense(EngineError::Crashed(format!("said {what}")))
}

/// The header of a run, where its inputs go, and where they end. `None` when that is beyond all bounds.
fn layout(inputs: &[Tensor], outputs: &[usize]) -> Option<(Vec<u8>, Vec<Place>, u64)> {
    let mut at = wire::after(0, wire::header_length(inputs.iter().map(|t| t.shape().len()), outputs.len()))?;
    let mut places = Vec::with_capacity(inputs.len());
    for tensor in inputs {
        let length = tensor.data().len() as u64;
        places.push(Place { datatype: tensor.datatype(), shape: tensor.shape().to_vec(), at, length });
        at = wire::after(at, length)?;
    }
    Some((wire::encode(&places, outputs), places, at))
}
