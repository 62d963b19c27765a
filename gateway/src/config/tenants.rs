//! The file of tenants: who may call, with which keys, and whose law binds them. As written, then as true.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use windrose_route::Jurisdiction;

use super::ConfigError;
use super::explain::read_toml;
use super::fleet::{jurisdictions, parse_digest};

/// Whose the golden tests are that gateways send each other. No tenant has this name.
pub const PROBER: &str = "probe";

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Whose share of the engines a call takes, and whose calls it may share a batch with.
    pub name: Arc<str>,
    /// Law: nothing but these, where there is a list.
    pub allow: Option<Vec<Jurisdiction>>,
    /// Law: none of these.
    pub deny: Vec<Jurisdiction>,
}

/// A file of tenants, validated.
#[derive(Clone, Debug, Default)]
pub struct Tenants {
    by_key: HashMap<[u8; 32], Arc<Tenant>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    #[serde(default)]
    tenant: Vec<WrittenTenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTenant {
    name: String,
    #[serde(default)]
    keys: Vec<String>,
    allow: Option<Vec<String>>,
    #[serde(default)]
    deny: Vec<String>,
}

impl Tenants {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn load(path: &Path) -> Result<Tenants, ConfigError> {
        let failed = |why: String| ConfigError(format!("data.tenants: {why}"));
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| failed(format!("{name}: {error}")))?;
        let written: WrittenFile = read_toml(&name, &text).map_err(failed)?;
        Tenants::of(written).map_err(|why| failed(format!("{name}: {why}")))
    }

    fn of(written: WrittenFile) -> Result<Tenants, String> {
        let (mut by_key, mut names) = (HashMap::new(), HashSet::new());
        for WrittenTenant { name, keys, allow, deny } in written.tenant {
            check_tenant_name(&name)?;
            if !names.insert(name.clone()) {
                return Err(format!("tenant `{name}` is there twice"));
            }
            let of_tenant = |why: String| format!("tenant `{name}`: {why}");
            let tenant = Arc::new(Tenant {
                allow: allow.map(|allow| jurisdictions(&allow)).transpose().map_err(of_tenant)?,
                deny: jurisdictions(&deny).map_err(of_tenant)?,
                name: name.as_str().into(),
            });
            for key in keys {
                let digest = parse_digest(&key).ok_or_else(|| {
                    of_tenant("keys: not the sha256 of a key, 64 hex digits; `windrose tenant` makes one".into())
                })?;
                if by_key.insert(digest, tenant.clone()).is_some() {
                    return Err(of_tenant("keys: one of them is there already".into()));
                }
            }
        }
        Ok(Tenants { by_key })
    }

    /// Whose key this is. The time that it takes tells nothing of the keys: they are looked up by their digests.
    pub fn of_key(&self, key: &str) -> Option<&Arc<Tenant>> {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.by_key.get(&digest)
    }

    /// The tenant of this name, if it has a key.
    pub fn named(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.by_key.values().find(|tenant| &*tenant.name == name)
    }
}

/// Whether a tenant can have this name.
///
/// # Errors
/// Says how a name looks.
pub fn check_tenant_name(name: &str) -> Result<(), String> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(known) && name != PROBER {
        return Ok(());
    }
    Err(format!("`{name}` is no name of a tenant: 1 to 64 of a-z, 0-9, -, _ and . and not `{PROBER}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store::hex_digest;

    fn read(text: &str) -> Result<Tenants, String> {
        read_toml("tenants.toml", text).and_then(Tenants::of)
    }

    #[test]
    fn a_key_names_its_tenant() {
        let [one, two] = ["one", "two"].map(|key| hex_digest(key.as_bytes()));
        let text = format!(
            "[[tenant]]\nname = \"acme\"\nkeys = [\"{one}\"]\nallow = [\"eu\"]\n[[tenant]]\nname = \"b\"\nkeys = [\"{two}\"]\n"
        );
        let tenants = read(&text).unwrap();
        assert_eq!(&*tenants.of_key("one").unwrap().name, "acme");
        assert_eq!(tenants.of_key("one").unwrap().allow, Some(vec![Jurisdiction::new("eu").unwrap()]));
        assert_eq!(&*tenants.of_key("two").unwrap().name, "b");
        assert!(tenants.of_key(&one).is_none() && tenants.of_key("").is_none());
        assert!(tenants.named("acme").is_some() && tenants.named("c").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = hex_digest(b"one");
        let tenant = |name: &str, more: &str| format!("[[tenant]]\nname = \"{name}\"\n{more}\n");
        let cases = [
            (tenant("a b", ""), "`a b` is no name of a tenant"),
            (tenant("probe", ""), "and not `probe`"),
            (tenant("a", "") + &tenant("a", ""), "tenant `a` is there twice"),
            (tenant("a", "keys = [\"one\"]"), "tenant `a`: keys: not the sha256 of a key"),
            (tenant("a", &format!("keys = [\"{key}\", \"{key}\"]")), "one of them is there already"),
            (tenant("a", "deny = [\"e u\"]"), "tenant `a`: \"e u\" is no jurisdiction"),
            (tenant("a", "key = []"), "unknown field `key`"),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
