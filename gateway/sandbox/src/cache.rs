//! Compiled modules on disk. An entry is loaded only when this host's key authenticates the very bytes that are loaded.
//!
//! An entry is `magic | HMAC-SHA256 | artifact`, and the authentication covers the entry's name as well, which is a
//! digest of the module, of everything that the compiler depends on and of this program's version: an entry that was
//! edited, cut, or put in another's place is worth nothing.

use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use crate::{ModuleError, initialise};

const MAGIC: &[u8; 8] = b"wrcache1";
const MAC: usize = 32;
const KEY: usize = 32;
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

/// A whole entry that is authentic; what it lends is the artifact behind its head.
pub(crate) struct Artifact(Vec<u8>);

impl Deref for Artifact {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[MAGIC.len() + MAC..]
    }
}

/// The folder of compiled modules.
pub(crate) struct Cache {
    folder: PathBuf,
    keyed: Hmac<Sha256>,
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
        Ok(Cache { folder, keyed })
    }

    /// The artifact of a module for `engine`, if there is an authentic one.
    pub(crate) fn get(&self, engine: &Engine, digest: &str, form: Form) -> Option<Artifact> {
        let name = name(engine, digest, form);
        let entry = match read(&self.folder.join(&name)) {
            Ok(entry) => entry,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(digest, %error, "a compiled module cannot be read and is compiled again");
                }
                return None;
            }
        };
        let authentic = entry.len() > MAGIC.len() + MAC && entry.starts_with(MAGIC) && {
            let (mac, artifact) = entry[MAGIC.len()..].split_at(MAC);
            self.mac(&name, artifact).verify_slice(mac).is_ok()
        };
        if !authentic {
            tracing::warn!(
                digest,
                entry = name,
                "a compiled module was not written by this host and is compiled again"
            );
            return None;
        }
        Some(Artifact(entry))
    }

    /// Keeps an artifact: written aside, synced, and renamed over what was there.
    pub(crate) fn put(&self, engine: &Engine, digest: &str, form: Form, artifact: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = name(engine, digest, form);
        let aside = format!(".{name}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let aside = self.folder.join(aside);
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(MAGIC)?;
            file.write_all(&self.mac(&name, artifact).finalize().into_bytes())?;
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

    fn mac(&self, name: &str, artifact: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(name.as_bytes());
        mac.update(artifact);
        mac
    }
}

/// The name of a module's entry. Names are all of one length, so that name and artifact cannot run into each other.
fn name(engine: &Engine, digest: &str, form: Form) -> String {
    let mut hash = Stable(Sha256::new());
    digest.hash(&mut hash);
    match form {
        Form::Plain => {}
        Form::Initialised => initialise::METHOD.hash(&mut hash),
    }
    env!("CARGO_PKG_VERSION").hash(&mut hash);
    engine.precompile_compatibility_hash().hash(&mut hash);
    hex(&hash.0.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > LARGEST {
        return Err(io::Error::other("larger than any module"));
    }
    let mut entry = Vec::with_capacity(length as usize);
    file.take(LARGEST).read_to_end(&mut entry)?;
    Ok(entry)
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
