//! Memory that both ends of a session have: a file without a name, mapped by each. Only the parent makes and grows it,
//! and nobody can shrink it, so that no access can fault.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a new arena.
const FIRST: u64 = 64 << 10;
/// Bytes whose pages an arena keeps between runs; what a larger run used beyond goes back to the system.
const KEPT: u64 = 4 << 20;

/// One end's view of the memory.
pub(super) struct Arena {
    file: OwnedFd,
    mapping: Arc<Mapping>,
}

impl Arena {
    /// A new one, for the parent.
    pub fn create() -> io::Result<Arena> {
        let file = memfd_create("windrose-tensors", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, FIRST)?;
        // The child has the file, too, and may be under an attacker's control: a file that shrinks under a mapping kills
        // who touches it.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
        Arena::open(file, FIRST)
    }

    /// The parent's, as the child got it.
    pub fn open(file: OwnedFd, size: u64) -> io::Result<Arena> {
        let mapping = Arc::new(Mapping::new(file.as_fd(), size)?);
        Ok(Arena { file, mapping })
    }

    /// The file, to hand it to the child.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes that can be reached here.
    pub fn size(&self) -> u64 {
        self.mapping.size as u64
    }

    /// Makes at least `size` bytes of it, for the parent, who keeps `size` below `most`.
    pub fn grow(&mut self, size: u64, most: u64) -> io::Result<()> {
        if size > self.size() {
            // In doublings, so that tensors that grow slowly do not map anew each time.
            let size = size.checked_next_power_of_two().unwrap_or(size).min(most).max(size);
            ftruncate(&self.file, size)?;
            self.see(size)?;
        }
        Ok(())
    }

    /// Maps what the parent has grown, for the child.
    pub fn see(&mut self, size: u64) -> io::Result<()> {
        if size > self.size() {
            self.mapping = Arc::new(Mapping::new(self.file.as_fd(), size)?);
        }
        Ok(())
    }

    /// Gives the pages of a large run back.
    pub fn trim(&self) -> io::Result<()> {
        if self.size() <= KEPT {
            return Ok(());
        }
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, KEPT, self.size() - KEPT)?;
        Ok(())
    }

    /// Copies bytes in. `None` where they do not fit.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        let place = self.mapping.range(at, bytes.len() as u64)?;
        #[expect(unsafe_code, reason = "the memory is shared with another process")]
        // SAFETY: `range` has checked that the mapping, which lives as long as `self`, has that many bytes there. They
        // are written through a raw pointer: what the other end does at the same time can change which bytes it sees,
        // and nothing else.
        unsafe {
            place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        Some(())
    }

    /// Copies bytes out: the other end can change them no more. `None` where there are no such bytes.
    pub fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        let place = self.mapping.range(at, length)?;
        let length = usize::try_from(length).ok()?;
        let mut bytes = Vec::<u8>::with_capacity(length);
        #[expect(unsafe_code, reason = "the memory is shared with another process")]
        // SAFETY: `range` has checked the source as above, and the vector has room for as many bytes, all of which are
        // written before its length says so. The other end may write meanwhile: any byte is a valid `u8`.
        unsafe {
            place.as_ptr().cast_const().copy_to_nonoverlapping(bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Some(bytes)
    }

    /// The bytes as they lie there, for the child: its parent does not write while it runs. `None` as above.
    pub fn view(&self, at: u64, length: u64) -> Option<Bytes> {
        let start = self.mapping.range(at, length)?;
        let length = usize::try_from(length).ok()?;
        Some(Bytes::from_owner(View { _mapping: Arc::clone(&self.mapping), start, length }))
    }
}

/// A mapping of the whole file as it was when it was made.
struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

#[expect(unsafe_code, reason = "the pointer is to memory that the mapping owns")]
// SAFETY: the memory belongs to no thread, and is reached by copies and read-only views alone.
unsafe impl Send for Mapping {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, size: u64) -> io::Result<Mapping> {
        let size = usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        #[expect(unsafe_code, reason = "a file is mapped")]
        // SAFETY: the kernel chooses the address, so that no other memory is touched; the file is as long as asked and
        // sealed against shrinking, so that every byte stays there until it is unmapped.
        let start = unsafe { mmap(null_mut(), size, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, size })
    }

    /// Where those bytes start, if all of them are in the mapping.
    fn range(&self, at: u64, length: u64) -> Option<NonNull<u8>> {
        if at.checked_add(length)? > self.size as u64 {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        #[expect(unsafe_code, reason = "pointer arithmetic")]
        // SAFETY: `at` is at most the mapping's size, whose allocation is the mapping.
        Some(unsafe { self.start.add(at) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a file is unmapped")]
        // SAFETY: it was mapped with this size, and no view of it is left.
        // An error would leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// Bytes of a mapping, which they keep.
struct View {
    _mapping: Arc<Mapping>,
    start: NonNull<u8>,
    length: usize,
}

#[expect(unsafe_code, reason = "the pointer is to memory that the view keeps")]
// SAFETY: the memory is only read, and lives as long as the view.
unsafe impl Send for View {}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "the memory is shared with the parent")]
        // SAFETY: `Arena::view` has checked the range, and the parent, which this process trusts, writes nothing there
        // until the run is answered, by when the engine has dropped its inputs.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_see_the_same_and_nothing_beyond() {
        let mut parent = Arena::create().expect("memory");
        let file = parent.file().try_clone_to_owned().expect("a descriptor");
        let mut child = Arena::open(file, parent.size()).expect("memory");
        parent.write(10, b"north").expect("room");
        let seen = child.view(10, 5).expect("bytes");
        assert_eq!(&seen[..], b"north");
        assert_eq!(parent.write(FIRST - 2, b"west"), None);
        for (at, length) in [(0, FIRST + 1), (FIRST, 1), (u64::MAX, 2), (1, u64::MAX)] {
            assert!(parent.read(at, length).is_none() && child.view(at, length).is_none());
        }
        parent.grow(FIRST + 1, u64::MAX).expect("more");
        assert_eq!(parent.size(), 2 * FIRST, "a power of two");
        assert_eq!(child.view(FIRST, 1), None, "not before it is told");
        child.see(parent.size()).expect("more");
        parent.write(FIRST, b"east").expect("room");
        assert_eq!(child.read(FIRST, 4).as_deref(), Some(&b"east"[..]));
        drop(child);
        assert_eq!(&seen[..], b"north", "a view outlives its arena");
    }

    #[test]
    fn nobody_shrinks_it_and_large_runs_leave_no_pages() {
        let mut arena = Arena::create().expect("memory");
        assert!(ftruncate(arena.file(), 0).is_err());
        arena.grow(3 * KEPT, 3 * KEPT).expect("more");
        let pages = |arena: &Arena| rustix::fs::fstat(arena.file()).expect("a file").st_blocks * 512;
        let (size, all) = (arena.size(), vec![1; arena.size() as usize]);
        arena.write(0, &all).expect("room");
        assert_eq!(pages(&arena) as u64, size);
        arena.trim().expect("less");
        assert_eq!(pages(&arena) as u64, KEPT);
        assert_eq!(arena.read(0, 1), Some(vec![1]));
        assert_eq!(arena.read(size - 1, 1), Some(vec![0]));
    }
}
