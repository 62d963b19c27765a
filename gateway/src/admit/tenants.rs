//! Who calls: with a file of tenants, whoever has one of their keys; without one, everybody is the same tenant.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use windrose_engine::default_tenant;

use crate::config::ConfigError;
use crate::config::keys::KeyFile;
use crate::config::tenants::Tenant;
use crate::error::{Error, Kind};

/// Lets in who has a key.
pub struct Door(Arc<KeyFile<Tenant>>);

impl Door {
    /// Reads the file, and follows it.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn open(file: &Path) -> Result<Arc<Door>, ConfigError> {
        Ok(Arc::new(Door(KeyFile::open(file)?)))
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
        self.0.of_key(key.trim()).ok_or_else(|| Error::new(Kind::Unauthorized, "the key is no tenant's"))
    }

    /// The tenant of a name.
    pub fn named(&self, name: &str) -> Option<Arc<Tenant>> {
        self.0.named(name)
    }
}

/// The tenant of a gateway that has no file of them.
pub fn everybody() -> Arc<Tenant> {
    static EVERYBODY: LazyLock<Arc<Tenant>> =
        LazyLock::new(|| Arc::new(Tenant { name: default_tenant(), allow: None, deny: Vec::new() }));
    EVERYBODY.clone()
}
