//! Code that leaves memory: it comes back from the cache with the next call, once, and never leaves under a call.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use windrose_engine::{DataType, GraphSpec, ResidencyCounts, TensorSpec};
use windrose_sandbox::{CallError, Limits, Program, Sandbox, SandboxConfig};

use crate::initialise::seven;
use crate::support::{config, context, floats, graph, request};
use crate::wat::guest;

/// A sandbox with its cache in a folder, and a budget for code in bytes.
fn open(folder: Option<&Path>, modules: Option<u64>) -> Sandbox {
    let (cache, cache_key) = (folder.map(|f| f.join("cache")), folder.map(|f| f.join("key")));
    Sandbox::new(SandboxConfig { cache, cache_key, instances: 32, memory: 256 << 20, modules }).unwrap()
}

/// A module that runs `before` and answers with its number.
fn numbered(number: usize, before: &str) -> Vec<u8> {
    let body = format!(
        "{before} (f32.store (i32.const 260) (f32.const {number}))
        (call $answer (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 260) (i32.const 4)))"
    );
    guest(r#"(data (i32.const 512) "\01\00\00\00")"#, &body)
}

/// Programs of these modules in a sandbox that has room for the code of `room` of them. All are about as large.
fn programs(folder: &Path, modules: &[Vec<u8>], room: u64) -> (Sandbox, Vec<Program>) {
    let whole = open(Some(folder), None);
    let loaded: Vec<_> = modules.iter().map(|wasm| whole.module(wasm).unwrap()).collect();
    let one = whole.modules().counts().bytes / loaded.len() as u64;
    let sandbox = open(Some(folder), Some(one * room + one / 2));
    let program = |digest: &str| {
        let module = sandbox.module_from_cache(digest).unwrap();
        let mut config = config(module, graph("test/identity_fp32.onnx"));
        config.limits = Limits { wall_ms: 60_000, cpu_ms: 60_000, ..Limits::default() };
        Program::new(&sandbox, config).unwrap()
    };
    let programs = loaded.iter().map(|module| program(module.digest())).collect();
    (sandbox, programs)
}

async fn ask(program: &Program) -> Result<f32, CallError> {
    let outputs = vec![TensorSpec { name: "y".into(), datatype: DataType::Fp32, shape: None }];
    let signature = GraphSpec { inputs: Vec::new(), outputs };
    Ok(floats(&program.infer(&signature, request(&[1.0]), &context()).await?)[0])
}

/// Waits until the budget is kept: what calls have used leaves behind their backs.
async fn kept(sandbox: &Sandbox) -> ResidencyCounts {
    for _ in 0..3_000 {
        if !sandbox.modules().is_over() {
            return sandbox.modules().counts();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the budget is not kept: {:?}", sandbox.modules().counts());
}

fn resident(programs: &[Program]) -> Vec<bool> {
    programs.iter().map(|program| program.module().is_resident()).collect()
}

#[tokio::test]
async fn the_least_recently_called_leaves_and_comes_back_with_its_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let modules = [numbered(0, ""), numbered(1, ""), seven()];
    let (sandbox, programs) = programs(folder.path(), &modules, 2);
    assert_eq!(resident(&programs), [false, true, true]);
    assert_eq!(ask(&programs[1]).await.unwrap(), 1.0);
    assert_eq!(ask(&programs[0]).await.unwrap(), 0.0);
    assert_eq!(resident(&programs), [true, true, false]);
    assert_eq!(ask(&programs[2]).await.unwrap(), 0.0);
    assert_eq!(resident(&programs), [true, false, true]);
    let counts = kept(&sandbox).await;
    assert_eq!((counts.evictions, counts.reloads), (3, 2));
    drop(programs);
    assert_eq!(sandbox.modules().counts().bytes, 0);
}

#[tokio::test]
async fn an_initialised_module_comes_back_initialised() {
    let folder = tempfile::tempdir().unwrap();
    let child = open(Some(folder.path()), None);
    child.initialised(child.initialise(&seven(), &Limits::default()).await.unwrap()).unwrap();
    let (_sandbox, programs) = programs(folder.path(), &[numbered(0, ""), seven()], 1);
    for _ in 0..3 {
        assert_eq!(ask(&programs[1]).await.unwrap(), 7.5);
        assert_eq!(ask(&programs[0]).await.unwrap(), 0.0);
        assert_eq!(resident(&programs), [true, false]);
    }
}

/// 24 modules with room for 4, called in random order, up to 8 at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_answer_is_its_own_and_the_budget_is_kept() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut seed = std::env::var("WINDROSE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now) | 1;
    eprintln!("WINDROSE_SEED={seed}");
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let folder = tempfile::tempdir().unwrap();
    let modules: Vec<Vec<u8>> = (0..24).map(|number| numbered(number, "")).collect();
    let (sandbox, programs) = programs(folder.path(), &modules, 4);
    for _ in 0..60 {
        let calls: Vec<usize> = (0..1 + random(8)).map(|_| random(24)).collect();
        let calls = calls.into_iter().map(|at| (at, programs[at].clone()));
        let calls: Vec<_> =
            calls.map(|(at, program)| tokio::spawn(async move { (at, ask(&program).await.unwrap()) })).collect();
        for call in calls {
            let (at, answer) = call.await.unwrap();
            assert_eq!(answer, at as f32);
        }
        let counts = kept(&sandbox).await;
        let here = resident(&programs).into_iter().filter(|here| *here).count();
        assert!(here <= 4, "{here} are in memory: {counts:?}");
    }
    let counts = sandbox.modules().counts();
    // The first loads are no reloads; whoever left and is not here was not called again.
    assert!(counts.reloads > 24 && counts.evictions >= counts.reloads, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_first_calls_load_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let (sandbox, programs) = programs(folder.path(), &[numbered(5, ""), numbered(6, "")], 1);
    assert_eq!(resident(&programs), [false, true]);
    let call = |_| {
        tokio::spawn({
            let program = programs[0].clone();
            async move { ask(&program).await.unwrap() }
        })
    };
    let calls: Vec<_> = (0..16).map(call).collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), 5.0);
    }
    assert_eq!(sandbox.modules().counts().reloads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_in_use_stays_until_its_call_ends() {
    let folder = tempfile::tempdir().unwrap();
    let busy = numbered(0, "(loop $for-ever (br $for-ever))");
    let (sandbox, programs) = programs(folder.path(), &[busy, numbered(1, ""), numbered(2, "")], 1);
    let running = programs[0].clone();
    let running = tokio::spawn(async move { ask(&running).await });
    while sandbox.pool().instances == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..10 {
        for (number, program) in programs.iter().enumerate().skip(1) {
            assert_eq!(ask(program).await.unwrap(), number as f32);
            assert!(programs[0].module().is_resident());
        }
    }
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    kept(&sandbox).await;
    assert_eq!(ask(&programs[1]).await.unwrap(), 1.0);
    kept(&sandbox).await;
    assert_eq!(resident(&programs), [false, true, false]);
}

/// Where there is room for none, every module has left when its last call has ended, or was given up while it was loaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_kept_a_module_from_leaving_lets_it_leave() {
    let folder = tempfile::tempdir().unwrap();
    let (sandbox, programs) = programs(folder.path(), &[numbered(0, ""), numbered(1, "")], 0);
    for round in 0..200 {
        let call = |at: usize| {
            let program = programs[at % 2].clone();
            tokio::spawn(async move { ask(&program).await.unwrap() })
        };
        let calls: Vec<_> = (0..round % 5).map(call).collect();
        let (kept_on, given_up) = (call(round), call(round / 2));
        tokio::task::yield_now().await;
        given_up.abort();
        assert_eq!(kept_on.await.unwrap(), (round % 2) as f32);
        for call in calls {
            call.await.unwrap();
        }
        let _ = given_up.await;
        assert_eq!(kept(&sandbox).await.bytes, 0);
    }
}

#[tokio::test]
async fn what_the_cache_has_lost_is_not_loaded_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (sandbox, programs) = programs(folder.path(), &[numbered(5, ""), numbered(6, "")], 1);
    let (cache, aside) = (folder.path().join("cache"), folder.path().join("aside"));
    fs::rename(&cache, &aside).unwrap();
    let digest = programs[0].module().digest();
    assert!(!sandbox.is_cached(digest) && sandbox.module_from_cache(digest).is_none());
    let error = ask(&programs[0]).await.unwrap_err();
    assert!(matches!(&error, CallError::NotLoaded(why) if why.contains("the cache")), "{error:?}");
    assert_eq!(sandbox.lost().await, digest);
    fs::rename(&aside, &cache).unwrap();
    assert_eq!(ask(&programs[0]).await.unwrap(), 5.0);
    assert!(sandbox.is_cached(digest));
}

/// A module so large that its code comes back from a private copy; answers with its number.
fn large(number: usize) -> Vec<u8> {
    let data = "abcdefgh".repeat(256 << 10);
    let answer = format!(
        "(f32.store (i32.const 260) (f32.const {number}))
        (call $answer (call $tensor (i32.const 512) (i32.const 1) (i32.const 1) (i32.const 260) (i32.const 4)))"
    );
    guest(&format!(r#"(data (i32.const 512) "\01\00\00\00") (data $large "{data}")"#), &answer)
}

/// Writes over every byte of every entry, in place.
fn poison(folder: &Path) {
    for entry in fs::read_dir(folder.join("cache")).unwrap() {
        let path = entry.unwrap().path();
        let length = fs::metadata(&path).unwrap().len();
        fs::write(path, vec![0xcc; length as usize]).unwrap();
    }
}

#[tokio::test]
async fn a_large_module_comes_back_as_it_was_whatever_becomes_of_its_entry() {
    let folder = tempfile::tempdir().unwrap();
    let (sandbox, programs) = programs(folder.path(), &[large(5), large(6)], 1);
    assert_eq!(resident(&programs), [false, true]);
    poison(folder.path());
    for number in [5, 6, 5] {
        assert_eq!(ask(&programs[number - 5]).await.unwrap(), number as f32);
    }
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    let digest = programs[1].module().digest();
    assert!(!programs[1].module().is_resident() && sandbox.is_cached(digest));
    assert_eq!(ask(&programs[1]).await.unwrap(), 6.0);
    assert_eq!(sandbox.modules().counts().reloads, 4);
}

#[tokio::test]
async fn what_was_edited_on_disk_is_not_loaded() {
    for modules in [[large(5), large(6)], [numbered(5, ""), numbered(6, "")]] {
        let folder = tempfile::tempdir().unwrap();
        let (_, programs) = programs(folder.path(), &modules, 1);
        poison(folder.path());
        // As after a restart: nothing was authenticated yet.
        let sandbox = open(Some(folder.path()), None);
        for program in &programs {
            let digest = program.module().digest();
            assert!(!sandbox.is_cached(digest) && sandbox.module_from_cache(digest).is_none());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (sandbox, programs) = programs(folder.path(), &[numbered(5, ""), numbered(6, "")], 1);
    poison(folder.path());
    let error = ask(&programs[0]).await.unwrap_err();
    assert!(matches!(&error, CallError::NotLoaded(_)), "{error:?}");
    assert_eq!(sandbox.lost().await, programs[0].module().digest());
    assert_eq!(sandbox.modules().counts().reloads, 0);
}

#[tokio::test]
async fn without_a_cache_nothing_leaves() {
    let sandbox = open(None, Some(1));
    let module = sandbox.module(&numbered(3, "")).unwrap();
    let program = Program::new(&sandbox, config(module, graph("test/identity_fp32.onnx"))).unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&program).await.unwrap(), 3.0);
        assert!(program.module().is_resident());
    }
    assert_eq!(sandbox.modules().counts().evictions, 0);
}
