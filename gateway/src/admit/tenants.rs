//! Who calls: with a file of tenants, whoever has one of their keys; without one, everybody is the same tenant.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use windrose_engine::default_tenant;

use crate::config::ConfigError;
use crate::config::tenants::{Tenant, Tenants};
use crate::error::{Error, Kind};
use crate::fleet::tls::modified;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Lets in who has a key.
pub struct Door {
    file: PathBuf,
    tenants: ArcSwap<Tenants>,
}

impl Door {
    /// Reads the file, and reads it again when it changes. One that is wrong then changes nothing.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn open(file: &Path) -> Result<Arc<Door>, ConfigError> {
        let seen = modified(file);
        let tenants = ArcSwap::from_pointee(Tenants::load(file)?);
        let door = Arc::new(Door { file: file.to_path_buf(), tenants });
        tokio::spawn(follow(Arc::downgrade(&door), seen));
        Ok(door)
    }

    /// Who calls. The key is taken out of the headers: neither a module nor another site is to see it.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] without a key, and with one that is nobody's.
    pub fn caller(&self, headers: &mut HeaderMap) -> Result<Arc<Tenant>, Error> {
        let header = headers.remove(AUTHORIZATION);
        let words = header.as_ref().and_then(|value| value.to_str().ok()?.split_once(' '));
        let (_, key) = words.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).ok_or_else(|| {
            Error::new(Kind::Unauthorized, "this call needs `Authorization: Bearer` with the key of a tenant")
        })?;
        let tenants = self.tenants.load();
        tenants.of_key(key.trim()).cloned().ok_or_else(|| Error::new(Kind::Unauthorized, "the key is no tenant's"))
    }

    /// The tenant of a name.
    pub fn named(&self, name: &str) -> Option<Arc<Tenant>> {
        self.tenants.load().named(name).cloned()
    }
}

async fn follow(door: Weak<Door>, mut seen: Option<(std::time::SystemTime, u64)>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(door) = door.upgrade() else { return };
        let now = modified(&door.file);
        if now == seen {
            continue;
        }
        seen = now;
        match Tenants::load(&door.file) {
            Ok(tenants) => {
                door.tenants.store(Arc::new(tenants));
                tracing::info!("the file of tenants has changed");
            }
            Err(error) => tracing::error!(%error, "the file of tenants is wrong: the one before stays in force"),
        }
    }
}

/// The tenant of a gateway that has no file of them.
pub fn everybody() -> Arc<Tenant> {
    static EVERYBODY: LazyLock<Arc<Tenant>> =
        LazyLock::new(|| Arc::new(Tenant { name: default_tenant(), allow: None, deny: Vec::new() }));
    EVERYBODY.clone()
}
