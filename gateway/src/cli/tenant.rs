//! `windrose tenant`: a key for who may call. Needs no gateway.

use serde_json::json;

use super::{Failure, print_json};
use crate::config::fleet::jurisdictions;
use crate::config::tenants::check_tenant_name;
use crate::control::store::{hex, hex_digest};

/// Make a key for a tenant, and what the file of tenants is to say of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example: windrose tenant acme --allow eu >> tenants.toml\n\nThe key goes to standard error, and is \
    kept nowhere: the file has its sha256. The gateway's setting data.tenants names the file."
)]
pub struct Tenant {
    /// Its name.
    name: String,
    /// Jurisdictions that its requests may go to, with commas; any when not given.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    allow: Option<Vec<String>>,
    /// Jurisdictions that its requests may not go to, with commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    deny: Vec<String>,
    /// Print JSON with the key, for scripts.
    #[arg(long)]
    json: bool,
}

impl Tenant {
    /// Makes a key.
    ///
    /// # Errors
    /// When the name or a jurisdiction is none.
    pub fn run(self) -> Result<(), Failure> {
        check_tenant_name(&self.name).map_err(Failure::usage)?;
        jurisdictions(self.allow.as_deref().unwrap_or_default()).map_err(Failure::usage)?;
        jurisdictions(&self.deny).map_err(Failure::usage)?;
        let key = hex(&rand::random::<[u8; 32]>());
        let digest = hex_digest(key.as_bytes());
        if self.json {
            return print_json(&json!({
                "name": self.name, "key": key, "sha256": digest, "allow": self.allow, "deny": self.deny,
            }));
        }
        println!("[[tenant]]\nname = \"{}\"\nkeys = [\"{digest}\"]", self.name);
        if let Some(allow) = &self.allow {
            println!("allow = {allow:?}");
        }
        if !self.deny.is_empty() {
            println!("deny = {:?}", self.deny);
        }
        eprintln!("the key of {}, shown only here: {key}", self.name);
        Ok(())
    }
}
