//! Compiled modules on disk. An entry is loaded only when this host's key authenticates the very bytes that are loaded.
//!
//! An entry is `magic | HMAC-SHA256 | artifact`, and the authentication covers the entry's name as well, which is a
//! digest of the module, of everything that the compiler depends on and of this program's version: an entry that was
//! edited, cut, or put in another's place is worth nothing. A large artifact is authenticated in a copy that only this
//! process can open ([`private`]), so that it can be loaded again as it is.

mod private;
mod sweep;

use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use self::private::Copies;
pub(crate) use self::private::PrivateCopy;
pub use self::sweep::Ages;
use crate::engine::Tasks;
use crate::{ModuleError, initialise};

const MAGIC: &[u8; 8] = b"wrcache1";
const MAC: usize = 32;
const KEY: usize = 32;
/// What stands before the artifact.
const HEAD: usize = MAGIC.len() + MAC;
/// No artifact is larger; a file that is was not written here.
const LARGEST: u64 = 2 << 30;

/// What was compiled of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The module as it was deployed.
    Plain,
    /// What its initialiser made of it.
    Initialised,
}

/// A compiled module that is authentic.
pub(crate) enum Artifact {
    /// A whole entry.
    Entry(Vec<u8>),
    /// Without the head of its entry.
    Copied(PrivateCopy),
}

/// The folder of compiled modules.
pub(crate) struct Cache {
    folder: PathBuf,
    keyed: Hmac<Sha256>,
    copies: Copies,
}

impl Artifact {
    /// What was serialised, of an entry that was read.
    pub(crate) fn of(entry: &[u8]) -> &[u8] {
        entry.get(HEAD..).unwrap_or_default()
    }
}

impl Cache {
    /// Opens the folder, and the key, which is made where it is missing.
    pub(crate) fn open(folder: &Path, key: &Path) -> Result<Cache, ModuleError> {
        let host = |what: &str, e: io::Error| ModuleError::Host(format!("{what}: {e}"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| host("the folder of compiled modules", e))?;
        let parent = key.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| host("the cache key's folder", e))?;
        let real = |path: &Path| fs::canonicalize(path).map_err(|e| host("the cache", e));
        let folder = real(folder)?;
        if real(parent)?.starts_with(&folder) {
            return Err(ModuleError::Host("the cache key must not lie in the cache folder".into()));
        }
        let key = read_key(key).map_err(|e| host("the cache key", e))?;
        let keyed = Hmac::new_from_slice(&key).map_err(|e| ModuleError::Host(e.to_string()))?;
        Ok(Cache { folder, keyed, copies: Copies::new() })
    }

    /// The artifact of a module, if there is an authentic one. `engine` is the one that tells of no tasks: the other differs in
    /// nothing else, and need not be there for this.
    pub(crate) fn get(&self, engine: &Engine, tasks: Tasks, digest: &str, form: Form) -> Option<Artifact> {
        let name = name(engine, tasks, digest, form);
        match self.read(&name) {
            Ok(Some(artifact)) => return Some(artifact),
            Ok(None) => tracing::warn!(
                digest,
                entry = name,
                "a compiled module was not written by this host and is compiled again"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(digest, %error, "a compiled module cannot be read and is compiled again");
            }
        }
        None
    }

    /// `None` for an entry that is not authentic.
    fn read(&self, name: &str) -> io::Result<Option<Artifact>> {
        let mut file = File::open(self.folder.join(name))?;
        let length = file.metadata()?.len();
        if length > LARGEST {
            return Err(io::Error::other("larger than any module"));
        }
        if length <= HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        file.read_exact(&mut head)?;
        let mut mac = self.mac(name);
        if let Some(copy) = self.copies.copy(&self.folder, &mut file, length - HEAD as u64) {
            copy.for_each(|bytes| mac.update(bytes))?;
            return Ok(is_authentic(mac, &head).then_some(Artifact::Copied(copy)));
        }
        file.rewind()?;
        let mut entry = Vec::with_capacity(length as usize);
        file.take(LARGEST).read_to_end(&mut entry)?;
        mac.update(Artifact::of(&entry));
        Ok(is_authentic(mac, &entry).then_some(Artifact::Entry(entry)))
    }

    /// Makes no more private copies, since they cannot be used.
    pub(crate) fn without_copies(&self, error: &dyn std::fmt::Display) {
        self.copies.give_up(error);
    }

    /// Keeps an artifact: written aside, synced, and renamed over what was there. `engine` is as for [`Cache::get`].
    pub(crate) fn put(
        &self,
        engine: &Engine,
        tasks: Tasks,
        digest: &str,
        form: Form,
        artifact: &[u8],
    ) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = name(engine, tasks, digest, form);
        let aside = format!(".{name}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let aside = self.folder.join(aside);
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(MAGIC)?;
            file.write_all(&self.mac(&name).chain_update(artifact).finalize().into_bytes())?;
            file.write_all(artifact)?;
            file.sync_all()?;
            fs::rename(&aside, self.folder.join(&name))?;
            File::open(&self.folder)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }

    /// Of an entry's name; the artifact follows.
    fn mac(&self, name: &str) -> Hmac<Sha256> {
        self.keyed.clone().chain_update(name.as_bytes())
    }
}

/// Whether an entry begins as one whose name and artifact have gone into `mac`.
fn is_authentic(mac: Hmac<Sha256>, entry: &[u8]) -> bool {
    let head = entry.get(..HEAD).and_then(|head| head.strip_prefix(MAGIC));
    head.is_some_and(|head| mac.verify_slice(head).is_ok())
}

/// The name of a module's entry. Names are all of one length, so that name and artifact cannot run into each other.
fn name(engine: &Engine, tasks: Tasks, digest: &str, form: Form) -> String {
    let mut hash = Stable(Sha256::new());
    digest.hash(&mut hash);
    match form {
        Form::Plain => {}
        Form::Initialised => initialise::METHOD.hash(&mut hash),
    }
    tasks.hash(&mut hash);
    env!("CARGO_PKG_VERSION").hash(&mut hash);
    engine.precompile_compatibility_hash().hash(&mut hash);
    hex(&hash.0.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the key, or makes it: written aside and linked into place, so that nobody sees half of one.
fn read_key(path: &Path) -> io::Result<[u8; KEY]> {
    if !path.try_exists()? {
        let mut key = [0; KEY];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        let made = file.write_all(&key).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&aside, path));
        fs::remove_file(&aside)?;
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is open to others: it must be 0600", path.display())));
    }
    if about.len() != KEY as u64 {
        return Err(io::Error::other(format!("{} does not hold {KEY} bytes", path.display())));
    }
    let mut key = [0; KEY];
    file.read_exact(&mut key)?;
    Ok(key)
}

/// A hasher whose result is the same in every process of the same build.
struct Stable(Sha256);

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
    }
}
