//! What a person deploys, as it lies on the disk: a folder with a `windrose.toml`, a component, or a bare graph.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use windrose_engine::{Batching, Device, EngineChoice, GraphOptions, Isolation, Padding};
use windrose_sandbox::Grants;

use crate::config::explain;
use crate::config::units::{Size, Span};
use crate::control::manifest::{Command, GraphEntry, Jurisdictions, Manifest, SelfTest, Timeout, WantedLimits};
use crate::control::store::hex;

/// A manifest, and where the files are that it names by digest.
#[derive(Clone, Debug)]
pub struct Project {
    /// The manifest.
    pub manifest: Manifest,
    /// Files by digest.
    pub files: BTreeMap<String, PathBuf>,
}

/// `windrose.toml` as a person writes it. Paths are relative to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenModel {
    name: String,
    #[serde(default = "first_version")]
    version: String,
    #[serde(default)]
    description: String,
    module: Option<PathBuf>,
    #[serde(default)]
    graphs: BTreeMap<String, WrittenGraph>,
    #[serde(default)]
    assets: BTreeMap<String, PathBuf>,
    #[serde(default)]
    limits: WrittenLimits,
    #[serde(default)]
    grants: Grants,
    #[serde(default)]
    command: Command,
    #[serde(default)]
    timeout: WrittenTimeout,
    weight: Option<u32>,
    #[serde(default)]
    jurisdictions: Jurisdictions,
    test: Option<WrittenTest>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGraph {
    file: PathBuf,
    #[serde(default)]
    engine: EngineChoice,
    #[serde(default)]
    device: Device,
    sessions: Option<usize>,
    threads: Option<usize>,
    queue: Option<usize>,
    queue_wait: Option<Span>,
    #[serde(default)]
    batching: Batching,
    padding: Option<Padding>,
    #[serde(default)]
    isolation: Isolation,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenLimits {
    memory: Option<Size>,
    tensor_memory: Option<Size>,
    wall: Option<Span>,
    cpu: Option<Span>,
    concurrency: Option<u32>,
    output: Option<Size>,
    log: Option<Size>,
    reuse: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenTimeout {
    default: Option<Span>,
    max: Option<Span>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTest {
    input: PathBuf,
    output: Option<PathBuf>,
    tolerance: Option<f64>,
    method: Option<String>,
    path: Option<String>,
}

fn first_version() -> String {
    "1".into()
}

/// What flags say over the files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The model's name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Graphs by name.
    pub graphs: Vec<(String, PathBuf)>,
}

impl WrittenModel {
    /// Reads the text of a `windrose.toml`.
    ///
    /// # Errors
    /// Shows the line and suggests what was meant.
    pub fn parse(file: &str, text: &str) -> Result<WrittenModel, String> {
        explain::read_toml(file, text)
    }
}

impl Project {
    /// What lies at `path`, checked as far as that goes without a gateway.
    ///
    /// # Errors
    /// Says which file or key is wrong.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Project, String> {
        let manifest_file = if path.is_dir() { path.join("windrose.toml") } else { path.to_path_buf() };
        let mut project = match manifest_file.extension().and_then(|e| e.to_str()) {
            Some("toml") => Project::from_manifest(&manifest_file, overrides)?,
            Some("wasm") => Project::from_module(path, overrides)?,
            Some("onnx") => Project::from_graph(path, overrides)?,
            _ => {
                return Err(format!(
                    "{}: deploy a folder with a windrose.toml, a component (.wasm) or a graph (.onnx)",
                    path.display()
                ));
            }
        };
        for (name, file) in &overrides.graphs {
            let digest = project.add(file)?;
            project.manifest.graphs.entry(name.clone()).or_insert_with(|| bare(String::new())).digest = digest;
        }
        project.manifest.check().map_err(|error| error.to_string())?;
        project.check_files()?;
        Ok(project)
    }

    fn empty(name: String, overrides: &Overrides) -> Project {
        let manifest = Manifest {
            name: overrides.name.clone().unwrap_or(name),
            version: overrides.version.clone().unwrap_or_else(first_version),
            description: String::new(),
            module: None,
            graphs: BTreeMap::new(),
            assets: BTreeMap::new(),
            limits: WantedLimits::default(),
            grants: Grants::default(),
            command: Command::default(),
            timeout: Timeout::default(),
            weight: 1,
            jurisdictions: Jurisdictions::default(),
            test: None,
        };
        Project { manifest, files: BTreeMap::new() }
    }

    fn from_graph(path: &Path, overrides: &Overrides) -> Result<Project, String> {
        let mut project = Project::empty(name_of(path), overrides);
        let digest = project.add(path)?;
        project.manifest.graphs.insert("model".into(), bare(digest));
        Ok(project)
    }

    fn from_module(path: &Path, overrides: &Overrides) -> Result<Project, String> {
        let mut project = Project::empty(name_of(path), overrides);
        project.manifest.module = Some(project.add(path)?);
        Ok(project)
    }

    fn from_manifest(file: &Path, overrides: &Overrides) -> Result<Project, String> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
        let written = WrittenModel::parse(&shown, &text)?;
        let folder = folder_of(file);
        let mut project = Project::empty(written.name.clone(), overrides);
        if overrides.version.is_none() {
            project.manifest.version = written.version.clone();
        }
        if let Some(module) = &written.module {
            project.manifest.module = Some(project.add(&find_module(folder, module)?)?);
        }
        for (name, graph) in &written.graphs {
            let WrittenGraph { engine, device, sessions, threads, queue, .. } = *graph;
            let (queue_wait_ms, padding) = (graph.queue_wait.map(Span::millis), graph.padding.clone());
            let WrittenGraph { batching, isolation, .. } = *graph;
            let limits = GraphOptions { engine, device, sessions, threads, queue, queue_wait_ms, ..Default::default() };
            let options = GraphOptions { batching, padding, isolation, ..limits };
            // A graph that a flag replaces need not be there.
            let replaced = overrides.graphs.iter().any(|(other, _)| other == name);
            let digest = if replaced { String::new() } else { project.add(&folder.join(&graph.file))? };
            project.manifest.graphs.insert(name.clone(), GraphEntry { digest, options });
        }
        for (path, file) in &written.assets {
            let digest = project.add(&folder.join(file))?;
            project.manifest.assets.insert(path.clone(), digest);
        }
        if let Some(test) = &written.test {
            let input = project.add(&folder.join(&test.input))?;
            let output = test.output.as_ref().map(|output| project.add(&folder.join(output))).transpose()?;
            let (method, path) = (test.method.clone(), test.path.clone());
            let tolerance = test.tolerance.unwrap_or(1e-4);
            project.manifest.test = Some(SelfTest { input, output, tolerance, method, path });
        }
        let manifest = &mut project.manifest;
        manifest.description = written.description;
        manifest.jurisdictions = written.jurisdictions;
        manifest.limits = written.limits.wanted();
        manifest.grants = written.grants;
        manifest.command = written.command;
        manifest.weight = written.weight.unwrap_or(1);
        manifest.timeout = written.timeout.wanted();
        Ok(project)
    }

    /// Takes a file in, and returns its digest.
    fn add(&mut self, file: &Path) -> Result<String, String> {
        let digest = digest_file(file).map_err(|error| format!("{}: {error}", file.display()))?;
        self.files.insert(digest.clone(), file.to_path_buf());
        Ok(digest)
    }

    /// Reads graphs and module as far as that is possible here.
    fn check_files(&self) -> Result<(), String> {
        for (name, graph) in &self.manifest.graphs {
            let Some(file) = self.files.get(&graph.digest) else { continue };
            let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            windrose_engine::onnx::inspect(&bytes)
                .map_err(|error| format!("graph `{name}` ({}): {error}", file.display()))?;
        }
        if let Some(file) = self.manifest.module.as_ref().and_then(|digest| self.files.get(digest)) {
            let mut head = [0; 8];
            let read = std::fs::File::open(file).and_then(|mut open| std::io::Read::read_exact(&mut open, &mut head));
            if read.is_err() || head[..4] != *b"\0asm" {
                return Err(format!("{}: this is no WebAssembly", file.display()));
            }
        }
        Ok(())
    }
}

impl WrittenLimits {
    fn wanted(&self) -> WantedLimits {
        WantedLimits {
            memory: self.memory.map(|size| size.0),
            tensor_memory: self.tensor_memory.map(|size| size.0),
            wall_ms: self.wall.map(Span::millis),
            cpu_ms: self.cpu.map(Span::millis),
            concurrency: self.concurrency,
            output: self.output.map(|size| size.0),
            log: self.log.map(|size| size.0),
            reuse: self.reuse,
        }
    }
}

impl WrittenTimeout {
    /// What is left out follows what is written; what is written is taken as it is, for the manifest to be checked by.
    fn wanted(&self) -> Timeout {
        let usual = Timeout::default();
        let (default, max) = (self.default.map(Span::millis), self.max.map(Span::millis));
        Timeout {
            default_ms: default.unwrap_or_else(|| usual.default_ms.min(max.unwrap_or(u64::MAX))),
            max_ms: max.unwrap_or_else(|| usual.max_ms.max(default.unwrap_or(0))),
        }
    }
}

fn bare(digest: String) -> GraphEntry {
    GraphEntry { digest, options: GraphOptions::default() }
}

/// Where a file is; what is named alone is in the working folder.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Beside the manifest, else where this checkout builds its guests.
fn find_module(folder: &Path, module: &Path) -> Result<PathBuf, String> {
    let beside = folder.join(module);
    if beside.is_file() {
        return Ok(beside);
    }
    let whole = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
    let built = whole.ancestors().map(|above| above.join("target/guests").join(module)).find(|path| path.is_file());
    built.ok_or_else(|| {
        let (beside, module) = (beside.display(), module.display());
        format!("there is neither {beside} nor target/guests/{module}: build the module first")
    })
}

/// A model's name from a file's: lower case, with hyphens for what a name cannot have.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let clean: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect();
    let clean = clean.trim_start_matches(['.', '_', '-']);
    if clean.is_empty() { "model".into() } else { clean.into() }
}

fn digest_file(file: &Path) -> std::io::Result<String> {
    let mut open = std::fs::File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut open, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_folder_becomes_a_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let text = "name = \"m\"\nversion = \"7\"\nmodule = \"m.wasm\"\n[assets]\n\"a/b.txt\" = \"b.txt\"\n\
                    [limits]\nmemory = \"64MiB\"\nwall = \"5s\"\n[grants]\nload = true\n[timeout]\nmax = \"10s\"\n";
        std::fs::write(folder.path().join("windrose.toml"), text).unwrap();
        std::fs::write(folder.path().join("m.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
        std::fs::write(folder.path().join("b.txt"), "b").unwrap();
        let project = Project::open(folder.path(), &Overrides::default()).unwrap();
        let manifest = &project.manifest;
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("m", "7"));
        assert_eq!((manifest.limits.memory, manifest.limits.wall_ms), (Some(64 << 20), Some(5000)));
        assert_eq!((manifest.timeout.default_ms, manifest.timeout.max_ms), (10_000, 10_000));
        assert!(manifest.grants.load && manifest.assets.contains_key("a/b.txt"));
        assert_eq!(project.files.len(), 2);
    }

    #[test]
    fn only_a_timeout_that_is_left_out_follows_the_other() {
        let opened = |timeout: &str| {
            let folder = tempfile::tempdir().unwrap();
            let text = format!("name = \"m\"\nmodule = \"m.wasm\"\n[timeout]\n{timeout}\n");
            std::fs::write(folder.path().join("windrose.toml"), text).unwrap();
            std::fs::write(folder.path().join("m.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
            let project = Project::open(folder.path(), &Overrides::default());
            project.map(|project| (project.manifest.timeout.default_ms, project.manifest.timeout.max_ms))
        };
        assert_eq!(opened(""), Ok((30_000, 120_000)));
        assert_eq!(opened("max = \"10s\""), Ok((10_000, 10_000)));
        assert_eq!(opened("default = \"3m\""), Ok((180_000, 180_000)));
        assert_eq!(opened("default = \"10s\"\nmax = \"20s\""), Ok((10_000, 20_000)));
        let error = opened("default = \"20s\"\nmax = \"10s\"").unwrap_err();
        assert_eq!(error, "timeout.default_ms: is longer than timeout.max_ms");
    }

    #[test]
    fn mistakes_are_shown_where_they_stand() {
        let error = WrittenModel::parse("windrose.toml", "name = \"m\"\n[limits]\nmemori = 1\n").unwrap_err();
        assert!(error.starts_with("windrose.toml:3:1: ") && error.ends_with("did you mean `memory`?"), "{error}");
        let missing = Project::open(Path::new("/nonexistent/x.onnx"), &Overrides::default()).unwrap_err();
        assert!(missing.contains("x.onnx"));
    }

    #[test]
    fn a_file_that_is_named_alone_is_in_the_working_folder() {
        for (file, folder) in [("windrose.toml", "."), ("a/windrose.toml", "a"), ("/windrose.toml", "/")] {
            assert_eq!(folder_of(Path::new(file)), Path::new(folder), "{file}");
        }
        assert!(folder_of(Path::new("windrose.toml")).canonicalize().is_ok());
    }

    #[test]
    fn names_come_from_files() {
        assert_eq!(name_of(Path::new("a/My Model (2).onnx")), "my-model--2-");
        assert_eq!(name_of(Path::new("...onnx")), "model");
    }

    proptest! {
        #[test]
        fn any_file_name_gives_a_name(stem in "\\PC{1,20}") {
            let name = name_of(Path::new(&format!("{}.onnx", stem.replace('/', "_"))));
            prop_assert!(crate::control::manifest::check_name(&name).is_ok(), "{name}");
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "(?s).{0,300}") {
            let _ = WrittenModel::parse("windrose.toml", &text);
        }
    }
}
