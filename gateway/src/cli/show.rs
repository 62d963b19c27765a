//! `windrose models`, `inspect` and `delete`.

use std::io::IsTerminal;

use http::Method;
use windrose_engine::Dim;

use super::client::Client;
use super::{Failure, Gateway, print_json};
use crate::config::units::show_size;
use crate::control::api::types::{
    BatchingView, DeleteAnswer, GraphView, LoadedView, ModelView, ModelsAnswer, SignatureView, VersionState,
    VersionView,
};
use crate::control::manifest::{check_name, check_version};

/// List what is deployed.
#[derive(clap::Args)]
#[command(after_help = "Example: windrose models --json | jq '.models[].name'")]
pub struct Models {
    #[command(flatten)]
    gateway: Gateway,
}

/// Show everything about one version of a model.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(after_help = "Example: windrose inspect magika")]
pub struct Inspect {
    /// The model.
    name: String,
    /// The version [default: the highest].
    #[arg(long = "version", visible_alias = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

/// Remove a model, or one version of it.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(after_help = "Example: windrose delete magika --version 1")]
pub struct Delete {
    /// The model.
    name: String,
    /// Only this version.
    #[arg(long = "version", visible_alias = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Models {
    /// Lists.
    pub async fn run(self) -> Result<(), Failure> {
        let answer: ModelsAnswer = self.gateway.client()?.call(Method::GET, "/v1/models").await?;
        if self.gateway.json {
            return print_json(&answer);
        }
        if answer.models.is_empty() {
            println!("nothing is deployed; try `windrose deploy`");
        }
        for model in answer.models {
            for version in model.versions {
                let kind = version.kind.as_deref().unwrap_or("-");
                let state = state_word(version.state);
                println!("{:24} {:10} {:8} {:8} {}", model.name, version.version, state, kind, version.description);
                if let Some(reason) = version.reason {
                    println!("{:24} {reason}", "");
                }
            }
        }
        Ok(())
    }
}

fn state_word(state: VersionState) -> &'static str {
    match state {
        VersionState::Ready => "ready",
        VersionState::Loading => "loading",
        VersionState::Failed => "failed",
    }
}

/// The path of a model, or the refusal of a name that none has.
fn model_path(name: &str, version: Option<&str>) -> Result<String, Failure> {
    check_name(name).map_err(|error| Failure::usage(error.to_string()))?;
    match version {
        Some(version) => {
            check_version(version).map_err(|error| Failure::usage(error.to_string()))?;
            Ok(format!("/v1/models/{name}/versions/{version}"))
        }
        None => Ok(format!("/v1/models/{name}")),
    }
}

/// One version, the highest where none is named.
pub async fn find_version(client: &Client, name: &str, version: Option<&str>) -> Result<VersionView, Failure> {
    if version.is_some() {
        return client.call(Method::GET, &model_path(name, version)?).await;
    }
    let model: ModelView = client.call(Method::GET, &model_path(name, None)?).await?;
    let highest = model.versions.first().ok_or_else(|| Failure::refused(format!("`{name}` has no version")))?;
    client.call(Method::GET, &model_path(name, Some(&highest.version))?).await
}

impl Inspect {
    /// Shows.
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.client()?;
        let view = find_version(&client, &self.name, self.model_version.as_deref()).await?;
        if self.gateway.json {
            return print_json(&view);
        }
        println!("{} version {}: {}", view.name, view.summary.version, state_word(view.summary.state));
        for line in [&view.summary.description, view.summary.reason.as_ref().unwrap_or(&String::new())] {
            if !line.is_empty() {
                println!("  {line}");
            }
        }
        if let Some(deployed) = &view.summary.deployed {
            let by = view.summary.deployer.as_ref().map(|name| format!(", by {name}")).unwrap_or_default();
            println!("  deployed   {deployed}{by}");
        }
        if let Some(loaded) = &view.loaded {
            print_loaded(loaded, view.summary.kind.as_deref().unwrap_or("-"));
        }
        if let Some(preparation) = &view.preparation {
            let timings: Vec<String> =
                preparation.timings_ms.iter().map(|(stage, ms)| format!("{stage} {ms} ms")).collect();
            println!("\nprepared in  {}", timings.join(", "));
            preparation.warnings.iter().for_each(|warning| println!("warning: {warning}"));
        }
        Ok(())
    }
}

fn print_loaded(loaded: &LoadedView, kind: &str) {
    let built_in = if loaded.pass_through { " (the built-in pass-through module)" } else { "" };
    println!("  served as  {kind}\n  module     sha256 {}{built_in}", loaded.module_digest);
    println!("             {}", place(loaded.module_resident));
    if let Some(signature) = &loaded.signature {
        println!("\ncalled with");
        print_signature(signature);
    }
    for (name, graph) in &loaded.graphs {
        println!(
            "\ngraph {name}\n  sha256 {}\n  on {} {}, {}, {} session(s) of {} thread(s), in {}",
            graph.digest,
            graph.engine,
            graph.engine_version,
            providers(graph),
            graph.sessions,
            graph.threads,
            if graph.isolation == "child" { "a process of its own" } else { "the gateway's process" },
        );
        println!("  weights {}", place(graph.resident));
        print_batching(&graph.batching);
        print_signature(&graph.signature);
    }
    if !loaded.imports.is_empty() {
        println!("\nimports");
        loaded.imports.iter().for_each(|import| println!("  {:9} {}", import.status, import.name));
    }
    let grants = &loaded.grants;
    let words = |network: &[String], load: bool| {
        let mut words: Vec<&str> = network.iter().map(String::as_str).collect();
        words.extend(load.then_some("load"));
        if words.is_empty() { "nothing".to_string() } else { words.join(", ") }
    };
    println!("\ngranted      {}", words(&grants.in_force.network, grants.in_force.load));
    println!("asked for    {}", words(&grants.asked.network, grants.asked.load));
    let limits = &loaded.limits.in_force;
    println!(
        "limits       memory {}, tensors {}, wall {} ms, CPU {} ms, {} calls at a time, answer {}, log {}",
        show_size(limits.memory),
        show_size(limits.tensor_memory),
        limits.wall_ms,
        limits.cpu_ms,
        limits.concurrency,
        show_size(limits.output),
        show_size(limits.log)
    );
    match limits.reuse {
        1 => println!("instances    a fresh one for each request"),
        requests => println!("instances    each answers up to {requests} requests of one tenant"),
    }
    println!("deadline     {} ms, at most {} ms", loaded.timeout.default_ms, loaded.timeout.max_ms);
}

/// The provider, and how many nodes it and others run, where that is told.
fn providers(graph: &GraphView) -> String {
    let part = |(provider, count): (&String, &usize)| format!("{count} on {provider}");
    let nodes: Vec<String> = graph.nodes.iter().rev().map(part).collect();
    if nodes.is_empty() { graph.provider.clone() } else { format!("{} (nodes: {})", graph.provider, nodes.join(", ")) }
}

/// Where what can leave memory is.
fn place(resident: bool) -> &'static str {
    if resident { "in memory" } else { "evicted: the next call brings it back" }
}

fn print_batching(batching: &BatchingView) {
    match &batching.alone_because {
        Some(why) => println!("  each job alone: {why}"),
        None if batching.max_delay_us == 0 => println!("  together up to {} rows, no delay", batching.max_rows),
        None => println!("  together up to {} rows, {} us of delay", batching.max_rows, batching.max_delay_us),
    }
    match &batching.unpadded_because {
        Some(why) => println!("  each length by itself: {why}"),
        None if batching.padded => println!("  different lengths together, filled up"),
        None => {}
    }
    if !batching.curve.is_empty() {
        let points = batching.curve.iter().map(|p| format!("{}: {:.1}", p.rows, p.micros / p.rows.max(1) as f64));
        println!("  us a row by rows of a run  {}", points.collect::<Vec<_>>().join(", "));
    }
}

fn print_signature(signature: &SignatureView) {
    for (arrow, tensors) in [("in ", &signature.inputs), ("out", &signature.outputs)] {
        for tensor in tensors {
            let shape = match &tensor.shape {
                Some(dims) => format!("[{}]", dims.iter().map(dim_word).collect::<Vec<_>>().join(", ")),
                None => "of any rank".into(),
            };
            println!("  {arrow} {:24} {:7} {shape}", tensor.name, tensor.datatype);
        }
    }
}

fn dim_word(dim: &Dim) -> String {
    match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) if name.is_empty() => "?".into(),
        Dim::Symbol(name) => name.clone(),
    }
}

impl Delete {
    /// Removes.
    pub async fn run(self) -> Result<(), Failure> {
        let path = model_path(&self.name, self.model_version.as_deref())?;
        let what = match &self.model_version {
            Some(version) => format!("{} version {version}", self.name),
            None => format!("{} with all of its versions", self.name),
        };
        if !self.yes {
            if !std::io::stdin().is_terminal() {
                let why = "nobody can be asked, as there is no terminal: nothing was removed; say --yes to remove";
                return Err(Failure::usage(format!("{why} {what}")));
            }
            if !asked(&format!("Remove {what}? [y/N] ")) {
                return Err(Failure::usage("nothing was removed"));
            }
        }
        let answer: DeleteAnswer = self.gateway.client()?.call(Method::DELETE, &path).await?;
        if self.gateway.json {
            return print_json(&answer);
        }
        println!("removed {what} (revision {})", answer.revision);
        Ok(())
    }
}

fn asked(question: &str) -> bool {
    eprint!("{question}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}
