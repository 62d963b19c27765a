//! The child: it limits itself, loads one graph, and runs it for the sessions of its parent until that lets go.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::super::{Loaded, Loading, Session};
use super::arena::Arena;
use super::filter;
use super::socket::{Received, receive_frame, receive_with, send_frame, send_with};
use super::wire::{self, Frame, Kind, Place};
use crate::{Device, EngineError, Engines, EnginesConfig, Tensor, onnx, process};

/// Addresses that are neither memory nor shared, bytes.
const OTHER: u64 = 8 << 30;

/// What a child is to do; the graph's file comes with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// How to find the engines.
    pub engines: EnginesConfig,
    /// Which of them loads the graph.
    pub engine: String,
    pub device: Device,
    pub sessions: usize,
    pub threads: usize,
    /// Memory of the child's own, bytes.
    pub memory: u64,
    /// Shared memory of each session, bytes.
    pub tensors: u64,
}

/// Runs one graph for the parent, whose socket is the standard input; then ends the process.
pub fn main() -> ! {
    match serve() {
        // A run may still be going on, perhaps for ever. It is neither waited for nor may it see an ordinary exit, which
        // takes down the engine's statics below it: its answer would be that of a broken engine.
        Ok(()) => process::leave(0),
        Err(error) => {
            eprintln!("{error}");
            process::leave(1)
        }
    }
}

fn serve() -> io::Result<()> {
    process::enter()?;
    let stdin = io::stdin();
    let control = stdin.as_fd();
    let mut buffer = vec![0; 64 << 10];
    let (length, files) = receive_with(control, &mut buffer)?;
    let job: Job = serde_json::from_slice(&buffer[..length])?;
    let graph = files.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
    limit(&job)?;
    let Loaded { info, mut sessions } = match load(&job, graph) {
        Ok(loaded) => loaded,
        Err(error) => return send_with(control, &wire::encode_error(&error), &[]),
    };
    send_with(control, &wire::encode_loaded(&info.nodes)?, &[])?;
    loop {
        let mut size = [0; 8];
        let (length, files) = receive_with(control, &mut size)?;
        if length == 0 {
            return Ok(());
        }
        let (Ok([socket, memory]), Some(session)) = (<[OwnedFd; 2]>::try_from(files), sessions.pop()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let arena = Arena::open(memory, u64::from_le_bytes(size))?;
        let end = End { socket, arena };
        thread::Builder::new().name("session".into()).spawn(move || end.serve(session))?;
    }
}

fn limit(job: &Job) -> io::Result<()> {
    // Memory that is shared counts as addresses only. The program, its libraries, and what an allocator reserves come
    // to a few gigabytes; a GPU's library reserves as much as there is memory in all devices, and more.
    let shared = job.tensors.saturating_mul(job.sessions as u64);
    let addresses = (job.device == Device::Cpu).then(|| job.memory.saturating_add(shared).saturating_add(OTHER));
    let files = 64 + 4 * job.sessions as u64;
    process::limit(&process::Limits { memory: job.memory, addresses, cpu: None, files })
}

fn load(job: &Job, graph: OwnedFd) -> Result<Loaded, EngineError> {
    let host = |error: io::Error| EngineError::Unavailable(format!("a graph's process: {error}"));
    let engines = Engines::new(job.engines.clone())?;
    let engine = engines.named(&job.engine).ok_or_else(|| EngineError::Unavailable("the engine is not here".into()))?;
    let file = std::fs::File::from(graph);
    let length = file.metadata().map_err(host)?.len();
    let mut onnx = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut onnx, 0).map_err(host)?;
    if job.device == Device::Cpu {
        // It writes no file from here on. Those that are shared with the parent are memory that no other limit counts.
        setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum: Some(0) })
            .map_err(|error| host(error.into()))?;
        filter::apply().map_err(host)?;
    }
    let model = Arc::new(onnx::read(&onnx)?);
    let Job { device, sessions, threads, .. } = *job;
    engine.load(Loading { onnx: onnx.into(), model, device, sessions, threads })
}

/// One session's way to the parent.
struct End {
    socket: OwnedFd,
    arena: Arena,
}

impl End {
    fn serve(mut self, mut session: Box<dyn Session>) {
        session.serve(&mut |session| {
            while let Received::Frame(frame) = receive_frame(&self.socket) {
                if self.turn(session, frame).is_none() {
                    break;
                }
            }
        });
    }

    /// Runs one job and answers it. `None` when the parent is gone, or says what it never would.
    fn turn(&mut self, session: &mut dyn Session, frame: Frame) -> Option<()> {
        self.arena.see(frame.size).ok()?;
        let (places, wanted) = wire::decode(&self.arena.read(frame.at, u64::from(frame.length))?)?;
        let mut free = wire::after(0, u64::from(frame.length))?;
        let mut inputs = Vec::with_capacity(places.len());
        for place in places {
            free = free.max(wire::after(place.at, place.length)?);
            let bytes = self.arena.view(place.at, place.length)?;
            inputs.push(Tensor::new(place.datatype, place.shape, bytes).ok()?);
        }
        let run = AssertUnwindSafe(|| session.run(&inputs, &wanted));
        let panicked = |_| Err(EngineError::Failed("the engine panicked while it ran this graph".into()));
        match catch_unwind(run).unwrap_or_else(panicked) {
            Ok(outputs) => self.answer(free, &outputs),
            Err(error) => self.fail(free, &error),
        }
    }

    /// Puts the outputs behind the inputs, of whose memory some may be made.
    fn answer(&mut self, free: u64, outputs: &[Tensor]) -> Option<()> {
        let header = wire::header_length(outputs.iter().map(|t| t.shape().len()), 0);
        let mut at = wire::after(free, header)?;
        let mut places = Vec::with_capacity(outputs.len());
        for tensor in outputs {
            let length = tensor.data().len() as u64;
            places.push(Place { datatype: tensor.datatype(), shape: tensor.shape().to_vec(), at, length });
            at = wire::after(at, length)?;
        }
        if !self.grow(at)? {
            return self
                .fail(free, &EngineError::Failed(format!("a run's tensors take {at} bytes, which is too much")));
        }
        for (place, tensor) in places.iter().zip(outputs) {
            self.arena.write(place.at, tensor.data())?;
        }
        self.tell(Kind::Done, free, &wire::encode(&places, &[]))
    }

    /// Tells an error; the parent left room for it.
    fn fail(&self, free: u64, error: &EngineError) -> Option<()> {
        self.tell(Kind::Failed, free, &wire::encode_error(error))
    }

    fn tell(&self, kind: Kind, at: u64, header: &[u8]) -> Option<()> {
        self.arena.write(at, header)?;
        send_frame(&self.socket, Frame { kind, length: header.len() as u32, at, size: 0 }).ok()
    }

    /// Sees to it that the memory reaches to `size`; false when the parent refuses.
    fn grow(&mut self, size: u64) -> Option<bool> {
        if size <= self.arena.size() {
            return Some(true);
        }
        send_frame(&self.socket, Frame { kind: Kind::Grow, length: 0, at: 0, size }).ok()?;
        match receive_frame(&self.socket) {
            Received::Frame(Frame { kind: Kind::Grown, size: now, .. }) => {
                self.arena.see(now).ok()?;
                Some(now >= size)
            }
            Received::Frame(Frame { kind: Kind::Refused, .. }) => Some(false),
            _ => None,
        }
    }
}
