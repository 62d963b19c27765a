//! Private copies of large entries, which are loaded by mapping them and need no second look.
//!
//! Authenticating a byte takes longer than loading it, and a file that has a name may be edited after that. So what is large
//! is copied into a file of the cache's folder that has no name and never had one, is authenticated there, and stays open
//! for as long as its module is known: who does not run as this user, or as root, cannot open it, wherever the folder comes
//! from. The kernel frees it with the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Bytes from which on an artifact is copied. A smaller one is read and authenticated in less time than its first call may
/// take, and there may be thousands.
const LARGE: u64 = 1 << 20;
/// Copies at a time, each a file descriptor and another while it is mapped, where the process may have enough of those.
const MOST: u64 = 256;
/// One in so many of the file descriptors that the process may have is a copy.
const SHARE_OF_FILES: u64 = 16;
/// Bytes of all copies.
const MOST_BYTES: u64 = 4 << 30;
/// A copy takes at most one in so many bytes that are free on the disk.
const SHARE_OF_DISK: u64 = 4;

/// The copies of one cache.
pub(super) struct Copies {
    taken: Arc<Taken>,
    /// How many there may be.
    most: u64,
    /// Set where the system cannot make or map them, so that it is tried once.
    useless: AtomicBool,
}

/// How many there are, and their bytes. Held for a look only.
#[derive(Default)]
struct Taken(Mutex<(u64, u64)>);

/// An artifact in a file without a name.
pub(crate) struct PrivateCopy {
    /// Open for reading: nobody has it open for writing.
    file: File,
    _room: Room,
}

/// What one copy has taken.
struct Room {
    taken: Arc<Taken>,
    bytes: u64,
}

// === impl Copies ===

impl Copies {
    pub(super) fn new() -> Copies {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = MOST.min(files / SHARE_OF_FILES);
        Copies { taken: Arc::default(), most, useless: AtomicBool::new(false) }
    }

    /// Copies the rest of `entry`, `bytes` of it, into `folder`; `None` where it is not worth a copy or there is no room
    /// for one. What it holds is not yet authenticated.
    pub(super) fn copy(&self, folder: &Path, entry: &mut File, bytes: u64) -> Option<PrivateCopy> {
        if bytes < LARGE || self.useless.load(Relaxed) {
            return None;
        }
        let room = self.room(bytes)?;
        match write(folder, entry, bytes) {
            Ok(file) => file.map(|file| PrivateCopy { file, _room: room }),
            Err(error) if is_want(&error) => None,
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    /// Makes no more of them.
    pub(super) fn give_up(&self, error: &dyn std::fmt::Display) {
        if !self.useless.swap(true, Relaxed) {
            tracing::warn!(%error, "large modules are read and authenticated each time they come back to memory");
        }
    }

    fn room(&self, bytes: u64) -> Option<Room> {
        let mut taken = self.taken.lock();
        let (copies, all) = (taken.0 + 1, taken.1.saturating_add(bytes));
        if copies > self.most || all > MOST_BYTES {
            return None;
        }
        *taken = (copies, all);
        Some(Room { taken: Arc::clone(&self.taken), bytes })
    }
}

/// A file without a name that holds the rest of `entry`; `None` where the disk has little room.
fn write(folder: &Path, entry: &mut File, bytes: u64) -> io::Result<Option<File>> {
    let unnamed = (OFlags::TMPFILE | OFlags::EXCL).bits() as i32;
    let mut file = OpenOptions::new().write(true).mode(0o400).custom_flags(unnamed).open(folder)?;
    let disk = fstatvfs(&file)?;
    if bytes > disk.f_bavail.saturating_mul(disk.f_frsize) / SHARE_OF_DISK {
        return Ok(None);
    }
    // A page that finds no room when it is written back is found out by whoever maps it, with a signal.
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    let copied = io::copy(&mut entry.take(bytes), &mut file)?;
    if copied != bytes {
        return Ok(None);
    }
    Ok(Some(File::open(path(&file))?))
}

/// Whether something was wanting that there may be later.
fn is_want(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOSPC, Errno::DQUOT, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| wants.contains(&error))
}

/// Where this process finds a file that it has open.
fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

// === impl PrivateCopy ===

impl PrivateCopy {
    /// Under which this process, and nobody else, may open it.
    pub(crate) fn path(&self) -> PathBuf {
        path(&self.file)
    }

    /// Goes through the bytes that will be mapped.
    pub(super) fn for_each(&self, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        let mut some = vec![0; 256 << 10];
        loop {
            match file.read(&mut some) {
                Ok(0) => return Ok(()),
                Ok(read) => see(&some[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// All of it.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        fs::read(self.path())
    }
}

// === impl Room ===

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        *taken = (taken.0 - 1, taken.1 - self.bytes);
    }
}

// === impl Taken ===

impl Taken {
    /// Nothing panics under it, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &vec![7; bytes as usize]).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn a_copy_has_no_name_and_holds_the_rest_of_its_entry() {
        let folder = tempfile::tempdir().unwrap();
        let mut entry = entry(LARGE + 40);
        entry.seek(SeekFrom::Start(40)).unwrap();
        let copy = Copies::new().copy(folder.path(), &mut entry, LARGE).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(copy.read().unwrap(), vec![7; LARGE as usize]);
        let mut seen = 0;
        copy.for_each(|bytes| seen += bytes.len() as u64).unwrap();
        assert_eq!(seen, LARGE);
        io::Write::write_all(&mut &copy.file, b"more").unwrap_err();
    }

    #[test]
    fn there_are_as_many_as_there_may_be_and_room_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies { most: 2, ..Copies::new() };
        let copy = || copies.copy(folder.path(), &mut entry(LARGE), LARGE);
        let (first, second) = (copy().unwrap(), copy().unwrap());
        assert!(copy().is_none());
        drop(first);
        let third = copy().unwrap();
        assert!(copies.room(MOST_BYTES).is_none());
        drop((second, third));
        assert!(copies.room(MOST_BYTES).is_some());
        assert!(copies.copy(folder.path(), &mut entry(LARGE - 1), LARGE - 1).is_none(), "it is small");
        assert!(copies.copy(folder.path(), &mut entry(LARGE), LARGE + 1).is_none(), "it was cut meanwhile");
        assert_eq!(*copies.taken.lock(), (0, 0));
    }

    #[test]
    fn a_disk_that_makes_none_is_not_asked_again() {
        let copies = Copies::new();
        assert!(copies.copy(Path::new("/proc"), &mut entry(LARGE), LARGE).is_none());
        let folder = tempfile::tempdir().unwrap();
        assert!(copies.copy(folder.path(), &mut entry(LARGE), LARGE).is_none());
    }
}
