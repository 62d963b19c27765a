//! What is deployed: the one place that changes it. A change is prepared in a child, loaded here, written as a new
//! revision and only then published, by a single pointer store.

mod start;
mod tidy;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, RwLock, Semaphore};
use windrose_engine::{Batching, Calibration};

use self::tidy::InUse;
use super::deployer::{Trust, Who};
use super::known::Known;
use super::load::{LoadError, Loaded, Loader};
use super::log::{Actor, Change, Preparation, Record, Revision, now};
use super::manifest::{GraphEntry, Invalid, Jurisdictions, Manifest};
use super::prepare::{self, Event, PrepareError, Prepared, Status};
use super::store::{Store, StoreError};
use crate::config::deployers::Deployer;
use crate::config::keys::KeyFile;
use crate::snapshot::{Current, NotReady, Served, Snapshot, Unready};

/// Why a change was not made. Messages are for who makes it, and name no file of this machine.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The manifest.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Files that were not uploaded: the field that names each, and its digest.
    #[error("not uploaded: {}", .0.iter().map(|(field, digest)| format!("{field} (sha256 {digest})")).collect::<Vec<_>>().join(", "))]
    Missing(Vec<(String, String)>),
    /// The preparation refused it.
    #[error("{0}")]
    Refused(String),
    /// It is not the caller's to do.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such model or version.
    #[error("{0}")]
    NotFound(String),
    /// Too many deployments wait.
    #[error("too many deployments are waiting; try again later")]
    Busy,
    /// The store or this machine.
    #[error("{0}")]
    Host(String),
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> ChangeError {
        ChangeError::Host(error.to_string())
    }
}

impl From<LoadError> for ChangeError {
    fn from(error: LoadError) -> ChangeError {
        match error {
            LoadError::Store(error) => error.into(),
            LoadError::Model(message) => ChangeError::Refused(message),
            LoadError::Host(message) => ChangeError::Host(message),
        }
    }
}

impl From<PrepareError> for ChangeError {
    fn from(error: PrepareError) -> ChangeError {
        match error {
            PrepareError::Refused(message) => ChangeError::Refused(message),
            PrepareError::Host(_) => ChangeError::Host(error.to_string()),
        }
    }
}

/// Where progress goes.
pub type Progress = tokio::sync::mpsc::Sender<Event>;

/// How one version stands.
#[derive(Clone)]
pub enum Standing {
    /// It is being loaded after a start.
    Loading,
    /// It answers.
    Ready(Arc<Loaded>),
    /// It could not be loaded after a start, and why.
    Failed(String),
}

/// One deployed version.
#[derive(Clone)]
pub struct Entry {
    /// The model.
    pub name: String,
    /// The version.
    pub version: String,
    /// sha256 of its record.
    pub digest: String,
    /// What was deployed, as it was prepared for the engines that run it; `None` where the record could not be read.
    pub record: Option<Arc<Record>>,
    /// How it stands.
    pub standing: Standing,
}

#[derive(Default)]
struct State {
    revision: u64,
    previous: Option<String>,
    /// By model and version.
    entries: BTreeMap<(String, String), Entry>,
}

/// What a deployment did.
#[derive(Clone, Debug)]
pub struct Deployed {
    /// The revision that it is part of.
    pub revision: u64,
    /// Whether anything changed; the same content deployed again changes nothing.
    pub changed: bool,
    /// What the preparation said.
    pub preparation: Preparation,
}

/// How many may be prepared and wait, and how long what no model needs is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Preparations at the same time.
    pub preparations: usize,
    /// Deployments that wait.
    pub queue: usize,
    /// The age from which an unnamed blob is removed.
    pub keep: Duration,
    /// Revisions that are kept, at least one.
    pub revisions: u64,
}

/// The registry.
pub struct Registry {
    /// The store behind it.
    pub store: Store,
    /// What loads versions.
    pub loader: Loader,
    /// Who may deploy beside the operator, where somebody may.
    pub deployers: Option<Arc<KeyFile<Deployer>>>,
    current: Current,
    state: AsyncMutex<State>,
    /// One change of a model at a time.
    names: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    preparing: Semaphore,
    admitted: Semaphore,
    /// What was prepared before.
    known: Known,
    /// When unnamed blobs were last looked for.
    swept: Mutex<Option<Instant>>,
    /// Held for reading for as long as it takes to name something, for writing while what is not named is removed.
    sweeping: RwLock<()>,
    in_use: InUse,
    bounds: Bounds,
}

impl Registry {
    /// A registry of what the store holds. Nothing is loaded yet: see [`Registry::load_all`].
    ///
    /// # Errors
    /// When the log cannot be read or is no chain.
    pub async fn open(
        store: Store,
        loader: Loader,
        deployers: Option<Arc<KeyFile<Deployer>>>,
        current: Current,
        bounds: Bounds,
    ) -> Result<Arc<Registry>, StoreError> {
        let revision = store.last_revision().await?;
        let registry = Registry {
            store,
            loader,
            deployers,
            current,
            names: Mutex::default(),
            preparing: Semaphore::new(bounds.preparations),
            admitted: Semaphore::new(bounds.preparations + bounds.queue),
            known: Known::default(),
            swept: Mutex::default(),
            sweeping: RwLock::new(()),
            in_use: InUse::default(),
            bounds,
            state: AsyncMutex::default(),
        };
        if let Some(revision) = revision {
            let state = registry.read(&revision).await;
            *registry.state.lock().await = state;
        }
        registry.publish(&*registry.state.lock().await);
        Ok(Arc::new(registry))
    }

    /// Loads what was prepared. Its files stay for as long as a call may run on it.
    async fn load(&self, manifest: &Manifest, preparation: &Preparation, trust: Trust) -> Result<Loaded, ChangeError> {
        let loaded = self.loader.load(manifest, &preparation.batching, trust, &self.store).await?;
        self.in_use.add(&loaded.served.manifest);
        Ok(loaded)
    }

    /// How far a version is trusted, as the file of deployers says now.
    fn trust(&self, record: &Record) -> Trust {
        let named = |name: &String| self.deployers.as_ref()?.named(name);
        record.deployer.as_ref().map_or(Trust::FULL, |name| named(name).map_or(Trust::LEAST, |found| Trust::of(&found)))
    }

    /// Everything that is deployed, by model and version.
    pub async fn entries(&self) -> Vec<Entry> {
        self.state.lock().await.entries.values().cloned().collect()
    }

    /// One version.
    pub async fn entry(&self, name: &str, version: &str) -> Option<Entry> {
        self.state.lock().await.entries.get(&(name.to_string(), version.to_string())).cloned()
    }

    /// The number of the last revision.
    pub async fn revision(&self) -> u64 {
        self.state.lock().await.revision
    }

    /// Deploys one version. Until it is published, whatever was there stays as it is.
    ///
    /// # Errors
    /// Says what failed; nothing has changed then.
    pub async fn deploy(
        &self,
        manifest: Manifest,
        who: &Who,
        actor: Actor,
        progress: Progress,
    ) -> Result<Deployed, ChangeError> {
        manifest.check()?;
        who.may(&manifest.name)?;
        let _place = self.admitted.try_acquire().map_err(|_| ChangeError::Busy)?;
        let _name = self.lock_name(&manifest.name).await;
        let _named = self.name(&manifest, who).await?;
        let same = self.same(&manifest, who).await;
        if let Some(same) = same.as_ref().filter(|same| same.preparation.cut_short().is_empty()) {
            return Ok(same.clone());
        }
        let prepared = match self.known(&manifest).await {
            Some(known) => known,
            None => {
                let stage = Stage::start("wait", &progress);
                let _permit = self.preparing.acquire().await.map_err(|_| ChangeError::Busy)?;
                stage.done();
                let prepared = self.prepare(&manifest, who.uploader(), who.trust(), progress.clone()).await?;
                self.known.insert(&manifest, &prepared);
                prepared
            }
        };
        let preparation = Preparation::from(prepared);
        if let Some(same) = same.filter(|same| same.preparation.cut_short() == preparation.cut_short()) {
            // The trial that time ran out of in what is there has told no more now.
            return Ok(same);
        }
        let stage = Stage::start("load", &progress);
        let loaded = self.load(&manifest, &preparation, who.trust()).await?;
        stage.done();
        let stage = Stage::start("publish", &progress);
        let revision = self.commit(manifest, preparation.clone(), loaded, (who, actor)).await?;
        stage.done();
        Ok(Deployed { revision, changed: true, preparation })
    }

    /// Everything that [`Registry::deploy`] does, but for loading and publishing.
    ///
    /// # Errors
    /// Says what would fail.
    pub async fn validate(&self, manifest: &Manifest, who: &Who, progress: Progress) -> Result<Prepared, ChangeError> {
        manifest.check()?;
        who.may(&manifest.name)?;
        let _place = self.admitted.try_acquire().map_err(|_| ChangeError::Busy)?;
        let _named = self.name(manifest, who).await?;
        let _permit = self.preparing.acquire().await.map_err(|_| ChangeError::Busy)?;
        self.prepare(manifest, who.uploader(), who.trust(), progress).await
    }

    /// Removes one version, or all of a model. Calls that are running finish.
    ///
    /// # Errors
    /// [`ChangeError::NotFound`]; [`ChangeError::Forbidden`].
    pub async fn delete(&self, name: &str, version: Option<&str>, who: &Who, actor: Actor) -> Result<u64, ChangeError> {
        who.may(name)?;
        let _name = self.lock_name(name).await;
        let number = {
            let mut state = self.state.lock().await;
            let gone = |key: &(String, String)| key.0 == name && version.is_none_or(|version| key.1 == version);
            let mut entries = state.entries.clone();
            entries.retain(|key, _| !gone(key));
            if entries.len() == state.entries.len() {
                return Err(match version {
                    Some(version) => ChangeError::NotFound(format!("model `{name}` has no version `{version}`")),
                    None => ChangeError::NotFound(format!("there is no model `{name}`")),
                });
            }
            let change = Change::Delete { model: name.to_string(), version: version.map(str::to_string) };
            self.write(&mut state, entries, change, actor).await?
        };
        if self.sweep_is_due() {
            self.sweep(Duration::ZERO).await;
        }
        Ok(number)
    }

    // === what changes are made of ===

    async fn prepare(
        &self,
        manifest: &Manifest,
        deployer: Option<&str>,
        trust: Trust,
        progress: Progress,
    ) -> Result<Prepared, ChangeError> {
        // The child opens files by path: what the store would not hand out must not reach it.
        for (_, digest) in manifest.blobs() {
            self.store.verify_blob(digest).await?;
        }
        let mut job = self.loader.job(manifest, trust, &self.store).await?;
        job.batching = self.known_batching(manifest, deployer, trust).await;
        Ok(prepare::run(job, progress).await?)
    }

    /// What a child said about the same content, if time did not run out there and the module that it compiled is still
    /// there.
    async fn known(&self, manifest: &Manifest) -> Option<Prepared> {
        let prepared = self.known.get(manifest)?;
        (!self.loader.needs_compile(manifest).await).then_some(prepared)
    }

    /// What was found about the same graphs, in such sessions of the very same engine and filled up alike, by earlier
    /// deployments of the same deployer: the rows that were tried were made of its golden input, and nobody else's word
    /// counts. Where jobs run alone or time ran out it is tried again: there may be more of it now, or the golden input
    /// that was wanting.
    async fn known_batching(
        &self,
        manifest: &Manifest,
        deployer: Option<&str>,
        trust: Trust,
    ) -> BTreeMap<String, Calibration> {
        let entries = self.entries().await;
        let engines = self.loader.engines_of(manifest, trust).unwrap_or_default();
        let records = || {
            let records = entries.iter().filter_map(|entry| entry.record.as_deref());
            records.filter(|record| record.deployer.as_deref() == deployer)
        };
        let key = |graph: &GraphEntry| {
            let GraphEntry { digest, options } = graph;
            (digest.clone(), options.of_sessions(), options.padding.clone())
        };
        let of = |name: &String, wanted: &GraphEntry| {
            let wanted = Some(key(wanted)).filter(|_| wanted.options.batching != Batching::Off)?;
            let engine = engines.get(name)?;
            records().find_map(|record| {
                let Preparation { batching, engines, .. } = &record.preparation;
                let is_its = |name: &String| engines.get(name) == Some(engine);
                let mut graphs = record.manifest.graphs.iter();
                let (name, _) = graphs.find(|(name, graph)| key(graph) == wanted && is_its(name))?;
                batching.get(name).filter(|found| found.refused.is_none() && !found.cut_short).cloned()
            })
        };
        manifest.graphs.iter().filter_map(|(name, graph)| Some((name.clone(), of(name, graph)?))).collect()
    }

    async fn check_blobs(&self, manifest: &Manifest, who: &Who) -> Result<(), ChangeError> {
        let mut missing = Vec::new();
        for (field, digest) in manifest.blobs() {
            if !self.store.has_blob(digest, who.uploader()).await? {
                missing.push((field, digest.to_string()));
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(ChangeError::Missing(missing)) }
    }

    /// What is there, when it is just this, of the same deployer, prepared for what runs it, and it answers.
    async fn same(&self, manifest: &Manifest, who: &Who) -> Option<Deployed> {
        let state = self.state.lock().await;
        let entry = state.entries.get(&(manifest.name.clone(), manifest.version.clone()))?;
        let is_same =
            |record: &&Arc<Record>| record.manifest == *manifest && record.deployer.as_deref() == who.uploader();
        let record = entry.record.as_ref().filter(is_same)?;
        if !self.loader.is_as_prepared(manifest, &record.preparation, who.trust()) {
            return None;
        }
        let ready = matches!(entry.standing, Standing::Ready(_));
        let preparation = record.preparation.clone();
        ready.then_some(Deployed { revision: state.revision, changed: false, preparation })
    }

    async fn commit(
        &self,
        manifest: Manifest,
        preparation: Preparation,
        loaded: Loaded,
        (who, actor): (&Who, Actor),
    ) -> Result<u64, ChangeError> {
        let (name, version) = (manifest.name.clone(), manifest.version.clone());
        let deployer = who.uploader().map(str::to_owned);
        let record = Record { manifest, deployed: now(), deployer, preparation };
        let bytes = serde_json::to_vec(&record).map_err(|error| ChangeError::Host(error.to_string()))?;
        // Until the state has it, nothing else names the record.
        let _naming = self.sweeping.read().await;
        let digest = self.store.put_bytes(bytes.into()).await?;
        let entry = Entry {
            name: name.clone(),
            version: version.clone(),
            digest,
            record: Some(Arc::new(record)),
            standing: Standing::Ready(Arc::new(loaded)),
        };
        let mut state = self.state.lock().await;
        let mut entries = state.entries.clone();
        entries.insert((name.clone(), version.clone()), entry);
        self.write(&mut state, entries, Change::Deploy { model: name, version }, actor).await
    }

    /// Writes the next revision, and publishes it once it counts.
    async fn write(
        &self,
        state: &mut State,
        entries: BTreeMap<(String, String), Entry>,
        change: Change,
        by: Actor,
    ) -> Result<u64, ChangeError> {
        let mut models: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for entry in entries.values() {
            models.entry(entry.name.clone()).or_default().insert(entry.version.clone(), entry.digest.clone());
        }
        let number = state.revision + 1;
        let revision = Revision { number, previous: state.previous.clone(), at: now(), by, change, models };
        if let Err(error) = self.store.append(&revision).await {
            // A write may fail after it took effect, for example when the folder could not be synced.
            if !self.store.revision(number).await.is_ok_and(|written| written == revision) {
                return Err(error.into());
            }
            tracing::warn!(%error, number, "a revision is there although writing it failed");
        }
        state.revision = number;
        state.previous = Some(revision.digest());
        state.entries = entries;
        self.publish(state);
        if let Err(error) = self.store.prune(number, self.bounds.revisions).await {
            tracing::warn!(%error, "old revisions were not removed");
        }
        let (by, from) = (&revision.by.name, &revision.by.from);
        tracing::info!(revision = number, change = ?revision.change, by, from, "deployed state changed");
        Ok(number)
    }

    /// Shows the data plane the state as it is now.
    fn publish(&self, state: &State) {
        let served = state.entries.values().filter_map(|entry| match &entry.standing {
            Standing::Ready(loaded) => Some(loaded.served.clone()),
            Standing::Loading | Standing::Failed(_) => None,
        });
        let served: Vec<Arc<Served>> = served.collect();
        let unready = state.entries.values().filter_map(|entry| {
            let why = match entry.standing {
                Standing::Ready(_) => return None,
                Standing::Loading => NotReady::Loading,
                Standing::Failed(_) => NotReady::Failed,
            };
            // Where nobody can read what it says, nothing is allowed.
            let jurisdictions = entry
                .record
                .as_ref()
                .map_or_else(Jurisdictions::nowhere, |record| record.manifest.jurisdictions.clone());
            Some((entry.name.clone(), Unready { version: entry.version.clone(), why, jurisdictions }))
        });
        self.current.store(Arc::new(Snapshot::new(state.revision, served).with_unready(unready)));
    }

    async fn lock_name(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.retain(|_, lock| lock.strong_count() > 0);
            match names.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    names.insert(name.to_string(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

/// A stage that the server itself goes through.
struct Stage<'a> {
    name: &'static str,
    start: Instant,
    progress: &'a Progress,
}

impl<'a> Stage<'a> {
    fn start(name: &'static str, progress: &'a Progress) -> Stage<'a> {
        let _ = progress.try_send(Event { stage: name.into(), status: Status::Started, ms: None });
        Stage { name, start: Instant::now(), progress }
    }

    fn done(self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).ok();
        let _ = self.progress.try_send(Event { stage: self.name.into(), status: Status::Done, ms });
    }
}
