//! Where everything that is deployed is kept: blobs by their digest, the log of revisions, and what was prepared again
//! for other engines. One `object_store` holds them; here it is a folder, in which files and folders are synced before
//! a write counts as done.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use sha2::{Digest as _, Sha256};

use super::folder;
use super::log::{PreparedAgain, Revision};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the folder.
    #[error("{} is used by another windrose process", .0.display())]
    Locked(PathBuf),
    /// The bytes are not those that the digest names.
    #[error("the content is sha256 {actual}, not {expected}")]
    Digest { expected: String, actual: String },
    /// More bytes than an upload may have.
    #[error("the content is larger than the {limit} bytes that one file may have")]
    TooLarge { limit: u64 },
    /// The sender stopped or failed.
    #[error("the upload broke off: {0}")]
    Upload(String),
    /// The blob is not here.
    #[error("there is no blob with sha256 {0}")]
    NoBlob(String),
    /// Somebody else wrote this revision first.
    #[error("revision {0} was written by another process")]
    Conflict(u64),
    /// What is stored cannot be true.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The folder or the object store itself; says nothing about where that is, since deployers read it.
    #[error("store: {0}")]
    Io(String),
}

impl From<object_store::Error> for StoreError {
    /// The log gets the paths.
    fn from(error: object_store::Error) -> StoreError {
        tracing::warn!(%error, "the object store failed");
        StoreError::Io(reason(&error))
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> StoreError {
        StoreError::Io(error.to_string())
    }
}

/// Parts in which an upload goes to the object store, bytes.
const PART: usize = 5 << 20;

/// The most sets of engines that one record is kept as prepared for beside its own; the oldest leave first.
const ENGINE_SETS: usize = 8;

/// The store. One process at a time.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The folder itself, for what native code must open by path.
    local: LocalFileSystem,
    /// When a blob was last asked for or uploaded: what a deployment is about to name is not swept.
    touched: Mutex<HashMap<String, Instant>>,
    /// The first revision that the log still has.
    oldest: AtomicU64,
    /// Released when the process ends, however it ends.
    _lock: File,
}

impl Store {
    /// Opens a folder, makes it where it is not there, and removes what an unfinished write left behind.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        folder::make_private(dir)?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_path_buf())),
            Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let root = dir.join("store");
        folder::make_private(&root)?;
        folder::remove_unfinished(&root)?;
        let local = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok(Store {
            objects: Arc::new(local.clone()),
            local,
            touched: Mutex::default(),
            oldest: AtomicU64::new(1),
            _lock: lock,
        })
    }

    /// Bytes of a blob, or `None` where it is not here. It will not be swept for a while.
    ///
    /// # Errors
    /// When the store cannot say.
    pub async fn blob_size(&self, digest: &str) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&blob_key(digest)).await {
            Ok(meta) => {
                self.touch(digest);
                Ok(Some(meta.size))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a stream under its digest; nothing is visible before all of it was verified. Returns whether it was new.
    ///
    /// # Errors
    /// [`StoreError::Digest`], [`StoreError::TooLarge`] and [`StoreError::Upload`] are the sender's doing.
    pub async fn put_blob<E: std::fmt::Display>(
        &self,
        digest: &str,
        body: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<bool, StoreError> {
        if self.blob_size(digest).await?.is_some() {
            return Ok(false);
        }
        self.write_blob(digest, body, limit).await?;
        Ok(true)
    }

    /// As [`Store::put_blob`], for somebody who may name only what it has uploaded itself: what is there because of another
    /// is read from the sender all the same, and counts as its own only when it is that.
    ///
    /// # Errors
    /// As [`Store::put_blob`].
    pub async fn put_blob_of<E: std::fmt::Display>(
        &self,
        uploader: &str,
        digest: &str,
        body: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<bool, StoreError> {
        if self.has_blob(digest, Some(uploader)).await? {
            return Ok(false);
        }
        match self.blob_size(digest).await? {
            Some(_) => read_verified(digest, body, limit, None).await?,
            None => self.write_blob(digest, body, limit).await?,
        }
        self.objects.put(&claim_key(uploader, digest), PutPayload::new()).await?;
        Ok(true)
    }

    /// Whether a blob is here, and was uploaded by this one where one is named. It will not be swept for a while.
    ///
    /// # Errors
    /// When the store cannot say.
    pub async fn has_blob(&self, digest: &str, uploader: Option<&str>) -> Result<bool, StoreError> {
        if let Some(uploader) = uploader {
            match self.objects.head(&claim_key(uploader, digest)).await {
                Ok(_) => {}
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.blob_size(digest).await?.is_some())
    }

    async fn write_blob<E: std::fmt::Display>(
        &self,
        digest: &str,
        body: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<(), StoreError> {
        let upload = self.objects.put_multipart(&blob_key(digest)).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        match read_verified(digest, body, limit, Some(&mut writer)).await {
            Ok(()) => writer.finish().await?,
            Err(error) => {
                writer.abort().await?;
                return Err(error);
            }
        };
        self.touch(digest);
        Ok(())
    }

    /// Stores bytes that are at hand; returns their digest.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn put_bytes(&self, bytes: Bytes) -> Result<String, StoreError> {
        let digest = hex_digest(&bytes);
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        self.put_blob(&digest, body, u64::MAX).await?;
        Ok(digest)
    }

    /// A blob's bytes, verified.
    ///
    /// # Errors
    /// [`StoreError::NoBlob`]; [`StoreError::Damaged`] when its content is not what its name says: it is removed then, so
    /// that it can be uploaded again.
    pub async fn read_blob(&self, digest: &str) -> Result<Bytes, StoreError> {
        let bytes = self.get_blob(digest).await?.bytes().await?;
        let for_digest = bytes.clone();
        let actual = tokio::task::spawn_blocking(move || hex_digest(&for_digest)).await;
        self.judge(digest, actual.map_err(|e| StoreError::Io(e.to_string()))?).await?;
        Ok(bytes)
    }

    /// Reads a blob through, and holds none of it: for what another process is about to open by path.
    ///
    /// # Errors
    /// As [`Store::read_blob`].
    pub async fn verify_blob(&self, digest: &str) -> Result<(), StoreError> {
        let mut content = self.get_blob(digest).await?.into_stream();
        let mut hash = Sha256::new();
        while let Some(chunk) = content.next().await {
            hash.update(&chunk?);
        }
        self.judge(digest, hex(&hash.finalize())).await
    }

    async fn get_blob(&self, digest: &str) -> Result<object_store::GetResult, StoreError> {
        match self.objects.get(&blob_key(digest)).await {
            Err(object_store::Error::NotFound { .. }) => Err(StoreError::NoBlob(digest.to_string())),
            got => Ok(got?),
        }
    }

    /// A blob that is not what its name says is removed.
    async fn judge(&self, digest: &str, actual: String) -> Result<(), StoreError> {
        if actual == digest {
            return Ok(());
        }
        self.objects.delete(&blob_key(digest)).await?;
        Err(StoreError::Damaged(format!("blob {digest} has other content, sha256 {actual}")))
    }

    /// The path of a blob's file, for a child process.
    ///
    /// # Errors
    /// When the digest makes no path.
    pub fn blob_path(&self, digest: &str) -> Result<PathBuf, StoreError> {
        Ok(self.local.path_to_filesystem(&blob_key(digest))?)
    }

    /// Writes the next revision. It counts once this returns, power loss included.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when that number is taken.
    pub async fn append(&self, revision: &Revision) -> Result<(), StoreError> {
        let key = log_key(revision.number);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(&key, PutPayload::from(revision.to_json()), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => Err(StoreError::Conflict(revision.number)),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the oldest revisions until no more than `keep` are left, of which `newest` is the last. What is left is a
    /// chain as before, whose first link names the digest of one that is gone; each revision is a whole state, so that
    /// nothing needs the others.
    ///
    /// # Errors
    /// When one cannot be removed: it is tried again the next time.
    pub async fn prune(&self, newest: u64, keep: u64) -> Result<(), StoreError> {
        loop {
            let oldest = self.oldest.load(Ordering::Relaxed);
            if newest.saturating_sub(oldest) < keep {
                return Ok(());
            }
            match self.objects.delete(&log_key(oldest)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.oldest.store(oldest + 1, Ordering::Relaxed);
        }
    }

    /// The last revision, with its place in the chain verified; `None` when nothing was ever deployed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it, or the one before it, is not what the chain says.
    pub async fn last_revision(&self) -> Result<Option<Revision>, StoreError> {
        let listed: Vec<_> = self.objects.list(Some(&Key::from("log"))).try_collect().await?;
        let numbers = || listed.iter().filter_map(|meta| log_number(&meta.location));
        let (Some(first), Some(last)) = (numbers().min(), numbers().max()) else { return Ok(None) };
        self.oldest.store(first, Ordering::Relaxed);
        let revision = self.revision(last).await?;
        let before = match last {
            1 => None,
            // All before it were pruned.
            _ if last == first => revision.previous.clone(),
            _ => Some(self.revision(last - 1).await?.digest()),
        };
        if revision.previous != before {
            return Err(StoreError::Damaged(format!("revision {last} does not follow revision {}", last - 1)));
        }
        Ok(Some(revision))
    }

    /// One revision of the log.
    ///
    /// # Errors
    /// When it is not there or is not readable.
    pub async fn revision(&self, number: u64) -> Result<Revision, StoreError> {
        let damaged = |why: String| StoreError::Damaged(format!("revision {number}: {why}"));
        let object = self.objects.get(&log_key(number)).await.map_err(|error| damaged(error.to_string()))?;
        let bytes = object.bytes().await?;
        let revision = Revision::from_json(&bytes).map_err(|error| damaged(error.to_string()))?;
        if revision.number != number {
            return Err(damaged(format!("says that it is number {}", revision.number)));
        }
        Ok(revision)
    }

    /// Keeps how a version was prepared again, in place of what was kept for the same record and the same engines. It
    /// counts once this returns, power loss included.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn keep_prepared(&self, again: &PreparedAgain) -> Result<(), StoreError> {
        let key = prepared_key(&again.record, &again.preparation.engines);
        self.objects.put(&key, PutPayload::from(sealed(again))).await?;
        Ok(())
    }

    /// How the version of a record was prepared again for just these engines, verified; `None` where it was not.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not what was kept for them: it is removed then, as a damaged blob is.
    pub async fn prepared_again(
        &self,
        record: &str,
        engines: &BTreeMap<String, String>,
    ) -> Result<Option<PreparedAgain>, StoreError> {
        let key = prepared_key(record, engines);
        let bytes = match self.objects.get(&key).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got?.bytes().await?,
        };
        if let Some(again) = unsealed(&bytes)
            && again.record == record
            && again.preparation.engines == *engines
        {
            return Ok(Some(again));
        }
        self.objects.delete(&key).await?;
        Err(StoreError::Damaged(format!("how record {record} was prepared again has other content")))
    }

    /// Removes blobs that are not in `keep` and have not been uploaded or asked for within `age`. Returns how many.
    ///
    /// # Errors
    /// When the store cannot be listed; a blob that cannot be removed stays for the next time.
    pub async fn sweep(&self, keep: &HashSet<String>, age: Duration) -> Result<usize, StoreError> {
        let now = SystemTime::now();
        self.touched().retain(|_, when| when.elapsed() < age);
        let mut removed = 0;
        let mut blobs = self.objects.list(Some(&Key::from("blobs")));
        while let Some(meta) = blobs.next().await {
            let meta = meta?;
            let Some(digest) = meta.location.filename() else { continue };
            let written: SystemTime = meta.last_modified.into();
            let young = now.duration_since(written).is_ok_and(|since| since < age);
            if young || keep.contains(digest) || self.touched().contains_key(digest) {
                continue;
            }
            match self.objects.delete(&meta.location).await {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%digest, %error, "a blob that no model names was not removed"),
            }
        }
        self.sweep_claims().await?;
        self.sweep_prepared().await?;
        Ok(removed)
    }

    /// Removes claims to blobs that are gone: who uploads one again claims it again.
    async fn sweep_claims(&self) -> Result<(), StoreError> {
        let mut claims = self.objects.list(Some(&Key::from("claims")));
        while let Some(claim) = claims.next().await {
            let claim = claim?.location;
            let Some(digest) = claim.filename() else { continue };
            if self.is_gone(digest).await? {
                self.objects.delete(&claim).await?;
            }
        }
        Ok(())
    }

    /// Removes what was prepared again of records that are gone, and of each other one what is not among the newest.
    async fn sweep_prepared(&self) -> Result<(), StoreError> {
        let mut all: Vec<_> = self.objects.list(Some(&Key::from(PREPARED))).try_collect().await?;
        all.sort_by_key(|meta| Reverse(meta.last_modified));
        let mut newer: HashMap<String, usize> = HashMap::new();
        for meta in all {
            let Some((record, _)) = meta.location.filename().and_then(|name| name.split_once('-')) else { continue };
            let sets = newer.entry(record.to_string()).or_default();
            *sets += 1;
            if *sets > ENGINE_SETS || self.is_gone(record).await? {
                self.objects.delete(&meta.location).await?;
            }
        }
        Ok(())
    }

    /// Whether a blob is not here; asking does not spare it.
    async fn is_gone(&self, digest: &str) -> Result<bool, StoreError> {
        match self.objects.head(&blob_key(digest)).await {
            Ok(_) => Ok(false),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn touch(&self, digest: &str) {
        self.touched().insert(digest.to_string(), Instant::now());
    }

    /// The lock is held for a look-up only, and never across an await.
    fn touched(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what is sent, writes it where a writer is given, and sees at its end that it is what the digest says.
async fn read_verified<E: std::fmt::Display>(
    digest: &str,
    body: impl Stream<Item = Result<Bytes, E>>,
    limit: u64,
    mut writer: Option<&mut WriteMultipart>,
) -> Result<(), StoreError> {
    let mut body = std::pin::pin!(body);
    let mut hash = Sha256::new();
    let mut length: u64 = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| StoreError::Upload(error.to_string()))?;
        length = length.saturating_add(chunk.len() as u64);
        if length > limit {
            return Err(StoreError::TooLarge { limit });
        }
        hash.update(&chunk);
        if let Some(writer) = &mut writer {
            writer.wait_for_capacity(2).await?;
            writer.put(chunk);
        }
    }
    let actual = hex(&hash.finalize());
    if actual == digest { Ok(()) } else { Err(StoreError::Digest { expected: digest.to_string(), actual }) }
}

/// What the operating system said, as far as it is the reason of an error.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let system = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
    let told = system.map(|code| std::io::Error::from_raw_os_error(code).to_string());
    told.unwrap_or_else(|| "the object store failed".into())
}

fn blob_key(digest: &str) -> Key {
    Key::from_iter(["blobs", "sha256", digest])
}

/// Says that somebody has uploaded a blob.
fn claim_key(uploader: &str, digest: &str) -> Key {
    Key::from_iter(["claims", uploader, digest])
}

/// The folder of what was prepared again.
const PREPARED: &str = "prepared";

/// One name for each record and each set of engines, by graph: gateways with other engines keep theirs beside it.
fn prepared_key(record: &str, engines: &BTreeMap<String, String>) -> Key {
    let engines = hex_digest(&serde_json::to_vec(engines).unwrap_or_default());
    Key::from_iter([PREPARED, &format!("{record}-{engines}")])
}

/// JSON behind a line with its sha256: unlike a blob's, its name does not say what is in it.
fn sealed(again: &PreparedAgain) -> Vec<u8> {
    let json = serde_json::to_vec(again).unwrap_or_default();
    [hex_digest(&json).as_bytes(), b"\n", &json].concat()
}

/// `None` where it is not what was sealed.
fn unsealed(bytes: &[u8]) -> Option<PreparedAgain> {
    let (digest, json) = bytes.split_at_checked(64)?;
    let json = json.strip_prefix(b"\n").filter(|json| digest == hex_digest(json).as_bytes())?;
    serde_json::from_slice(json).ok()
}

/// Twenty digits, so that the names sort as the numbers do.
fn log_key(number: u64) -> Key {
    Key::from_iter(["log", &format!("{number:020}.json")])
}

fn log_number(key: &Key) -> Option<u64> {
    key.filename()?.strip_suffix(".json")?.parse().ok()
}

/// sha256 in lower-case hexadecimal digits.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
