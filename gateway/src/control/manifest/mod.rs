//! The manifest: what a person deploys, with every file named by digest.

mod self_test;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windrose_engine::{Batching, Device, EngineChoice, GraphOptions, Isolation, Padding};
use windrose_route::{Rules, Source};
use windrose_sandbox::{Grants, Limits};

pub use self::self_test::SelfTest;

use crate::config::fleet::jurisdictions;

/// One version of a model, complete. This is the body of the call that deploys it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `[a-z0-9][a-z0-9._-]*`, at most 128 characters.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,127}$")]
    pub name: String,
    /// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 64 characters. Runs of digits compare as numbers.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub version: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// sha256 of the component, hex; without one the model is its graph named `model`, behind the pass-through module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Graphs by the name that the module calls them.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, WrittenGraph>)]
    pub graphs: BTreeMap<String, GraphEntry>,
    /// Assets by their path inside the sandbox: sha256, hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub assets: BTreeMap<String, String>,
    /// What a call may use; the operator's ceiling applies as well.
    #[serde(default)]
    pub limits: WantedLimits,
    /// What the module asks for.
    #[serde(default)]
    #[schema(value_type = super::api::types::GrantsView)]
    pub grants: Grants,
    /// Arguments and environment of a command.
    #[serde(default)]
    pub command: Command,
    /// Deadlines.
    #[serde(default)]
    pub timeout: Timeout,
    /// Its share of the machine against other models, from 1 to 1,000.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Where its data may go.
    #[serde(default, skip_serializing_if = "Jurisdictions::is_empty")]
    pub jurisdictions: Jurisdictions,
    /// The self-test that the model must pass before it goes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SelfTest>,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// The law of a model's data. A site is lawful when it is allowed and not denied; one whose jurisdiction nobody knows is
/// not, as soon as there is any rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jurisdictions {
    /// Nothing but these, where there is a list; an empty one allows nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl Jurisdictions {
    /// Data that may be nowhere.
    pub fn nowhere() -> Jurisdictions {
        Jurisdictions { allow: Some(Vec::new()), deny: Vec::new() }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }

    /// These rules added to others. What cannot be read allows nothing: manifests are checked when they are deployed, so
    /// that only a peer can say such a thing.
    pub fn bind(&self, rules: Rules) -> Rules {
        let allow = self.allow.as_deref().map(jurisdictions).transpose();
        match (allow, jurisdictions(&self.deny)) {
            (Ok(allow), Ok(deny)) => rules.and(Source::Manifest, allow, deny),
            _ => rules.and(Source::Manifest, Some(Vec::new()), Vec::new()),
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        for (field, list) in [("allow", self.allow.as_deref().unwrap_or_default()), ("deny", &self.deny)] {
            if list.len() > MAX_JURISDICTIONS {
                let message = format!("at most {MAX_JURISDICTIONS}");
                return Err(Invalid::new(format!("jurisdictions.{field}"), message));
            }
            jurisdictions(list).map_err(|message| Invalid::new(format!("jurisdictions.{field}"), message))?;
        }
        Ok(())
    }
}

/// One graph of a model. In JSON the options stand beside the digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "WrittenGraph", into = "WrittenGraph")]
pub struct GraphEntry {
    /// sha256 of the ONNX file, hex.
    pub digest: String,
    /// Engine, device, sessions, threads, queue and isolation.
    pub options: GraphOptions,
}

/// [`GraphEntry`] as JSON has it; a flattened struct would let unknown fields through.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Graph)]
struct WrittenGraph {
    /// sha256 of the ONNX file, hex.
    digest: String,
    /// `auto`, `rten` or `onnxruntime`.
    #[serde(default)]
    #[schema(value_type = String)]
    engine: EngineChoice,
    /// `cpu`, `gpu` or `cuda`. What was asked for is used or refused.
    #[serde(default)]
    #[schema(value_type = String)]
    device: Device,
    /// Sessions; when not given as many as keep the machine's cores busy, and one on a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sessions: Option<usize>,
    /// Threads inside each session; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// Jobs that may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<usize>,
    /// `process` or `child`; the stricter of this and the operator's setting holds.
    #[serde(default)]
    #[schema(value_type = String)]
    isolation: Isolation,
    /// How long a job may be expected to wait, milliseconds; further ones are refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue_wait_ms: Option<u64>,
    /// How jobs run together: `auto`, `off`, or `max_size` rows and `max_delay_us`.
    #[serde(default)]
    #[schema(value_type = serde_json::Value)]
    batching: Batching,
    /// How inputs of different lengths may run together: `axis`, `inputs` with what fills them up, `outputs`, `step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    padding: Option<Padding>,
}

impl From<WrittenGraph> for GraphEntry {
    fn from(written: WrittenGraph) -> GraphEntry {
        let WrittenGraph { engine, device, sessions, threads, queue, isolation, .. } = written;
        let WrittenGraph { digest, queue_wait_ms, batching, padding, .. } = written;
        let options = GraphOptions { queue_wait_ms, batching, padding, ..GraphOptions::default() };
        GraphEntry { digest, options: GraphOptions { engine, device, sessions, threads, queue, isolation, ..options } }
    }
}

impl From<GraphEntry> for WrittenGraph {
    fn from(entry: GraphEntry) -> WrittenGraph {
        let GraphEntry { digest, options } = entry;
        let GraphOptions { engine, device, sessions, threads, queue, isolation, .. } = options;
        let GraphOptions { queue_wait_ms, batching, padding, .. } = options;
        WrittenGraph { digest, engine, device, sessions, threads, queue, isolation, queue_wait_ms, batching, padding }
    }
}

/// The limits that a manifest names; what it leaves out has the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WantedLimits {
    /// Linear memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Tensor bytes held by the host for one call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_memory: Option<u64>,
    /// Wall time, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// CPU time of the guest, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Calls at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Bytes of one answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// Bytes of log in one call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<u64>,
    /// Requests of one tenant that an instance of a module of the world `model` may answer, one after the other; 1, a fresh
    /// instance for each, when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<u32>,
}

/// Arguments and environment of a `wasi:cli` command; the environment is given to other modules as well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Command {
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// `Content-Type` of what it prints; `application/octet-stream` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Deadlines of a model, milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeout {
    /// Of a request that names none.
    pub default_ms: u64,
    /// The longest that a request may ask for.
    pub max_ms: u64,
}

impl Default for Timeout {
    fn default() -> Timeout {
        Timeout { default_ms: 30_000, max_ms: 120_000 }
    }
}

/// What is wrong with a manifest, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The field, as a path from the manifest's root.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Invalid {
        Invalid { field: field.into(), message: message.into() }
    }
}

/// The most graphs of one model.
const MAX_GRAPHS: usize = 64;
/// The most assets of one model.
const MAX_ASSETS: usize = 4096;
/// The most jurisdictions that a model allows or denies.
const MAX_JURISDICTIONS: usize = 64;
/// The most arguments, and the most environment variables, of one model.
const MAX_WORDS: usize = 256;

impl Manifest {
    /// Reads a manifest from JSON and checks it.
    ///
    /// # Errors
    /// Names the field.
    pub fn from_json(json: &[u8]) -> Result<Manifest, Invalid> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let manifest: Manifest = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            // What ends in the middle of a field's name has a path that ends in `?`.
            let path = error.path().to_string();
            let path = path.trim_end_matches(['.', '?']);
            let message = error.inner().to_string();
            // Our own names of things are nobody else's.
            let message = if message.contains("expected struct ") { "must be an object".into() } else { message };
            // A field whose name is empty has a path that is.
            Invalid::new(if path.is_empty() { "manifest" } else { path }, message)
        })?;
        reader.end().map_err(|error| Invalid::new("manifest", error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The one text of this manifest: equal manifests have equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether it can be deployed at all, whatever the blobs hold.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), Invalid> {
        check_new_name(&self.name)?;
        check_version(&self.version)?;
        if self.description.len() > 1024 || self.description.contains('\n') {
            return Err(Invalid::new("description", "must be one line of at most 1024 bytes"));
        }
        self.check_graphs()?;
        if let Some(module) = &self.module {
            check_digest("module", module)?;
        }
        if self.assets.len() > MAX_ASSETS {
            return Err(Invalid::new("assets", format!("at most {MAX_ASSETS} files")));
        }
        for (path, digest) in &self.assets {
            check_asset_path(path)?;
            check_digest(&format!("assets.{path}"), digest)?;
        }
        self.check_paths_are_files()?;
        self.limits.check()?;
        if self.module.is_none() && self.limits.reuse.is_some_and(|reuse| reuse > 1) {
            let message = "the built-in module keeps nothing for a later request: name a module, or leave it out";
            return Err(Invalid::new("limits.reuse", message));
        }
        self.check_command()?;
        self.check_rest()
    }

    fn check_graphs(&self) -> Result<(), Invalid> {
        if self.graphs.len() > MAX_GRAPHS {
            return Err(Invalid::new("graphs", format!("at most {MAX_GRAPHS} graphs")));
        }
        if self.module.is_none() && (self.graphs.len() != 1 || !self.graphs.contains_key("model")) {
            let message = "a model without a module has just one graph, and its name is `model`";
            return Err(Invalid::new("graphs", message));
        }
        for (name, graph) in &self.graphs {
            let field = format!("graphs.{name}");
            if !is_word(name, 64, char::is_ascii_alphanumeric) {
                return Err(Invalid::new(field, "a graph's name is 1 to 64 of A-Z a-z 0-9 . _ -"));
            }
            check_digest(&format!("{field}.digest"), &graph.digest)?;
            check_options(&field, &graph.options)?;
        }
        Ok(())
    }

    /// One asset's path may not be a folder of another's.
    fn check_paths_are_files(&self) -> Result<(), Invalid> {
        for path in self.assets.keys() {
            let mut parent = path.as_str();
            while let Some((folder, _)) = parent.rsplit_once('/') {
                if self.assets.contains_key(folder) {
                    let message = format!("`{folder}` is an asset itself and cannot be a folder too");
                    return Err(Invalid::new(format!("assets.{path}"), message));
                }
                parent = folder;
            }
        }
        Ok(())
    }

    fn check_command(&self) -> Result<(), Invalid> {
        let command = &self.command;
        if command.args.len() > MAX_WORDS || command.args.iter().any(|arg| arg.len() > 4096 || arg.contains('\0')) {
            return Err(Invalid::new(
                "command.args",
                format!("at most {MAX_WORDS} of at most 4096 bytes, without NUL"),
            ));
        }
        if command.env.len() > MAX_WORDS {
            return Err(Invalid::new("command.env", format!("at most {MAX_WORDS} variables")));
        }
        for (name, value) in &command.env {
            let bad_name = name.is_empty() || name.len() > 256 || name.contains(['=', '\0']);
            if bad_name || value.len() > 16_384 || value.contains('\0') {
                return Err(Invalid::new(format!("command.env.{name}"), "is not a usable environment variable"));
            }
        }
        match &command.content_type {
            Some(value) if http::HeaderValue::from_str(value).is_err() || !value.contains('/') => {
                Err(Invalid::new("command.content_type", format!("`{value}` is not a media type")))
            }
            _ => Ok(()),
        }
    }

    fn check_rest(&self) -> Result<(), Invalid> {
        if !(1..=1_000).contains(&self.weight) {
            return Err(Invalid::new("weight", "must be from 1 to 1000"));
        }
        if self.timeout.default_ms == 0 || self.timeout.max_ms == 0 {
            return Err(Invalid::new("timeout", "must be more than nothing"));
        }
        if self.timeout.default_ms > self.timeout.max_ms {
            return Err(Invalid::new("timeout.default_ms", "is longer than timeout.max_ms"));
        }
        if self.grants.network.len() > MAX_WORDS {
            return Err(Invalid::new("grants.network", format!("at most {MAX_WORDS} hosts")));
        }
        if let Some(host) = self.grants.network.iter().find(|host| !is_host(host)) {
            return Err(Invalid::new("grants.network", format!("`{host}` is not `host` or `host:port`")));
        }
        self.jurisdictions.check()?;
        self.test.as_ref().map_or(Ok(()), SelfTest::check)
    }

    /// Every blob that it names, with the field that does.
    pub fn blobs(&self) -> Vec<(String, &str)> {
        let mut blobs: Vec<(String, &str)> = Vec::new();
        blobs.extend(self.module.as_deref().map(|digest| ("module".to_string(), digest)));
        blobs.extend(self.graphs.iter().map(|(name, graph)| (format!("graphs.{name}"), graph.digest.as_str())));
        blobs.extend(self.assets.iter().map(|(path, digest)| (format!("assets.{path}"), digest.as_str())));
        if let Some(test) = &self.test {
            blobs.push(("test.input".into(), &test.input));
            blobs.extend(test.output.as_deref().map(|digest| ("test.output".to_string(), digest)));
        }
        blobs
    }
}

fn check_options(field: &str, options: &GraphOptions) -> Result<(), Invalid> {
    let (size, delay) = match options.batching {
        Batching::Auto | Batching::Off => (None, 0),
        Batching::Fixed(fixed) => (Some(fixed.max_size), fixed.max_delay_us),
    };
    let bounds = [
        ("sessions", options.sessions, 256),
        ("threads", options.threads, 256),
        ("queue", options.queue, 65_536),
        ("queue_wait_ms", options.queue_wait_ms.map(|ms| usize::try_from(ms).unwrap_or(usize::MAX)), 600_000),
        ("batching.max_size", size, 4_096),
    ];
    for (what, value, most) in bounds {
        if value.is_some_and(|value| value == 0 || value > most) {
            return Err(Invalid::new(format!("{field}.{what}"), format!("must be from 1 to {most}")));
        }
    }
    if options.padding.as_ref().is_some_and(|padding| padding.axis == 0 || padding.step == 0) {
        return Err(Invalid::new(format!("{field}.padding"), "needs an axis past the first, and a step"));
    }
    if delay > 10_000_000 {
        return Err(Invalid::new(format!("{field}.batching.max_delay_us"), "must be at most 10000000"));
    }
    Ok(())
}

impl WantedLimits {
    /// These limits with the defaults for what is left out, none of them above the ceiling.
    pub fn within(&self, ceiling: &Limits) -> Limits {
        let default = Limits::default();
        let wanted = Limits {
            memory: self.memory.unwrap_or(default.memory),
            tensor_memory: self.tensor_memory.unwrap_or(default.tensor_memory),
            wall_ms: self.wall_ms.unwrap_or(default.wall_ms),
            cpu_ms: self.cpu_ms.unwrap_or(default.cpu_ms),
            concurrency: self.concurrency.unwrap_or(default.concurrency),
            output: self.output.unwrap_or(default.output),
            log: self.log.unwrap_or(default.log),
            reuse: self.reuse.unwrap_or(default.reuse),
        };
        wanted.min(ceiling)
    }

    fn check(&self) -> Result<(), Invalid> {
        let fields = [
            ("memory", self.memory),
            ("tensor_memory", self.tensor_memory),
            ("wall_ms", self.wall_ms),
            ("cpu_ms", self.cpu_ms),
            ("concurrency", self.concurrency.map(u64::from)),
            ("output", self.output),
            ("reuse", self.reuse.map(u64::from)),
        ];
        match fields.into_iter().find(|(_, value)| *value == Some(0)) {
            Some((name, _)) => Err(Invalid::new(format!("limits.{name}"), "must be at least 1")),
            None => Ok(()),
        }
    }
}

/// Whether a text may name a model.
///
/// # Errors
/// Says how a name looks.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    let lower = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if is_word(name, 128, lower) {
        Ok(())
    } else {
        let message = format!("`{name}` is not 1 to 128 of a-z 0-9 . _ -, the first a letter or a digit");
        Err(Invalid::new("name", message))
    }
}

/// Whether a text may name a model that is deployed now.
///
/// # Errors
/// Says how a name looks, or what has it already.
pub fn check_new_name(name: &str) -> Result<(), Invalid> {
    match name {
        "stats" => Err(Invalid::new("name", "`stats` is taken: /v2/models/stats has the statistics of all models")),
        _ => check_name(name),
    }
}

/// Whether a text may name a version.
///
/// # Errors
/// Says how a version looks.
pub fn check_version(version: &str) -> Result<(), Invalid> {
    if is_word(version, 64, char::is_ascii_alphanumeric) {
        Ok(())
    } else {
        let message = format!("`{version}` is not 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit");
        Err(Invalid::new("version", message))
    }
}

/// Letters as `letter` has them, with dots, underlines and hyphens after the first.
fn is_word(text: &str, most: usize, letter: impl Fn(&char) -> bool) -> bool {
    let first = text.chars().next().is_some_and(|c| letter(&c));
    first && text.len() <= most && text.chars().all(|c| letter(&c) || matches!(c, '.' | '_' | '-'))
}

fn check_digest(field: &str, digest: &str) -> Result<(), Invalid> {
    if is_digest(digest) {
        Ok(())
    } else {
        Err(Invalid::new(field, "is not a sha256 in 64 lower-case hexadecimal digits"))
    }
}

/// Whether a text is a sha256 in lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Relative, with plain parts only.
fn check_asset_path(path: &str) -> Result<(), Invalid> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    let clean = !path.chars().any(|c| c.is_control() || c == '\\');
    if clean && path.len() <= 1024 && path.split('/').all(plain) {
        Ok(())
    } else {
        Err(Invalid::new(format!("assets.{path}"), "must be a relative path such as `tables/words.txt`"))
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn is_host(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>();
    authority
        .is_ok_and(|a| !a.host().is_empty() && !text.contains('@') && (a.port().is_none() || a.port_u16().is_some()))
}

#[cfg(test)]
mod tests;
