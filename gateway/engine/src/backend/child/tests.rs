//! Children that lie. Each is this test program again, started as [`liar`], which says on purpose what no honest child
//! says.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::arena::Arena;
use super::socket::{Received, receive_frame, receive_with, send_frame, send_with};
use super::wire::{self, Frame, Kind, Place};
use super::*;
use crate::onnx::Model;
use crate::process::Program;
use crate::{DataType, Device, Tensor};

/// The variable that says which lie to tell.
const LIE: &str = "WINDROSE_TEST_LIE";

/// A child that lies, when it is one; nothing otherwise.
#[test]
fn liar() {
    let Ok(lie) = std::env::var(LIE) else { return };
    let stdin = std::io::stdin();
    receive_with(stdin.as_fd(), &mut vec![0; 64 << 10]).expect("a job");
    let answer = match &*lie {
        "load" => b"\x02no graph\nof mine".to_vec(),
        "loaded" => b"loaded{\"CPU\": -1}".to_vec(),
        _ => {
            let nodes = BTreeMap::from([("CPU".to_owned(), 3), ("/srv/secret".to_owned(), 1)]);
            wire::encode_loaded(&nodes).expect("bytes")
        }
    };
    send_with(stdin.as_fd(), &answer, &[]).expect("sent");
    if lie.starts_with("load") {
        return;
    }
    while let Some((socket, arena)) = attached(stdin.as_fd()) {
        let words = lie.clone();
        let session = thread::spawn(move || {
            while let Received::Frame(frame) = receive_frame(&socket) {
                match words.strip_prefix("poison ") {
                    Some(met) => eat(Path::new(met), &socket, &arena, frame),
                    None => tell(&words, &socket, &arena, frame.size),
                }
            }
        });
        // A liar has one session.
        if !lie.starts_with("poison ") {
            session.join().expect("its words");
            return;
        }
    }
}

/// The next session's way to the parent, until that lets go.
fn attached(control: BorrowedFd<'_>) -> Option<(OwnedFd, Arena)> {
    let mut size = [0; 8];
    let (length, files) = receive_with(control, &mut size).expect("a session");
    if length == 0 {
        return None;
    }
    let [socket, memory] = <[OwnedFd; 2]>::try_from(files).expect("two descriptors");
    Some((socket, Arena::open(memory, u64::from_le_bytes(size)).expect("memory")))
}

/// Runs one of two kinds of input. [`POISON`] ends the child, once it has met another run in it. Any other is answered,
/// but for the first, which waits to be met.
fn eat(met: &Path, socket: &OwnedFd, arena: &Arena, frame: Frame) {
    let header = arena.read(frame.at, u64::from(frame.length)).expect("a header");
    let (places, _) = wire::decode(&header).expect("places");
    if arena.read(places[0].at, 1) == Some(vec![POISON]) {
        while !met.exists() {
            thread::yield_now();
        }
        std::process::abort();
    }
    if std::fs::File::create_new(met).is_ok() {
        loop {
            thread::park();
        }
    }
    tell("truth", socket, arena, frame.size);
}

/// The input that ends a child.
const POISON: u8 = 1;

/// Answers one run with an answer that is none.
fn tell(lie: &str, socket: &OwnedFd, arena: &Arena, size: u64) {
    const AT: u64 = 4096;
    let place = |datatype, at, length| Place { datatype, shape: vec![2], at, length };
    let good = place(DataType::Bool, AT + 512, 2);
    let done = |places: &[Place]| {
        let header = wire::encode(places, &[]);
        arena.write(AT, &header).expect("room");
        Frame { kind: Kind::Done, length: header.len() as u32, at: AT, size: 0 }
    };
    arena.write(AT + 512, &[0, 1]).expect("room");
    let frame = match lie {
        "truth" => done(&[good]),
        "type" => done(&[place(DataType::Fp32, AT, 8)]),
        "bool" => {
            arena.write(AT + 512, &[0, 7]).expect("room");
            done(&[good])
        }
        "length" => done(&[place(DataType::Bool, AT, 3)]),
        "shape" => done(&[Place { shape: vec![usize::MAX, 2], ..good }]),
        "outside" => done(&[place(DataType::Bool, size - 1, 2)]),
        "beyond" => done(&[place(DataType::Bool, u64::MAX, 2)]),
        "vast" => done(&[place(DataType::Bool, 0, u64::MAX)]),
        "none" => done(&[]),
        "twice" => done(&[good.clone(), good]),
        "header" => Frame { kind: Kind::Done, length: u32::MAX, at: 0, size: 0 },
        "header outside" => Frame { kind: Kind::Done, length: 8, at: size, size: 0 },
        "turn" => Frame { kind: Kind::Grown, length: 0, at: 0, size: 0 },
        "grow" => Frame { kind: Kind::Grow, length: 0, at: 0, size: u64::MAX },
        "error" => {
            arena.write(AT, b"\x04\xff\xfe\x07not here").expect("room");
            Frame { kind: Kind::Failed, length: 12, at: AT, size: 0 }
        }
        "text" => return send_with(socket.as_fd(), b"done", &[]).expect("sent"),
        "silence" => return,
        "death" => std::process::abort(),
        // What it leaves behind holds its standard error.
        "orphan" => {
            let mut orphan = std::process::Command::new("sleep");
            let stdio = std::process::Stdio::null;
            orphan.arg("20").stdin(stdio()).stdout(stdio()).process_group(0).spawn().expect("a process");
            eprintln!("at /srv/secret");
            std::process::abort()
        }
        other => panic!("no such lie: {other}"),
    };
    send_frame(socket, frame).expect("sent");
}

/// A session of a graph with one output of type BOOL, whose child tells this lie.
fn session(lie: &str) -> Result<Box<dyn Session>, EngineError> {
    loaded(lie, 1).map(|mut loaded| loaded.sessions.remove(0))
}

/// That graph.
fn loaded(lie: &str, sessions: usize) -> Result<Loaded, EngineError> {
    let arguments = ["--exact", "backend::child::tests::liar", "--nocapture"].map(Into::into).to_vec();
    let path = std::env::current_exe().expect("this program");
    let program = Program { path, arguments, environment: vec![(LIE.into(), lie.into())] };
    let (run, load) = (Duration::from_secs(2), Duration::from_secs(60));
    let config = ChildConfig { program, memory: 1 << 30, tensors: 1 << 20, run, load, most: 2 };
    let children = Children::new(config, EnginesConfig::default());
    let output = crate::TensorSpec { name: "y".into(), datatype: DataType::Bool, shape: None };
    let model = Model {
        spec: crate::GraphSpec { inputs: vec![], outputs: vec![output] },
        nodes: 1,
        operators: Default::default(),
        elements: Default::default(),
        on_bytes: Default::default(),
        weight_bytes: 0,
        beyond_32_bits: None,
        half: None,
        may_trap: None,
    };
    let info = EngineInfo { name: "liar".into(), version: "1".into(), providers: vec!["CPU".into()] };
    let loading = Loading { onnx: "graph".into(), model: Arc::new(model), device: Device::Cpu, sessions, threads: 1 };
    children.load(&info, loading, &Residency::new(None))
}

#[test]
fn an_honest_answer_is_taken() {
    let mut session = session("truth").expect("a session");
    for _ in 0..3 {
        assert_eq!(session.run(&[], &[0]), Ok(vec![truth()]));
    }
}

/// What an honest child answers.
fn truth() -> Tensor {
    Tensor::new(DataType::Bool, [2], vec![0, 1].into()).expect("a tensor")
}

fn byte(value: u8) -> Tensor {
    Tensor::new(DataType::Uint8, [1], vec![value].into()).expect("a tensor")
}

/// Each time both runs are in the child when it ends. None of the ends puts the next start off.
#[test]
fn of_two_runs_in_a_child_that_ends_the_one_that_did_it_fails_however_often() {
    let folder = tempfile::tempdir().expect("a folder");
    let met = folder.path().join("met");
    let sessions = loaded(&format!("poison {}", met.display()), 2).expect("a graph").sessions;
    let Ok([mut one, mut other]) = <[Box<dyn Session>; 2]>::try_from(sessions) else { panic!("two sessions") };
    for _ in 0..4 {
        let (poisoned, answer) = thread::scope(|scope| {
            let poisoned = scope.spawn(|| one.run(&[byte(POISON)], &[0]));
            let answer = other.run(&[byte(0)], &[0]);
            (poisoned.join().expect("no panic"), answer)
        });
        assert_eq!(answer, Ok(vec![truth()]));
        assert!(matches!(&poisoned, Err(EngineError::Crashed(how)) if how.contains("SIGABRT")), "{poisoned:?}");
        std::fs::remove_file(&met).expect("they have met");
        assert!(other.waited() > Duration::ZERO, "the start of the next child is no part of a run");
    }
}

#[test]
fn a_run_that_is_suspected_ends_nobody_elses_child() {
    let folder = tempfile::tempdir().expect("a folder");
    let met = folder.path().join("met");
    std::fs::write(&met, "").expect("a file");
    let sessions = loaded(&format!("poison {}", met.display()), 2).expect("a graph").sessions;
    let Ok([mut one, mut other]) = <[Box<dyn Session>; 2]>::try_from(sessions) else { panic!("two sessions") };
    one.suspect(true);
    thread::scope(|scope| {
        let poisoned = scope.spawn(|| one.run(&[byte(POISON)], &[0]));
        for _ in 0..20 {
            assert_eq!(other.run(&[byte(0)], &[0]), Ok(vec![truth()]));
        }
        assert!(matches!(poisoned.join().expect("no panic"), Err(EngineError::Crashed(_))));
    });
}

#[test]
fn no_lie_is_believed() {
    for (lie, why) in [
        ("type", "another type"),
        ("bool", "is 7, not 0 or 1"),
        ("length", "takes 2 bytes, not 3"),
        ("shape", "too many elements"),
        ("outside", "outside the memory"),
        ("beyond", "outside the memory"),
        ("vast", "larger than their memory"),
        ("none", "another number of outputs"),
        ("twice", "another number of outputs"),
        ("header", "an answer that is none"),
        ("header outside", "an answer that is none"),
        ("turn", "out of turn"),
        ("grow", "out of turn"),
        ("text", "a message that is none"),
        ("death", "SIGABRT"),
        ("orphan", "SIGABRT"),
    ] {
        let error = session(lie).expect("a session").run(&[], &[0]).expect_err(lie);
        assert!(matches!(error, EngineError::Crashed(_)) && error.to_string().contains(why), "{lie}: {error}");
        assert!(!error.to_string().contains('/'), "{lie}: what a child says is for the log: {error}");
    }
}

#[test]
fn errors_are_cleaned_and_silence_ends() {
    let error = session("error").expect("a session").run(&[], &[0]).expect_err("an error");
    assert_eq!(error, EngineError::Failed("\u{fffd}\u{fffd}not here".into()));
    assert_eq!(session("silence").expect("a session").run(&[], &[0]), Err(EngineError::TimeLimit));
    let refused = session("load").err().expect("a refusal");
    assert_eq!(refused, EngineError::InvalidGraph("no graphof mine".into()));
}

#[test]
fn of_where_nodes_run_only_what_can_be_is_believed() {
    let nodes = loaded("truth", 1).expect("a graph").info.nodes;
    assert_eq!(nodes, BTreeMap::from([("CPU".to_owned(), 3)]), "the engine has no other provider");
    let garbled = loaded("loaded", 1).err().expect("a refusal");
    assert!(matches!(&garbled, EngineError::InvalidGraph(why) if why.contains("says what cannot be")), "{garbled}");
}

#[test]
fn inputs_beyond_the_shared_memory_are_the_callers_error() {
    let mut session = session("truth").expect("a session");
    let large = Tensor::new(DataType::Uint8, [1 << 20], vec![0; 1 << 20].into()).expect("a tensor");
    assert!(matches!(session.run(&[large], &[0]), Err(EngineError::InvalidInput(_))));
    assert!(session.run(&[], &[0]).is_ok(), "the child goes on");
}
