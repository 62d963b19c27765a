//! The cache of compiled modules: it survives restarts, and nothing that was edited is loaded.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use windrose_sandbox::{Ages, ModuleError, PASSTHROUGH, Sandbox, SandboxConfig};

use crate::wat::guest;

fn open(folder: &Path) -> Result<Sandbox, ModuleError> {
    open_sized(folder, 1)
}

fn open_sized(folder: &Path, instances: u32) -> Result<Sandbox, ModuleError> {
    Sandbox::new(SandboxConfig {
        cache: Some(folder.join("cache")),
        cache_key: Some(folder.join("key")),
        instances,
        memory: 256 << 20,
        modules: None,
    })
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder.join("cache")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_one_process_compiled_another_loads() {
    let folder = tempfile::tempdir().unwrap();
    let child = open(folder.path()).unwrap();
    let digest = child.module(PASSTHROUGH).unwrap().digest().to_owned();
    let parent = open_sized(folder.path(), 100).unwrap();
    assert!(parent.is_cached(&digest));
    let module = parent.module_from_cache(&digest).expect("it is there");
    assert_eq!((module.digest(), module.kind()), (&*digest, windrose_sandbox::ModuleKind::Model));
    assert!(parent.module_from_cache(&"0".repeat(64)).is_none());
    let key = fs::metadata(folder.path().join("key")).unwrap();
    assert_eq!((key.permissions().mode() & 0o777, key.len()), (0o600, 32));
}

#[test]
fn an_entry_that_was_touched_is_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = open(folder.path()).unwrap();
    let digest = sandbox.module(PASSTHROUGH).unwrap().digest().to_owned();
    let entry = entries(folder.path()).pop().unwrap();
    let whole = fs::read(&entry).unwrap();
    for at in [0, 8, 20, 40, 41, whole.len() / 2, whole.len() - 1] {
        let mut edited = whole.clone();
        edited[at] ^= 1;
        fs::write(&entry, &edited).unwrap();
        assert!(!sandbox.is_cached(&digest), "byte {at} was edited");
    }
    for length in [0, 7, 40, whole.len() - 1] {
        fs::write(&entry, &whole[..length]).unwrap();
        assert!(!sandbox.is_cached(&digest), "cut to {length} bytes");
    }
    sandbox.module(PASSTHROUGH).unwrap();
    assert!(sandbox.is_cached(&digest), "it was compiled and kept again");
}

#[test]
fn entries_cannot_take_each_others_place() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = open(folder.path()).unwrap();
    let first = sandbox.module(PASSTHROUGH).unwrap().digest().to_owned();
    let first_entry = entries(folder.path()).pop().unwrap();
    let second = sandbox.module(&guest("", "(unreachable)")).unwrap().digest().to_owned();
    let second_entry = entries(folder.path()).into_iter().find(|path| *path != first_entry).unwrap();
    fs::copy(&second_entry, &first_entry).unwrap();
    assert!(!sandbox.is_cached(&first) && sandbox.is_cached(&second));
}

#[test]
fn models_that_name_the_same_module_share_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let digest = open(folder.path()).unwrap().module(PASSTHROUGH).unwrap().digest().to_owned();
    let sandbox = open(folder.path()).unwrap();
    let first = sandbox.module_from_cache(&digest).unwrap();
    fs::remove_file(entries(folder.path()).pop().unwrap()).unwrap();
    let second = sandbox.module_from_cache(&digest).expect("it is loaded already");
    assert_eq!(first.digest(), second.digest());
    drop((first, second));
    assert!(sandbox.module_from_cache(&digest).is_none(), "nobody had it any more");
}

#[test]
fn what_no_module_needs_goes_once_it_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = open(folder.path()).unwrap();
    let kept = sandbox.module(PASSTHROUGH).unwrap().digest().to_owned();
    let gone = sandbox.module(&guest("", "(unreachable)")).unwrap().digest().to_owned();
    let cache = folder.path().join("cache");
    let hour = Duration::from_secs(3600);
    let make = |name: String, age: Duration| {
        let path = cache.join(name);
        fs::write(&path, "x").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        path
    };
    // Of another engine; what a process left that was killed; what one is writing; what is nobody's here.
    let other = make("a".repeat(64), 2 * hour);
    let left = make(format!(".{}.7.0", "b".repeat(64)), 2 * hour);
    let written = make(format!(".{}.8.0", "b".repeat(64)), Duration::ZERO);
    let foreign = [make("notes".into(), 2 * hour), make(".notes".into(), 2 * hour)];
    let keep = || [kept.as_str()].into_iter();
    let ages = |entries| Ages { entries, unfinished: hour };
    assert_eq!(sandbox.sweep(keep(), ages(hour)).unwrap(), 2);
    assert!(!other.exists() && !left.exists() && written.exists());
    assert!(sandbox.is_cached(&gone), "it has just been compiled");
    assert_eq!(sandbox.sweep(keep(), ages(Duration::ZERO)).unwrap(), 1);
    assert!(sandbox.is_cached(&kept) && !sandbox.is_cached(&gone) && written.exists());
    assert!(foreign.iter().all(|path| path.exists()));
}

#[test]
fn another_key_authenticates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let digest = open(folder.path()).unwrap().module(PASSTHROUGH).unwrap().digest().to_owned();
    fs::remove_file(folder.path().join("key")).unwrap();
    assert!(!open(folder.path()).unwrap().is_cached(&digest));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).unwrap();
    let key = folder.path().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open(folder.path()), Err(ModuleError::Host(text)) if text.contains("0600")));
}

#[test]
fn the_key_does_not_lie_in_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let config = SandboxConfig {
        cache: Some(folder.path().into()),
        cache_key: Some(folder.path().join("key")),
        instances: 1,
        memory: 1 << 20,
        modules: None,
    };
    assert!(matches!(Sandbox::new(config), Err(ModuleError::Host(_))));
}
