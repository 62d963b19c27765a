//! A start: what is deployed is read and loaded again. What other engines are to run than it was prepared with is
//! prepared for these first, and that is kept for the starts to come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::{ChangeError, Entry, Registry, Standing, State};
use crate::control::load::{Loaded, module_digest};
use crate::control::log::{Preparation, PreparedAgain, Record, Revision, now};

impl Registry {
    /// What a revision says is deployed. None of it is loaded yet.
    pub(super) async fn read(&self, revision: &Revision) -> State {
        let mut state = State { revision: revision.number, previous: Some(revision.digest()), ..State::default() };
        for (name, version, digest) in revision.versions() {
            let (record, standing) = match self.read_record(digest).await {
                Ok(record) => (Some(Arc::new(record)), Standing::Loading),
                Err(error) => (None, Standing::Failed(error)),
            };
            let (name, version, digest) = (name.to_string(), version.to_string(), digest.to_string());
            let key = (name.clone(), version.clone());
            state.entries.insert(key, Entry { name, version, digest, record, standing });
        }
        state
    }

    /// A version's record. Where other engines are to run it than it was prepared with, it has what was kept of its
    /// preparation for these.
    async fn read_record(&self, digest: &str) -> Result<Record, String> {
        let bytes = self.store.read_blob(digest).await.map_err(|error| error.to_string())?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| format!("record {digest}: {error}"))?;
        let engines = self.loader.engines_of(&record.manifest, self.trust(&record));
        let Some(engines) = engines.filter(|engines| *engines != record.preparation.engines) else { return Ok(record) };
        match self.store.prepared_again(digest, &engines).await {
            Ok(Some(again)) => Ok(Record { preparation: again.preparation, ..record }),
            Ok(None) => Ok(record),
            Err(error) => {
                let (model, version) = (&record.manifest.name, &record.manifest.version);
                tracing::warn!(%model, %version, %error, "what was kept of a preparation is of no use");
                Ok(record)
            }
        }
    }

    /// Loads everything that is deployed, each on its own: one that fails is reported and holds nobody up.
    pub async fn load_all(self: &Arc<Registry>) {
        let waiting: Vec<Entry> = self.entries().await;
        let mut tasks = tokio::task::JoinSet::new();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = Arc::new(Semaphore::new(cores));
        for entry in waiting {
            let Some(record) = entry.record.clone().filter(|_| matches!(entry.standing, Standing::Loading)) else {
                continue;
            };
            let (registry, permits) = (self.clone(), permits.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                registry.load_at_start(entry, record).await;
            });
        }
        while tasks.join_next().await.is_some() {}
        self.sweep(Duration::ZERO).await;
    }

    async fn load_at_start(&self, entry: Entry, record: Arc<Record>) {
        let _name = self.lock_name(&entry.name).await;
        let start = Instant::now();
        let loaded = self.load_lost(&entry.digest, &record).await;
        let (model, version) = (&entry.name, &entry.version);
        let (standing, record) = match loaded {
            Ok((loaded, record)) => {
                tracing::info!(%model, %version, ms = start.elapsed().as_millis() as u64, "loaded");
                (Standing::Ready(Arc::new(loaded)), record)
            }
            Err(error) => {
                tracing::error!(%model, %version, %error, "a deployed version could not be loaded");
                (Standing::Failed(error.to_string()), record)
            }
        };
        let mut state = self.state.lock().await;
        let key = (entry.name.clone(), entry.version.clone());
        if let Some(now) = state.entries.get_mut(&key).filter(|now| now.digest == entry.digest) {
            now.standing = standing;
            now.record = Some(record);
            self.publish(&state);
        }
    }

    /// Loads; where the compiled module is gone, or other engines run the graphs than those that they were prepared
    /// with, a child does all that first. Returns the record as it was prepared for what runs it.
    async fn load_lost(&self, digest: &str, record: &Arc<Record>) -> Result<(Loaded, Arc<Record>), ChangeError> {
        let (manifest, trust) = (&record.manifest, self.trust(record));
        let is_as_prepared = self.loader.is_as_prepared(manifest, &record.preparation, trust);
        if is_as_prepared && !self.loader.needs_compile(manifest).await {
            return Ok((self.load(manifest, &record.preparation, trust).await?, record.clone()));
        }
        let _permit = self.preparing.acquire().await;
        let (progress, _) = tokio::sync::mpsc::channel(1);
        let prepared = self.prepare(manifest, record.deployer.as_deref(), trust, progress).await?;
        self.known.insert(manifest, &prepared);
        let preparation = Preparation::from(prepared);
        let loaded = self.load(manifest, &preparation, trust).await?;
        if !is_as_prepared {
            let (model, version) = (&manifest.name, &manifest.version);
            let (before, now) = (&record.preparation.engines, &preparation.engines);
            tracing::info!(%model, %version, ?before, ?now, "prepared again, for the engines that are here now");
            self.keep_prepared(digest, &preparation).await;
        }
        Ok((loaded, Arc::new(Record { preparation, ..Record::clone(record) })))
    }

    /// Keeps what was prepared again for the next start. The version answers whether or not that can be done.
    async fn keep_prepared(&self, record: &str, preparation: &Preparation) {
        let again = PreparedAgain { record: record.to_owned(), at: now(), preparation: preparation.clone() };
        if let Err(error) = self.store.keep_prepared(&again).await {
            tracing::warn!(record, %error, "a preparation could not be kept: it is made once more at the next start");
        }
    }

    /// Compiles again, in a child, what the cache has lost while it was not in memory. Never returns.
    pub async fn mend(self: Arc<Registry>) {
        loop {
            let digest = self.loader.sandbox.lost().await;
            let entries = self.entries().await;
            let mut records = entries.iter().filter_map(|entry| entry.record.as_deref());
            let record = records.find(|record| module_digest(&record.manifest) == digest);
            // Deleted meanwhile, or seen to for another call.
            let Some(record) = record else { continue };
            if !self.loader.needs_compile(&record.manifest).await {
                continue;
            }
            let Ok(_permit) = self.preparing.acquire().await else { return };
            let (progress, _) = tokio::sync::mpsc::channel(1);
            match self.prepare(&record.manifest, record.deployer.as_deref(), self.trust(record), progress).await {
                Ok(_) => tracing::info!(digest, "a module that the cache had lost was compiled again"),
                Err(error) => tracing::error!(digest, %error, "a module that the cache has lost cannot be compiled"),
            }
        }
    }
}
