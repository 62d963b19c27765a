//! Does everything that a guest must not. The parameter `act` says what: each runs into a limit of the sandbox or is
//! refused by it. `none` answers as the graph named `model` does. The parameter `hold` is how many MiB of its memory it fills
//! first.
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use windrose_guest::{Parameter, TensorType, prelude::*};

/// What it loads by its own bytes, where that is granted.
const GRAPH: &[u8] = include_bytes!("../../../models/test/identity_fp32.onnx");

struct Hostile;

impl Model for Hostile {
    fn infer(request: Request) -> Result<Response> {
        let act = match request.parameter("act") {
            Some(Parameter::Text(act)) => act.clone(),
            _ => "none".to_owned(),
        };
        let hold = match request.parameter("hold") {
            Some(Parameter::Integer(hold)) => usize::try_from(*hold).unwrap_or(0) << 20,
            _ => 0,
        };
        let _held = black_box(vec![1u8; hold]);
        match act.as_str() {
            "none" => Graph::by_name("model")?.run(request),
            "loop" => spin(),
            "memory" => hoard_memory(),
            "tensors" => hoard_tensors(),
            "recursion" => Err(Error::internal(recurse(1).to_string())),
            "output" => Ok(Response::new().with("y", Tensor::new(&[1 << 20], &vec![1f32; 1 << 20])?)),
            "log" => flood_log(),
            "trap" => std::process::abort(),
            "panic" => panic!("a guest that panics"),
            "other-graph" => Graph::by_name("other")?.run(request),
            "sleep" => sleep(),
            "refuse" => Err(Error::invalid_input("the caller is at fault")),
            "fail" => Err(Error::internal("the module is at fault")),
            "files" => files(),
            "probe" => probe(),
            "count" => count(),
            "busy" => busy(),
            "work" => work(request),
            "load" => Graph::from_onnx(GRAPH)?.run(request),
            "loads" => hoard_graphs(),
            "undeclared" => Ok(Response::new().with("z", Tensor::new(&[1], &[1f32])?)),
            "wrong-type" => Ok(Response::new().with("y", Tensor::new(&[1], &[1u8])?)),
            "nothing" => Ok(Response::new()),
            "no-number" => Ok(Graph::by_name("model")?.run(request)?.parameter("share", Parameter::Number(f64::NAN))),
            "short-tensor" => Ok(Response::new().with("y", Tensor::from_bytes(&[9], TensorType::Fp32, &[0; 3])?)),
            other => Err(Error::invalid_input(format!("no act `{other}`"))),
        }
    }
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

fn hoard_memory() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1u8; 1 << 20]));
    }
}

fn hoard_tensors() -> Result<Response> {
    let bytes = vec![1u8; 1 << 20];
    let mut kept = Vec::new();
    loop {
        kept.push(Tensor::new(&[bytes.len()], &bytes)?);
    }
}

#[allow(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1))) + depth
}

fn flood_log() -> ! {
    loop {
        println!("all work and no play makes Jack a dull boy");
    }
}

fn sleep() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// What is readable of the host's files, and of the environment.
fn files() -> Result<Response> {
    let root = std::fs::read_dir("/").map_or(0, Iterator::count);
    let outside = ["/etc/passwd", "../etc/passwd", "/../../etc/passwd"];
    let outside = outside.iter().filter(|path| std::fs::read(path).is_ok()).count();
    let written = usize::from(std::fs::write("/written", b"x").is_ok());
    let variables = std::env::vars().count();
    Err(Error::invalid_input(format!("root {root}, outside {outside}, written {written}, variables {variables}")))
}

/// Opens what is not there far more often than it may open anything, and then what is.
fn probe() -> Result<Response> {
    let missing = (0..2000).filter(|_| std::fs::File::open("/missing.txt").is_err()).count();
    let read = if std::fs::read("/names.txt").is_ok() { "read" } else { "refused" };
    Err(Error::invalid_input(format!("missing {missing} times, and then {read}")))
}

/// How often it was asked in this instance. It says so in the log, too, and opens its asset if it has one.
fn count() -> Result<Response> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("call {calls}");
    if std::fs::exists("/names.txt").unwrap_or_default() && std::fs::File::open("/names.txt").is_err() {
        return Err(Error::internal("its asset was refused"));
    }
    Ok(Response::new().with("y", Tensor::new(&[1], &[calls as f32])?))
}

/// Works for 50 ms, and then counts.
fn busy() -> Result<Response> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(50) {
        black_box(start);
    }
    count()
}

/// Some milliseconds of a core, whatever else it does meanwhile, and then as the graph.
fn work(request: Request) -> Result<Response> {
    let sum = (0..8_000_000u64).fold(0u64, |sum, n| black_box(sum.wrapping_add(n)));
    black_box(sum);
    Graph::by_name("model")?.run(request)
}

fn hoard_graphs() -> Result<Response> {
    let mut kept = Vec::new();
    loop {
        match Graph::from_onnx(GRAPH) {
            Ok(graph) => kept.push(graph),
            Err(error) => return Err(Error::invalid_input(format!("{} graphs, then {error}", kept.len()))),
        }
    }
}

windrose_guest::export!(Hostile);
