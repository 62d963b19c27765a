//! What a process of its own costs a graph: the same runs in this process and in a child, pair by pair, so that what else
//! the machine does meets both. And what wakes another process most cheaply: the floor below which no hand-over gets.
//!
//! Printed for each: the median time of one run, and CPU time of one run in both processes together.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::thread::futex;
use windrose_engine::backend::child::ChildConfig;
use windrose_engine::process::Program;
use windrose_engine::{
    EngineChoice, Engines, EnginesConfig, Graph, GraphOptions, Isolation, Job, OnnxRuntimeLibrary, Tensor,
};

/// Runs of each kind before the other has its turn.
const BLOCK: usize = 200;
/// Turns of each.
const TURNS: usize = 40;
/// Messages there and back that are timed.
const WAKES: u32 = 100_000;

/// CPU time of this process and its children, those that ended not counted.
fn cpu() -> Duration {
    let of = |task: std::fs::DirEntry| {
        let path = task.path();
        let ran = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let children = std::fs::read_to_string(path.join("children")).unwrap_or_default();
        let ran: u64 = ran.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        (ran, children.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let tasks = |process: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        tasks.map(of).collect::<Vec<_>>()
    };
    let mine = tasks("self");
    let theirs = mine.iter().flat_map(|(_, children)| children).flat_map(|child| tasks(child));
    Duration::from_nanos(mine.iter().map(|(ran, _)| ran).sum::<u64>() + theirs.map(|(ran, _)| ran).sum::<u64>())
}

/// What was measured of one way.
#[derive(Default)]
struct Way {
    times: Vec<Duration>,
    cpu: Duration,
}

impl Way {
    fn median(&mut self) -> f64 {
        self.times.sort();
        self.times[self.times.len() / 2].as_nanos() as f64 / 1e3
    }

    fn cpu(&self) -> f64 {
        self.cpu.as_nanos() as f64 / 1e3 / self.times.len() as f64
    }
}

async fn block(graph: &Graph, job: &Job, way: &mut Way) {
    let before = cpu();
    for _ in 0..BLOCK {
        let start = Instant::now();
        graph.compute(job.clone()).await.expect("an answer");
        way.times.push(start.elapsed());
    }
    way.cpu += cpu() - before;
}

fn compare(engines: &Engines, engine: EngineChoice, name: &str, job: &Job) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let onnx = std::fs::read(root.join(format!("models/test/{name}.onnx"))).expect("a graph");
    let load = |isolation| {
        let options = GraphOptions { engine, isolation, sessions: Some(1), ..GraphOptions::default() };
        engines.load(onnx.clone().into(), &options)
    };
    let Ok(here) = load(Isolation::Process) else {
        println!("{engine:?} is not here");
        return;
    };
    let start = Instant::now();
    let there = load(Isolation::Child).expect("a child");
    let started = start.elapsed();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (mut inside, mut outside) = (Way::default(), Way::default());
    runtime.block_on(async {
        for (graph, _) in [(&here, ()), (&there, ())] {
            block(graph, job, &mut Way::default()).await;
        }
        for _ in 0..TURNS {
            block(&here, job, &mut inside).await;
            block(&there, job, &mut outside).await;
        }
    });
    let bytes: usize = job.inputs.iter().map(|(_, tensor)| tensor.data().len()).sum();
    println!(
        "{:12} {name:14} {bytes:7} bytes in: here {:7.1} us, {:7.1} us of CPU; in a child {:7.1} us, {:7.1} us of CPU; \
         it starts in {started:.0?}",
        here.info().engine,
        inside.median(),
        inside.cpu(),
        outside.median(),
        outside.cpu(),
    );
}

/// Both directions of one way to wake another process.
trait Wire {
    fn wake(&self);
    fn wait(&self);
}

struct Socket(OwnedFd);

impl Wire for Socket {
    fn wake(&self) {
        send(&self.0, &[0; 24], SendFlags::NOSIGNAL).expect("sent");
    }

    fn wait(&self) {
        recv(&self.0, &mut [0; 25][..], RecvFlags::empty()).expect("received");
    }
}

struct Events(OwnedFd, OwnedFd);

impl Wire for Events {
    fn wake(&self) {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).expect("written");
    }

    fn wait(&self) {
        rustix::io::read(&self.1, &mut [0; 8]).expect("read");
    }
}

/// Two words in shared memory: mine, and the other end's.
struct Futex(&'static AtomicU32, &'static AtomicU32);

impl Futex {
    fn new(memory: impl AsFd, first: usize) -> Futex {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        #[expect(unsafe_code, reason = "memory is shared with another process")]
        // SAFETY: the file is as long as a page, is never unmapped, and is reached as atomic words alone.
        let words = unsafe {
            let start = mmap(std::ptr::null_mut(), 4096, access, MapFlags::SHARED, memory, 0).expect("memory");
            std::slice::from_raw_parts(start.cast::<AtomicU32>(), 64)
        };
        Futex(&words[16 * first], &words[16 * (1 - first)])
    }
}

impl Wire for Futex {
    fn wake(&self) {
        self.1.store(1, Ordering::Release);
        futex::wake(self.1, futex::Flags::empty(), 1).expect("woken");
    }

    fn wait(&self) {
        while self.0.swap(0, Ordering::Acquire) == 0 {
            let _ = futex::wait(self.0, futex::Flags::empty(), 0, None);
        }
    }
}

/// The other end: answers every message.
fn pong(kind: &str) -> ! {
    let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().expect("a descriptor");
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let wire: Box<dyn Wire> = match kind {
        "socket" => Box::new(Socket(own(&stdin))),
        "eventfd" => Box::new(Events(own(&stdout), own(&stdin))),
        _ => Box::new(Futex::new(&stdin, 1)),
    };
    loop {
        wire.wait();
        wire.wake();
    }
}

fn wakes(kind: &str) {
    let mut command = Command::new("/proc/self/exe");
    command.args(["pong", kind]);
    let wire: Box<dyn Wire> = match kind {
        "socket" => {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
            command.stdin(Stdio::from(theirs));
            Box::new(Socket(ours))
        }
        "eventfd" => {
            let new = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
            let (there, back) = (new(), new());
            let copy = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
            command.stdin(copy(&there)).stdout(copy(&back));
            Box::new(Events(there, back))
        }
        _ => {
            let memory = rustix::fs::memfd_create("wakes", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
            rustix::fs::ftruncate(&memory, 4096).expect("memory");
            let wire = Futex::new(&memory, 0);
            command.stdin(Stdio::from(memory));
            Box::new(wire)
        }
    };
    let mut other = command.spawn().expect("this program again");
    let round = || {
        wire.wake();
        wire.wait();
    };
    (0..1_000).for_each(|_| round());
    let (start, before) = (Instant::now(), cpu());
    (0..WAKES).for_each(|_| round());
    let (took, spent) = (start.elapsed() / WAKES, (cpu() - before) / WAKES);
    println!("there and back by {kind:8} {took:7.1?}, {spent:7.1?} of CPU");
    other.kill().expect("killed");
    other.wait().expect("gone");
}

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match arguments.get(1).and_then(|a| a.to_str()) {
        Some("engine") => windrose_engine::backend::child::main(),
        Some("pong") => pong(arguments.get(2).and_then(|a| a.to_str()).unwrap_or_default()),
        _ => {}
    }
    for _ in 0..2 {
        ["socket", "eventfd", "futex"].into_iter().for_each(wakes);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = vec![root.join("target/onnxruntime")];
    let engines = Engines::new(EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search }).expect("engines");
    let engines = engines.with_children(ChildConfig {
        program: Program::this("engine"),
        memory: 4 << 30,
        tensors: 1 << 30,
        run: Duration::from_secs(60),
        load: Duration::from_secs(60),
        most: 8,
    });
    let job = |shape: Vec<usize>| {
        let values = vec![0.5f32; shape.iter().product()];
        let x = Tensor::from_vec(shape, values).expect("a tensor");
        Job { inputs: vec![("x".into(), x)], ..Job::default() }
    };
    for engine in [EngineChoice::Rten, EngineChoice::Onnxruntime] {
        compare(&engines, engine, "tiny", &job(vec![1, 16]));
        compare(&engines, engine, "identity_fp32", &job(vec![150_000]));
        let _ = std::io::stdout().flush();
    }
}
