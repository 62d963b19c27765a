//! What the cache holds in vain: entries that no module needs any more, those of an older gateway among them, and what
//! processes were writing that were killed.

use std::collections::HashSet;
use std::fs::{self, DirEntry};
use std::io;
use std::time::{Duration, SystemTime};

use wasmtime::Engine;

use super::{Cache, Form, name};
use crate::engine::Tasks;

/// Digits of an entry's name.
const DIGITS: usize = 64;

/// How old what is removed must be at least.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Entries that nothing needs.
    pub entries: Duration,
    /// Files that were never finished: longer than any process lives that writes one.
    pub unfinished: Duration,
}

impl Cache {
    /// Removes what is old enough, but for the entries that `engine` would load of the modules with these digests. Returns
    /// how many files.
    pub(crate) fn sweep<'a>(
        &self,
        engine: &Engine,
        keep: impl Iterator<Item = &'a str>,
        ages: Ages,
    ) -> io::Result<usize> {
        let keep: HashSet<String> = keep.flat_map(|digest| names(engine, digest)).collect();
        let (now, mut removed) = (SystemTime::now(), 0);
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let file = entry.file_name();
            let least = match file.to_str() {
                Some(name) if is_name(name) && !keep.contains(name) => ages.entries,
                Some(name) if is_unfinished(name) => ages.unfinished,
                // In use, or nothing that was written here.
                _ => continue,
            };
            match remove(&entry, now, least) {
                Ok(gone) => removed += usize::from(gone),
                // Who wrote it has finished it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(entry = %file.display(), %error, "a compiled module was not removed"),
            }
        }
        Ok(removed)
    }
}

/// Every name that a module's entry may have.
fn names(engine: &Engine, digest: &str) -> [String; 4] {
    let (plain, initialised) = (Form::Plain, Form::Initialised);
    let all = [(Tasks::Untold, plain), (Tasks::Told, plain), (Tasks::Untold, initialised), (Tasks::Told, initialised)];
    all.map(|(tasks, form)| name(engine, tasks, digest, form))
}

fn is_name(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// As [`Cache::put`] names what it writes aside.
fn is_unfinished(name: &str) -> bool {
    let entry = name.strip_prefix('.').and_then(|rest| rest.split_once('.'));
    entry.is_some_and(|(entry, _)| is_name(entry))
}

/// Removes a file, if it was last written so long ago.
fn remove(entry: &DirEntry, now: SystemTime, least: Duration) -> io::Result<bool> {
    let written = entry.metadata()?.modified()?;
    // What is younger than the clock says is not old.
    let old = now.duration_since(written).is_ok_and(|age| age >= least);
    if old {
        fs::remove_file(entry.path())?;
    }
    Ok(old)
}
