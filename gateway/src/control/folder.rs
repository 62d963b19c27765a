//! Files and folders that outlive a power loss and that only their owner reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::store::{hex, hex_digest};

/// How much of a file is copied at a time, bytes.
const COPIED: usize = 1 << 20;

/// Makes a folder, and those above it, where they are missing; only the owner can enter what was made here. Syncs every
/// folder that got an entry.
///
/// # Errors
/// As the file system says.
pub fn make_private(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.into_iter().try_for_each(|made| sync(made.parent()))
}

/// Syncs a folder's entries to the disk.
///
/// # Errors
/// As the file system says.
pub fn sync(dir: Option<&Path>) -> io::Result<()> {
    match dir {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        Some(_) => File::open(".")?.sync_all(),
        None => Ok(()),
    }
}

/// Removes the staged files (`name#1`) that `object_store` leaves when the process dies within a write.
///
/// # Errors
/// As the file system says.
pub fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path())?;
        } else if is_staged(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The folders of assets that models see as their file system, each made once from blobs and named by what is in it.
pub struct AssetFolders {
    root: PathBuf,
}

impl AssetFolders {
    /// Folders under `root`. Those of an unfinished copy are removed.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(root: PathBuf) -> io::Result<AssetFolders> {
        make_private(&root)?;
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("unfinished-") {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(AssetFolders { root })
    }

    /// The folder with these files, copied from the blobs at `paths` where it is not there yet. Blocks.
    ///
    /// # Errors
    /// As the file system says, or when a blob's content is not what its digest says.
    pub fn folder(&self, assets: &BTreeMap<String, String>, blob: impl Fn(&str) -> PathBuf) -> io::Result<PathBuf> {
        let finished = self.root.join(folder_name(assets));
        if finished.is_dir() {
            return Ok(finished);
        }
        let unfinished = self.root.join(format!("unfinished-{:016x}", rand::random::<u64>()));
        make_private(&unfinished)?;
        let made = fill(&unfinished, assets, blob).and_then(|()| std::fs::rename(&unfinished, &finished));
        if made.is_ok() {
            return sync(Some(&self.root)).map(|()| finished);
        }
        std::fs::remove_dir_all(&unfinished)?;
        // Somebody else may have made the very same folder meanwhile.
        if finished.is_dir() { Ok(finished) } else { made.map(|()| finished) }
    }

    /// Removes the folders that none of these asset lists has.
    ///
    /// # Errors
    /// As the file system says.
    pub fn sweep<'a>(&self, keep: impl Iterator<Item = &'a BTreeMap<String, String>>) -> io::Result<()> {
        let keep: std::collections::HashSet<String> = keep.map(folder_name).collect();
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !keep.contains(&name) && !name.starts_with("unfinished-") {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Copies blobs to their paths in a folder, each once: what has several paths is one file. All of it is on the disk then, since
/// a finished folder is taken as it is after a restart.
fn fill(folder: &Path, assets: &BTreeMap<String, String>, blob: impl Fn(&str) -> PathBuf) -> io::Result<()> {
    let mut folders = BTreeSet::from([folder.to_owned()]);
    let mut copied: HashMap<&str, PathBuf> = HashMap::new();
    for (path, digest) in assets {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match copied.get(digest.as_str()) {
            Some(first) => std::fs::hard_link(first, &target)?,
            None => {
                copy(&blob(digest), &target, digest)?;
                copied.insert(digest, target.clone());
            }
        }
        folders.extend(target.ancestors().skip(1).take_while(|above| above.starts_with(folder)).map(Path::to_owned));
    }
    folders.iter().try_for_each(|folder| sync(Some(folder)))
}

/// Copies a blob to a file of its own that nobody writes any more, and sees that it is what its digest says.
fn copy(blob: &Path, target: &Path, digest: &str) -> io::Result<()> {
    let mut from = File::open(blob)?;
    let mut file = File::options().write(true).create_new(true).mode(0o400).open(target)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; COPIED]);
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
        file.write_all(&piece[..read])?;
    }
    if hex(&hash.finalize()) != digest {
        return Err(io::Error::other(format!("blob {digest} has other content")));
    }
    file.sync_all()
}

fn folder_name(assets: &BTreeMap<String, String>) -> String {
    let listing: String = assets.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect();
    hex_digest(listing.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_blob_of_many_paths_is_copied_once_and_nothing_is_left_of_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let folders = AssetFolders::open(dir.path().join("assets")).unwrap();
        let blob = dir.path().join("blob");
        std::fs::write(&blob, "hello").unwrap();
        let digest = hex_digest(b"hello");
        let paths = ["a", "deep/b", "deep/er/c"];
        let assets: BTreeMap<String, String> = paths.iter().map(|path| (path.to_string(), digest.clone())).collect();
        let folder = folders.folder(&assets, |_| blob.clone()).unwrap();
        for path in paths {
            let file = folder.join(path);
            assert_eq!(std::fs::read(&file).unwrap(), b"hello");
            let about = file.metadata().unwrap();
            assert_eq!((about.nlink(), about.mode() & 0o777), (3, 0o400));
        }
        assert_eq!(blob.metadata().unwrap().nlink(), 1, "what guests see is never the blob");

        let wrong = BTreeMap::from([("a".to_owned(), digest), ("b".to_owned(), hex_digest(b"other"))]);
        let error = folders.folder(&wrong, |_| blob.clone()).unwrap_err();
        assert!(error.to_string().contains("other content"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path().join("assets")).unwrap().count(), 1);
    }
}
