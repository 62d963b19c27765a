//! The file of tenants: who may call, with which keys, and whose law binds them. As written, then as true.

use std::sync::Arc;

use serde::Deserialize;
use windrose_route::Jurisdiction;

use super::fleet::jurisdictions;
use super::keys::{Holder, check_name};

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

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenFile {
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

impl Holder for Tenant {
    const WHAT: &'static str = "tenant";
    const SETTING: &'static str = "data.tenants";

    type Written = WrittenFile;

    fn check(written: WrittenFile) -> Result<Vec<(Tenant, Vec<String>)>, String> {
        written.tenant.into_iter().map(WrittenTenant::check).collect()
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl WrittenTenant {
    fn check(self) -> Result<(Tenant, Vec<String>), String> {
        let WrittenTenant { name, keys, allow, deny } = self;
        check_tenant_name(&name)?;
        let wrong = |why: String| format!("tenant `{name}`: {why}");
        let allow = allow.map(|allow| jurisdictions(&allow)).transpose().map_err(wrong)?;
        let deny = jurisdictions(&deny).map_err(wrong)?;
        Ok((Tenant { name: name.as_str().into(), allow, deny }, keys))
    }
}

/// Whether a tenant can have this name.
///
/// # Errors
/// Says how a name looks.
pub fn check_tenant_name(name: &str) -> Result<(), String> {
    check_name(Tenant::WHAT, name, PROBER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::Keys;
    use crate::control::store::hex_digest;

    fn read(text: &str) -> Result<Keys<Tenant>, String> {
        Keys::read("tenants.toml", text)
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
