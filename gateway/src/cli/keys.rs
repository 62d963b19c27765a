//! `windrose tenant` and `windrose deployer`: a key for who may call, or deploy. Neither needs a gateway.

use serde_json::{Value, json};

use super::{Failure, print_json};
use crate::config::deployers::{Names, check_deployer_name};
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

/// Make a key for a deployer, and what the file of deployers is to say of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example: windrose deployer acme --models 'acme-*' >> deployers.toml\n\nThe key goes to standard error, \
    and is kept nowhere: the file has its sha256. The gateway's setting control.deployers names the file; who has the \
    key gives it to windrose in the variable WINDROSE_TOKEN."
)]
pub struct Deployer {
    /// Its name.
    name: String,
    /// The models that are its own, with commas; `beginning*` for all that begin so [default: its name with -* behind].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// Let its graphs run in the gateway's own process; else each has a process of its own.
    #[arg(long)]
    trusted_graphs: bool,
    /// Let its models be granted what the gateway's ceiling allows; else nothing.
    #[arg(long)]
    grants: bool,
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
        let mut more = Vec::new();
        more.extend(self.allow.as_ref().map(|allow| format!("allow = {allow:?}")));
        more.extend((!self.deny.is_empty()).then(|| format!("deny = {:?}", self.deny)));
        show("tenant", &self.name, &more, self.json.then(|| json!({ "allow": self.allow, "deny": self.deny })))
    }
}

impl Deployer {
    /// Makes a key.
    ///
    /// # Errors
    /// When the name or that of a model is none.
    pub fn run(self) -> Result<(), Failure> {
        check_deployer_name(&self.name).map_err(Failure::usage)?;
        let models = self.models.unwrap_or_else(|| vec![format!("{}-*", self.name)]);
        models.iter().try_for_each(|names| Names::parse(names).map(drop)).map_err(Failure::usage)?;
        let isolation = if self.trusted_graphs { "process" } else { "child" };
        let mut more = vec![format!("models = {models:?}")];
        more.extend(self.trusted_graphs.then(|| format!("isolation = \"{isolation}\"")));
        more.extend(self.grants.then(|| "grants = true".to_owned()));
        let about = json!({ "models": models, "isolation": isolation, "grants": self.grants });
        show("deployer", &self.name, &more, self.json.then_some(about))
    }
}

/// Makes a key; prints what a file says of its holder, and the key apart from it. Or both as JSON.
fn show(what: &str, name: &str, more: &[String], json: Option<Value>) -> Result<(), Failure> {
    let key = hex(&rand::random::<[u8; 32]>());
    let digest = hex_digest(key.as_bytes());
    if let Some(mut about) = json {
        about["name"] = name.into();
        about["key"] = key.into();
        about["sha256"] = digest.into();
        return print_json(&about);
    }
    println!("[[{what}]]\nname = \"{name}\"\nkeys = [\"{digest}\"]");
    more.iter().for_each(|line| println!("{line}"));
    eprintln!("the key of {name}, shown only here: {key}");
    Ok(())
}
