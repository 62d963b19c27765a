//! What nobody names goes: files, asset folders, compiled modules.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use windrose_sandbox::Ages;

use super::{ChangeError, Registry};
use crate::control::deployer::Who;
use crate::control::load::module_digest;
use crate::control::manifest::Manifest;

/// The shortest and the longest time between two looks for what nobody names.
const TIDY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long such a look waits for deployments that are about to name something, and has others wait.
const SWEEPING: Duration = Duration::from_secs(5);

/// The manifests whose files somebody uses: deployments that are under way, and versions that calls run on, whether or not they
/// are still deployed. What they name is not removed, however long they take.
#[derive(Default)]
pub(super) struct InUse(Mutex<Vec<Weak<Manifest>>>);

impl InUse {
    /// This one is in use until nobody has it any more.
    pub fn add(&self, manifest: &Arc<Manifest>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|manifest| manifest.strong_count() > 0);
        all.push(Arc::downgrade(manifest));
    }

    fn all(&self) -> Vec<Arc<Manifest>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Registry {
    /// Names what a deployment is about to use, all of which must be here: none of it is removed until what this returns is
    /// dropped. A sweep that is under way is waited for, and waits for no more than this.
    ///
    /// # Errors
    /// [`ChangeError::Missing`].
    pub(super) async fn name(&self, manifest: &Manifest, who: &Who) -> Result<Arc<Manifest>, ChangeError> {
        let _naming = self.sweeping.read().await;
        let named = Arc::new(manifest.clone());
        self.in_use.add(&named);
        self.check_blobs(manifest, who).await?;
        Ok(named)
    }

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

    /// Removes blobs, asset folders and compiled modules that nothing names; not while a deployment is about to name some, which
    /// is waited for so long.
    pub async fn sweep(&self, wait: Duration) {
        let Ok(_alone) = timeout(wait, self.sweeping.write()).await else { return };
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // Before what is deployed, which is where one of them may go meanwhile.
        let in_use = self.in_use.all();
        let entries = self.entries().await;
        if entries.iter().any(|entry| entry.record.is_none()) {
            tracing::warn!("a deployment's record is unreadable: no file is removed, since it may be named there");
            return;
        }
        let deployed = entries.iter().filter_map(|entry| entry.record.as_deref()).map(|record| &record.manifest);
        let manifests: Vec<&Manifest> = deployed.chain(in_use.iter().map(|manifest| &**manifest)).collect();
        let mut keep: HashSet<String> = entries.iter().map(|entry| entry.digest.clone()).collect();
        for manifest in &manifests {
            keep.extend(manifest.blobs().into_iter().map(|(_, digest)| digest.to_string()));
        }
        match self.store.sweep(&keep, self.bounds.keep).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed files that no model names"),
            Err(error) => tracing::warn!(%error, "files that no model names were not removed"),
        }
        if let Err(error) = self.loader.assets.sweep(manifests.iter().map(|manifest| &manifest.assets)) {
            tracing::warn!(%error, "asset folders that no model names were not removed");
        }
        let modules = manifests.iter().map(|manifest| module_digest(manifest).to_owned()).collect();
        // No preparation lives longer than it may take.
        let ages = Ages { entries: self.bounds.keep, unfinished: self.loader.budget.wall.saturating_mul(2) };
        match self.loader.sweep(modules, ages).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed compiled modules that no model has"),
            Err(error) => tracing::warn!(%error, "compiled modules that no model has were not removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_known_until_nobody_has_it() {
        let text = format!(r#"{{"name": "a", "version": "1", "module": "{}"}}"#, "0".repeat(64));
        let manifest = || Arc::new(Manifest::from_json(text.as_bytes()).unwrap());
        let (first, second, in_use) = (manifest(), manifest(), InUse::default());
        in_use.add(&first);
        in_use.add(&second);
        assert_eq!(in_use.all().len(), 2);
        drop(first);
        assert_eq!(in_use.all().iter().map(|manifest| &*manifest.name).collect::<Vec<_>>(), ["a"]);
        drop(second);
        assert!(in_use.all().is_empty());
    }
}
