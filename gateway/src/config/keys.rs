//! Files that say whose a key is. They hold the sha256 of each key: who reads the file cannot call with it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::ConfigError;
use super::explain::read_toml;
use super::fleet::parse_digest;
use crate::fleet::tls::modified;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who has keys.
pub trait Holder: Sized + Send + Sync + 'static {
    /// What one is called in messages.
    const WHAT: &'static str;
    /// The setting that names the file.
    const SETTING: &'static str;

    /// The file as a person writes it.
    type Written: DeserializeOwned;

    /// The holders that a file names, each with the sha256 of its keys, hex.
    ///
    /// # Errors
    /// Says what cannot be.
    fn check(written: Self::Written) -> Result<Vec<(Self, Vec<String>)>, String>;

    /// Its name.
    fn name(&self) -> &Arc<str>;
}

/// Holders by their keys.
#[derive(Clone, Debug)]
pub struct Keys<T> {
    by_key: HashMap<[u8; 32], Arc<T>>,
}

impl<T: Holder> Keys<T> {
    /// From the text of a file of this name.
    ///
    /// # Errors
    /// Names the file, and says what cannot be.
    pub fn read(file: &str, text: &str) -> Result<Keys<T>, String> {
        let written = read_toml(file, text)?;
        T::check(written).and_then(Keys::of).map_err(|why| format!("{file}: {why}"))
    }

    fn of(holders: Vec<(T, Vec<String>)>) -> Result<Keys<T>, String> {
        let (mut by_key, mut names) = (HashMap::new(), HashSet::new());
        for (holder, keys) in holders {
            let (name, holder) = (holder.name().clone(), Arc::new(holder));
            if !names.insert(name.clone()) {
                return Err(format!("{} `{name}` is there twice", T::WHAT));
            }
            let wrong = |why: &str| format!("{} `{name}`: keys: {why}", T::WHAT);
            for key in keys {
                let no_digest = || format!("not the sha256 of a key, 64 hex digits; `windrose {}` makes one", T::WHAT);
                let digest = parse_digest(&key).ok_or_else(|| wrong(&no_digest()))?;
                if by_key.insert(digest, holder.clone()).is_some() {
                    return Err(wrong("one of them is there already"));
                }
            }
        }
        Ok(Keys { by_key })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Names the setting.
    pub fn load(path: &Path) -> Result<Keys<T>, ConfigError> {
        let name = path.display().to_string();
        let failed = |why: String| ConfigError(format!("{}: {why}", T::SETTING));
        let text = std::fs::read_to_string(path).map_err(|error| failed(format!("{name}: {error}")))?;
        Keys::read(&name, &text).map_err(failed)
    }

    /// Whose key this is. The time that it takes tells nothing of the keys: they are looked up by their digests.
    pub fn of_key(&self, key: &str) -> Option<&Arc<T>> {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.by_key.get(&digest)
    }

    /// The one of this name, if it has a key.
    pub fn named(&self, name: &str) -> Option<&Arc<T>> {
        self.by_key.values().find(|holder| &**holder.name() == name)
    }
}

/// A file of keys that is read again when it changes. One that is wrong then changes nothing.
pub struct KeyFile<T> {
    file: PathBuf,
    keys: ArcSwap<Keys<T>>,
}

impl<T: Holder> KeyFile<T> {
    /// Reads the file, and follows it for as long as somebody has what this returns.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn open(file: &Path) -> Result<Arc<KeyFile<T>>, ConfigError> {
        let seen = modified(file);
        let keys = ArcSwap::from_pointee(Keys::load(file)?);
        let opened = Arc::new(KeyFile { file: file.to_path_buf(), keys });
        tokio::spawn(follow(Arc::downgrade(&opened), seen));
        Ok(opened)
    }

    /// Whose key this is.
    pub fn of_key(&self, key: &str) -> Option<Arc<T>> {
        self.keys.load().of_key(key).cloned()
    }

    /// The one of this name, if it has a key.
    pub fn named(&self, name: &str) -> Option<Arc<T>> {
        self.keys.load().named(name).cloned()
    }
}

async fn follow<T: Holder>(opened: Weak<KeyFile<T>>, mut seen: Option<(SystemTime, u64)>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(opened) = opened.upgrade() else { return };
        let now = modified(&opened.file);
        if now == seen {
            continue;
        }
        seen = now;
        match Keys::load(&opened.file) {
            Ok(keys) => {
                opened.keys.store(Arc::new(keys));
                tracing::info!("the file of {}s has changed", T::WHAT);
            }
            Err(error) => tracing::error!(%error, "the file of {}s is wrong: the one before stays in force", T::WHAT),
        }
    }
}

/// Whether a holder of keys can have this name.
///
/// # Errors
/// Says how a name looks.
pub fn check_name(what: &str, name: &str, reserved: &str) -> Result<(), String> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(known) && name != reserved {
        return Ok(());
    }
    Err(format!("`{name}` is no name of a {what}: 1 to 64 of a-z, 0-9, -, _ and . and not `{reserved}`"))
}
