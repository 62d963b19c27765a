//! `windrose deploy` and `windrose validate`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use windrose_engine::Dim;

use super::client::Client;
use super::project::{Overrides, Project};
use super::{Failure, Gateway, print_json};
use crate::config::units::show_size;
use crate::control::api::types::{
    DeployAnswer, LoadedView, ModelView, TensorView, ValidateAnswer, VersionState, VersionView,
};
use crate::control::log::Preparation;
use crate::control::prepare::{Event, Status};
use crate::http::oip::halves;

/// What to deploy, and what flags say over it.
#[derive(clap::Args)]
struct Source {
    /// A folder with a windrose.toml, a component (.wasm) or a graph (.onnx).
    path: PathBuf,
    /// The model's name [default: the manifest's, else the file's].
    #[arg(long)]
    name: Option<String>,
    /// The model's version [default: the manifest's, else 1].
    #[arg(long = "version", visible_alias = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    /// A graph that the module calls by NAME. May be repeated.
    #[arg(long = "graph", value_name = "NAME=FILE", value_parser = graph)]
    graphs: Vec<(String, PathBuf)>,
}

fn graph(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("write NAME=FILE")?;
    Ok((name.to_string(), file.into()))
}

impl Source {
    fn open(&self) -> Result<Project, Failure> {
        let overrides =
            Overrides { name: self.name.clone(), version: self.model_version.clone(), graphs: self.graphs.clone() };
        Project::open(&self.path, &overrides).map_err(Failure::usage)
    }
}

/// Upload a model and make it live.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(after_help = "Examples:\n  windrose deploy model.onnx --name flowers\n  windrose deploy examples/magika\n  \
    windrose deploy ocr.wasm --graph detect=detect.onnx --graph read=read.onnx")]
pub struct Deploy {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    gateway: Gateway,
}

/// Check a model without deploying it.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(
    after_help = "Without --offline the gateway is asked as well, where it can be reached: it compiles, loads and \
    tests everything but does not go live."
)]
pub struct Validate {
    #[command(flatten)]
    source: Source,
    /// Do not ask a gateway.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Deploy {
    /// Deploys.
    pub async fn run(self) -> Result<(), Failure> {
        let project = self.source.open()?;
        let client = self.gateway.client()?;
        let started = Instant::now();
        let show = Show::new(self.gateway.json);
        upload(&client, &project, &show).await?;
        let (name, version) = (&project.manifest.name, &project.manifest.version);
        let path = format!("/v1/models/{name}/versions/{version}");
        let answer: DeployAnswer =
            client.progress(Method::PUT, &path, project.manifest.to_json(), |event| show.stage(&event)).await?;
        show.end();
        if self.gateway.json {
            return print_json(&answer);
        }
        let what = if answer.changed { "is live" } else { "was live already, with just this content" };
        println!(
            "{name} version {version} {what} (revision {}, {:.1} s)",
            answer.revision,
            started.elapsed().as_secs_f64()
        );
        tell(&answer.preparation);
        let model: ModelView = client.call(Method::GET, &format!("/v1/models/{name}")).await?;
        let higher = unversioned(&model).filter(|unversioned| unversioned != version);
        if let Some(higher) = higher {
            println!("Calls without a version get version {higher}, which is higher");
        }
        let view: VersionView = client.call(Method::GET, &path).await?;
        if let Some(loaded) = &view.loaded {
            let url = client.data_url().await?;
            let version = higher.map(|_| version.as_str());
            println!("\nTry it:\n  {}", try_line(&url, (name.as_str(), version), view.summary.kind.as_deref(), loaded));
        }
        Ok(())
    }
}

impl Validate {
    /// Checks.
    pub async fn run(self) -> Result<(), Failure> {
        let project = self.source.open()?;
        let (name, version) = (&project.manifest.name, &project.manifest.version);
        if !self.gateway.json {
            println!("{name} version {version}: manifest and files are in order");
        }
        let client = self.gateway.client()?;
        let unreachable = match self.offline {
            true => Some("not asked".to_string()),
            false => match client.status().await {
                Ok(_) => None,
                Err(failure) if failure.status == 3 => Some(failure.message),
                Err(failure) => return Err(failure),
            },
        };
        if let Some(why) = unreachable {
            if self.gateway.json {
                return print_json(&serde_json::json!({ "manifest": project.manifest, "gateway": null }));
            }
            println!("The gateway's dry run was left out: {why}");
            return Ok(());
        }
        let show = Show::new(self.gateway.json);
        upload(&client, &project, &show).await?;
        let json = project.manifest.to_json();
        let answer: ValidateAnswer =
            client.progress(Method::POST, "/v1/validate", json, |event| show.stage(&event)).await?;
        show.end();
        if self.gateway.json {
            return print_json(&serde_json::json!({ "manifest": project.manifest, "gateway": answer }));
        }
        println!("The gateway compiled, loaded and tested it: it would go live as a {}", answer.kind);
        tell(&answer.preparation);
        Ok(())
    }
}

fn tell(preparation: &Preparation) {
    for warning in &preparation.warnings {
        eprintln!("warning: {warning}");
    }
}

/// Uploads what the gateway does not have.
async fn upload(client: &Client, project: &Project, show: &Show) -> Result<(), Failure> {
    let named: std::collections::BTreeSet<&str> =
        project.manifest.blobs().into_iter().map(|(_, digest)| digest).collect();
    for digest in named {
        let Some(file) = project.files.get(digest) else { continue };
        if client.has_blob(digest).await? {
            continue;
        }
        let size = std::fs::metadata(file).map(|meta| meta.len()).unwrap_or(0);
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let bar = show.upload(&name, size);
        let moving = bar.clone();
        client.put_blob(digest, file, move |count| moving.inc(count)).await?;
        bar.finish_and_clear();
        show.line(&format!("uploaded {name} ({})", show_size(size)));
    }
    Ok(())
}

/// Progress, for a person: bars and a spinner on a terminal, lines elsewhere, nothing for scripts.
struct Show {
    quiet: bool,
    spinner: ProgressBar,
}

impl Show {
    fn new(quiet: bool) -> Show {
        let spinner =
            if quiet || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        spinner.enable_steady_tick(Duration::from_millis(120));
        Show { quiet, spinner }
    }

    fn upload(&self, name: &str, size: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(size);
        let style = ProgressStyle::with_template("uploading {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(name.to_string());
        bar
    }

    fn stage(&self, event: &Event) {
        let words = words(&event.stage);
        match (event.status, event.ms) {
            (Status::Started, _) => self.spinner.set_message(format!("{words} ...")),
            (Status::Done, Some(ms)) if ms > 0 => self.line(&format!("{words}: {ms} ms")),
            (Status::Done, _) => {}
        }
    }

    fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.spinner.is_hidden() {
            eprintln!("{text}");
        } else {
            self.spinner.println(text);
        }
    }

    fn end(&self) {
        self.spinner.finish_and_clear();
    }
}

fn words(stage: &str) -> String {
    match stage {
        "wait" => "waiting for its turn".into(),
        "initialise" => "initialising the module".into(),
        "compile" => "compiling the module".into(),
        "describe" => "asking the module for its signature".into(),
        "test" => "self-test".into(),
        "load" => "loading into the server".into(),
        "publish" => "going live".into(),
        stage => match stage.strip_prefix("graph ") {
            Some(name) => format!("loading graph {name}"),
            None => stage.to_string(),
        },
    }
}

/// The version that a call gets which names none.
fn unversioned(model: &ModelView) -> Option<&str> {
    model.versions.iter().find(|version| version.state == VersionState::Ready).map(|version| version.version.as_str())
}

/// A command that would call the model, by a version where it needs one.
fn try_line(url: &str, (name, version): (&str, Option<&str>), kind: Option<&str>, loaded: &LoadedView) -> String {
    let target = version.map_or_else(|| name.to_string(), |version| format!("{name}/versions/{version}"));
    match (kind, &loaded.signature) {
        (Some("model"), Some(signature)) => {
            // The protocol has no JSON for these, which is all that fits on a line of curl.
            if signature.inputs.iter().any(|input| halves::is_half(&input.datatype)) {
                let inputs = signature.inputs.iter().map(|i| format!(" --input {}=@FILE", i.name));
                let version = version.map(|version| format!(" --version {version}"));
                return format!("windrose infer {name}{}", version.into_iter().chain(inputs).collect::<String>());
            }
            let inputs: Option<Vec<String>> = signature.inputs.iter().map(example).collect();
            match inputs {
                Some(inputs) => {
                    format!("curl -s {url}/v2/models/{target}/infer -d '{{\"inputs\": [{}]}}'", inputs.join(", "))
                }
                None => format!("curl -s {url}/v2/models/{target}"),
            }
        }
        (Some("command"), _) => format!("curl -s {url}/models/{target}/ --data-binary @FILE"),
        _ => format!("curl -s {url}/models/{target}/"),
    }
}

/// An input as JSON, of zeros or of one short text; `None` where it would not fit on a screen.
fn example(view: &TensorView) -> Option<String> {
    let shape = view.shape.as_ref()?.iter().map(|dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Symbol(_) => 1,
    });
    let shape: Vec<u64> = shape.collect();
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|count| *count <= 16)?;
    let element = match view.datatype.as_str() {
        "BYTES" => "\"text\"",
        "BOOL" => "false",
        _ => "0",
    };
    let data = vec![element; usize::try_from(count).ok()?].join(", ");
    let TensorView { name, datatype, .. } = view;
    Some(format!("{{\"name\": \"{name}\", \"datatype\": \"{datatype}\", \"shape\": {shape:?}, \"data\": [{data}]}}"))
}

#[cfg(test)]
mod tests {
    use windrose_engine::{DataType, TensorSpec};

    use super::*;

    #[test]
    fn the_example_is_json_that_fits() {
        let spec = |shape: Vec<Dim>, datatype| TensorSpec { name: "x".into(), datatype, shape: Some(shape) };
        let small = spec(vec![Dim::Symbol(String::new()), Dim::Fixed(3)], DataType::Fp32);
        let text = example(&TensorView::from(&small)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["shape"], serde_json::json!([1, 3]));
        assert_eq!(value["data"].as_array().unwrap().len(), 3);
        assert!(example(&TensorView::from(&spec(vec![Dim::Fixed(1000)], DataType::Fp32))).is_none());
    }
}
