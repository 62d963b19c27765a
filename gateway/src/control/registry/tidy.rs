//! What nobody names goes: files, asset folders.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Registry;

/// The shortest and the longest time between two looks for what nobody names.
const TIDY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long such a look waits for deployments that are under way, and has others wait.
const SWEEPING: Duration = Duration::from_secs(5);

impl Registry {
    /// Removes what nobody names once it is old enough, whatever is deployed meanwhile. Never returns.
    pub async fn tidy(self: Arc<Registry>) {
        let pause = (self.bounds.keep / 60).clamp(TIDY.0, TIDY.1);
        loop {
            tokio::time::sleep(pause).await;
            self.sweep(SWEEPING).await;
        }
    }

    /// Looking for what nobody names takes as long as there are blobs: often enough for what has just come of age, and not
    /// with every change.
    pub(super) fn sweep_is_due(&self) -> bool {
        let swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        swept.is_none_or(|last| last.elapsed() >= self.bounds.keep / 60)
    }

    /// Removes blobs and asset folders that nothing names; not while a deployment is about to name some, which is waited for
    /// so long.
    pub async fn sweep(&self, wait: Duration) {
        let Ok(_alone) = timeout(wait, self.sweeping.write()).await else { return };
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let entries = self.entries().await;
        if entries.iter().any(|entry| entry.record.is_none()) {
            tracing::warn!("a deployment's record is unreadable: no file is removed, since it may be named there");
            return;
        }
        let manifests = || entries.iter().filter_map(|entry| entry.record.as_deref()).map(|record| &record.manifest);
        let mut keep: HashSet<String> = entries.iter().map(|entry| entry.digest.clone()).collect();
        for manifest in manifests() {
            keep.extend(manifest.blobs().into_iter().map(|(_, digest)| digest.to_string()));
        }
        match self.store.sweep(&keep, self.bounds.keep).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed files that no model names"),
            Err(error) => tracing::warn!(%error, "files that no model names were not removed"),
        }
        if let Err(error) = self.loader.assets.sweep(manifests().map(|manifest| &manifest.assets)) {
            tracing::warn!(%error, "asset folders that no model names were not removed");
        }
    }
}
