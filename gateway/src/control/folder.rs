//! Files and folders that outlive a power loss and that only their owner reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::store::hex_digest;

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
        let mut folders = BTreeSet::from([unfinished.clone()]);
        for (path, digest) in assets {
            let bytes = std::fs::read(blob(digest))?;
            if hex_digest(&bytes) != *digest {
                return Err(io::Error::other(format!("blob {digest} has other content")));
            }
            let target = unfinished.join(path);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let mut file = File::options().write(true).create_new(true).mode(0o400).open(&target)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            folders.extend(
                target.ancestors().skip(1).take_while(|above| above.starts_with(&unfinished)).map(Path::to_owned),
            );
        }
        // A folder of this name is taken as it is after a restart, so all of it must be on the disk before.
        folders.iter().try_for_each(|folder| sync(Some(folder)))?;
        match std::fs::rename(&unfinished, &finished) {
            Ok(()) => sync(Some(&self.root)).map(|()| finished),
            // Somebody else made the very same folder meanwhile.
            Err(_) if finished.is_dir() => std::fs::remove_dir_all(&unfinished).map(|()| finished),
            Err(error) => Err(error),
        }
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

fn folder_name(assets: &BTreeMap<String, String>) -> String {
    let listing: String = assets.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect();
    hex_digest(listing.as_bytes())
}
