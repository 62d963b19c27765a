//! Settings: as written in a file, the environment and flags, then as true. The only reader of files and environment
//! for settings; everything is validated before a port is bound.

mod client;
pub mod deployers;
pub mod explain;
pub mod fleet;
pub mod keys;
pub mod reference;
pub mod tenants;
pub mod units;
pub mod written;

pub use client::ClientConfig;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windrose_engine::{Device, EngineChoice, EnginesConfig, GraphOptions, Isolation, OnnxRuntimeLibrary};
use windrose_sandbox::{Grants, Limits};

use self::deployers::Deployer;
use self::keys::Keys;
use self::tenants::Tenant;
use crate::http::HttpConfig;
use written::{PREFIX, Written, keys};

/// Names the configuration file of `windrose serve`.
pub const FILE_VARIABLE: &str = "WINDROSE_CONFIG";

/// What is wrong with the settings. The message names the key and where it was written.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Everything that `windrose serve` runs on, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data listener.
    pub data: DataConfig,
    /// The control listener.
    pub control: ControlConfig,
    /// Where everything is kept.
    pub dir: PathBuf,
    /// How long a file that no model names is kept after its upload, and a compiled module that no model has.
    pub keep: Duration,
    /// Revisions of the log that are kept.
    pub revisions: u64,
    /// What `auto` means to a graph.
    pub engine: EngineChoice,
    /// Where ONNX Runtime is.
    pub engines: EnginesConfig,
    /// The least isolation of a graph.
    pub isolation: Isolation,
    /// What children that run graphs may use.
    pub children: Children,
    /// Instances at the same time.
    pub instances: u32,
    /// What stays in memory.
    pub memory: MemoryConfig,
    /// The most that a model gets.
    pub ceiling: Ceiling,
    /// The budget of one preparation.
    pub prepare: Budget,
    /// The other sites; `None` where this gateway is alone.
    pub fleet: Option<fleet::FleetConfig>,
    /// What is written to standard error.
    pub log: LogConfig,
}

/// The data listener.
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Bounds of what clients send.
    pub http: HttpConfig,
    /// The file of tenants; `None` where everybody is the same tenant.
    pub tenants: Option<PathBuf>,
}

/// The control listener.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The largest upload, bytes.
    pub max_blob: u64,
    /// Preparations at the same time.
    pub preparations: usize,
    /// Deployments that may wait.
    pub queue: usize,
    /// The file of deployers; `None` where only the operator deploys.
    pub deployers: Option<PathBuf>,
}

/// Budgets for what may leave memory, bytes.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct MemoryConfig {
    /// Of compiled modules.
    pub modules: u64,
    /// Of graphs' weights; `None` for any amount.
    pub weights: Option<u64>,
}

/// The most that a model gets.
#[derive(Clone, Debug)]
pub struct Ceiling {
    /// Of what a call may use.
    pub limits: Limits,
    /// Of what may be granted.
    pub grants: Grants,
    /// Sessions of one graph.
    pub sessions: usize,
    /// Threads of one session.
    pub threads: usize,
}

impl Ceiling {
    /// The sessions of a graph and the threads of each on a machine with `cores`: as many as was asked for or, where
    /// nothing was, as keep all cores busy with one thread each; one session on a device, which runs one graph at a time.
    pub fn parallel(&self, wanted: &GraphOptions, cores: usize) -> (usize, usize) {
        let threads = wanted.threads.unwrap_or(1).min(self.threads);
        let sessions = if wanted.device == Device::Cpu { (cores / threads.max(1)).max(1) } else { 1 };
        (wanted.sessions.unwrap_or(sessions).min(self.sessions), threads)
    }
}

/// What children that run graphs may use.
#[derive(Clone, Copy, Debug)]
pub struct Children {
    /// Memory of each, bytes.
    pub memory: u64,
    /// The longest run.
    pub run: Duration,
    /// How many at the same time.
    pub most: usize,
}

/// What one preparation may use.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Budget {
    /// Memory, bytes.
    pub memory: u64,
    /// CPU time.
    pub cpu: Duration,
    /// Wall time.
    pub wall: Duration,
    /// Of that, for trying one graph with several rows.
    pub trial: Duration,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// One JSON object a line; else text.
    pub json: bool,
    /// Which events.
    pub filter: String,
}

/// Where the settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file, when one was named.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// `table.key=value` from flags; they win.
    pub set: Vec<(String, String)>,
}

impl Sources {
    /// The environment of this process, and what the flags say.
    pub fn process(file: Option<PathBuf>, set: Vec<(String, String)>) -> Sources {
        Sources { file, environment: environment(), set }
    }
}

/// The environment of this process. Bytes that are no text become such as no setting takes.
pub fn environment() -> Vec<(String, String)> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

impl Config {
    /// Reads and validates everything.
    ///
    /// # Errors
    /// Names the key, and where it was written.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut written = Written::defaults().map_err(|e| ConfigError(e.to_string()))?;
        if let Some(file) = &sources.file {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|e| ConfigError(format!("{name}: {e}")))?;
            written.merge(explain::read_toml(&name, &text).map_err(ConfigError)?);
        }
        for (variable, value) in &sources.environment {
            match keys().find(|key| key.variable() == *variable) {
                Some(key) => {
                    written.merge(Written::from_pair(key, value).map_err(|e| ConfigError(format!("{variable}: {e}")))?);
                }
                None => known(variable, value)?,
            }
        }
        for (path, value) in &sources.set {
            written.merge(set_one(path, value)?);
        }
        validate(written, &sources.environment)
    }
}

/// Whether a variable that is no setting may be there.
///
/// # Errors
/// When it looks like a setting and is none.
fn known(variable: &str, value: &str) -> Result<(), ConfigError> {
    let others = [FILE_VARIABLE, client::URL_VARIABLE, client::TOKEN_VARIABLE, client::KEY_VARIABLE];
    if !variable.starts_with(PREFIX) || others.contains(&variable) || is_link(variable, value) {
        return Ok(());
    }
    let settings: Vec<String> = keys().map(|key| key.variable()).collect();
    let hint = explain::nearest(variable, settings.iter().map(String::as_str).chain(others));
    let hint = hint.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    Err(ConfigError(format!("the environment variable `{variable}` is no setting{hint}")))
}

/// Whether Kubernetes or Docker wrote this variable, into each container beside a service or container of our name:
/// `WINDROSE_SERVICE_HOST`, `WINDROSE_PORT=tcp://10.0.0.1:8000`, `WINDROSE_PORT_8000_TCP_ADDR`.
fn is_link(variable: &str, value: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    variable.contains("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable.split_once("_PORT_").is_some_and(numbered)
        || variable.ends_with("_PORT") && value.contains("://")
}

fn set_one(path: &str, value: &str) -> Result<Written, ConfigError> {
    let Some(key) = keys().find(|key| key.path() == *path) else {
        let known: Vec<String> = keys().map(|key| key.path()).collect();
        let hint = explain::nearest(path, known.iter().map(String::as_str));
        let hint = hint.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        return Err(ConfigError(format!("there is no setting `{path}`{hint}")));
    };
    Written::from_pair(key, value).map_err(|e| ConfigError(format!("{path}: {e}")))
}

/// A key's value, or the error that it is missing; only a default that was forgotten can cause that.
fn need<T>(value: Option<T>, key: &str) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError(format!("{key} has no value")))
}

fn address(value: Option<String>, key: &str) -> Result<SocketAddr, ConfigError> {
    let text = need(value, key)?;
    text.parse().map_err(|_| ConfigError(format!("{key}: `{text}` is not an address and port such as 127.0.0.1:8000")))
}

fn positive<T: PartialOrd + From<u8>>(value: Option<T>, key: &str) -> Result<T, ConfigError> {
    let value = need(value, key)?;
    if value < T::from(1) { Err(ConfigError(format!("{key} must be at least 1"))) } else { Ok(value) }
}

fn size(value: Option<units::Size>, key: &str) -> Result<u64, ConfigError> {
    positive(value.map(|size| size.0), key)
}

fn in_memory(value: Option<units::Size>, key: &str) -> Result<usize, ConfigError> {
    usize::try_from(size(value, key)?).map_err(|_| ConfigError(format!("{key} is more than this machine can address")))
}

fn span(value: Option<units::Span>, key: &str) -> Result<Duration, ConfigError> {
    let value = need(value, key)?.0;
    if value.is_zero() { Err(ConfigError(format!("{key} must be more than nothing"))) } else { Ok(value) }
}

fn validate(written: Written, environment: &[(String, String)]) -> Result<Config, ConfigError> {
    let dir = match written.storage.dir {
        Some(dir) => dir,
        None => default_dir(environment)?,
    };
    let data = DataConfig {
        listen: address(written.data.listen, "data.listen")?,
        http: HttpConfig {
            max_body: in_memory(written.data.max_body, "data.max_body")?,
            max_body_total: in_memory(written.data.max_body_total, "data.max_body_total")?,
            header_timeout: span(written.data.header_timeout, "data.header_timeout")?,
            write_timeout: span(written.data.write_timeout, "data.write_timeout")?,
            max_connections: positive(written.data.max_connections, "data.max_connections")?,
            drain: need(written.data.drain, "data.drain")?.0,
        },
        tenants: written.data.tenants,
    };
    let control = ControlConfig {
        listen: address(written.control.listen, "control.listen")?,
        max_blob: size(written.control.max_blob, "control.max_blob")?,
        preparations: positive(written.control.preparations, "control.preparations")?,
        queue: need(written.control.queue, "control.queue")?,
        deployers: written.control.deployers,
    };
    // Read again when they are needed, and then whenever they change.
    data.tenants.as_deref().map(Keys::<Tenant>::load).transpose()?;
    control.deployers.as_deref().map(Keys::<Deployer>::load).transpose()?;
    if control.listen == data.listen && control.listen.port() != 0 {
        return Err(ConfigError("data.listen and control.listen must differ".into()));
    }
    let prepare = Budget {
        memory: size(written.prepare.memory, "prepare.memory")?,
        cpu: span(written.prepare.cpu, "prepare.cpu")?,
        wall: span(written.prepare.wall, "prepare.wall")?,
        trial: span(written.prepare.trial, "prepare.trial")?,
    };
    let children = Children {
        memory: size(written.engines.child_memory, "engines.child_memory")?,
        run: span(written.engines.child_run, "engines.child_run")?,
        most: need(written.engines.children, "engines.children")?,
    };
    Ok(Config {
        data,
        control,
        keep: need(written.storage.keep, "storage.keep")?.0,
        revisions: positive(written.storage.revisions, "storage.revisions")?,
        engine: need(written.engines.default, "engines.default")?,
        isolation: need(written.engines.isolation, "engines.isolation")?,
        children,
        engines: engines(written.engines.onnxruntime, written.engines.search, &dir)?,
        instances: positive(written.sandbox.instances, "sandbox.instances")?,
        memory: MemoryConfig {
            modules: size(written.memory.modules, "memory.modules")?,
            weights: written.memory.weights.map(|weights| size(Some(weights), "memory.weights")).transpose()?,
        },
        ceiling: ceiling(written.ceiling)?,
        prepare,
        fleet: fleet(written.fleet)?,
        log: log(written.log)?,
        dir,
    })
}

fn ceiling(written: written::Ceiling) -> Result<Ceiling, ConfigError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let or_cores = |value: usize| if value == 0 { cores } else { value };
    let memory = size(written.memory, "ceiling.memory")?;
    if memory > 4 << 30 {
        return Err(ConfigError("ceiling.memory: a 32-bit linear memory holds at most 4GiB".into()));
    }
    let limits = Limits {
        memory,
        tensor_memory: size(written.tensor_memory, "ceiling.tensor_memory")?,
        wall_ms: positive(written.wall.map(units::Span::millis), "ceiling.wall")?,
        cpu_ms: positive(written.cpu.map(units::Span::millis), "ceiling.cpu")?,
        concurrency: positive(written.concurrency, "ceiling.concurrency")?,
        output: size(written.output, "ceiling.output")?,
        log: need(written.log, "ceiling.log")?.0,
        reuse: positive(written.reuse, "ceiling.reuse")?,
    };
    let network = need(written.network, "ceiling.network")?.0;
    let grants = Grants { network, load: need(written.load, "ceiling.load")? };
    let sessions = or_cores(need(written.sessions, "ceiling.sessions")?);
    let threads = or_cores(need(written.threads, "ceiling.threads")?);
    Ok(Ceiling { limits, grants, sessions, threads })
}

fn engines(library: Option<String>, search: Option<units::List>, dir: &Path) -> Result<EnginesConfig, ConfigError> {
    let onnxruntime = match need(library, "engines.onnxruntime")?.as_str() {
        "search" => OnnxRuntimeLibrary::Search,
        "off" => OnnxRuntimeLibrary::Off,
        path if Path::new(path).is_file() => OnnxRuntimeLibrary::Path(path.into()),
        path => {
            let message = format!("engines.onnxruntime: there is no file `{path}`; or write `search` or `off`");
            return Err(ConfigError(message));
        }
    };
    let mut folders: Vec<PathBuf> = need(search, "engines.search")?.0.into_iter().map(PathBuf::from).collect();
    folders.push(dir.join("onnxruntime"));
    // `make onnxruntime` in a checkout puts the library into target/onnxruntime, beside target/release.
    if let Some(target) = std::env::current_exe().ok().as_deref().and_then(Path::parent).and_then(Path::parent) {
        folders.push(target.join("onnxruntime"));
    }
    Ok(EnginesConfig { onnxruntime, search: folders })
}

fn fleet(written: written::Fleet) -> Result<Option<fleet::FleetConfig>, ConfigError> {
    let Some(file) = written.file.filter(|file| !file.as_os_str().is_empty()) else { return Ok(None) };
    let file_of = |value: Option<PathBuf>, key: &str| {
        let path = need(value, key)?;
        if path.is_file() {
            Ok(path)
        } else {
            Err(ConfigError(format!("{key}: there is no file `{}`", path.display())))
        }
    };
    let places = |value: Option<units::List>, key: &str| {
        fleet::jurisdictions(&need(value, key)?.0).map_err(|message| ConfigError(format!("{key}: {message}")))
    };
    let allow = places(written.allow, "fleet.allow")?;
    let listen = need(written.listen, "fleet.listen")?;
    let config = fleet::FleetConfig {
        site: need(written.site, "fleet.site")?,
        listen: if listen.is_empty() { None } else { Some(address(Some(listen), "fleet.listen")?) },
        certificate: file_of(written.certificate, "fleet.certificate")?,
        key: file_of(written.key, "fleet.key")?,
        authority: file_of(written.authority, "fleet.authority")?,
        hold: in_memory(written.hold, "fleet.hold")?,
        allow: (!allow.is_empty()).then_some(allow),
        deny: places(written.deny, "fleet.deny")?,
        file,
    };
    // A file that is wrong stops the start, before a port is bound.
    fleet::FleetFile::load(&config.file, &config.site)?;
    Ok(Some(config))
}

fn log(written: written::Log) -> Result<LogConfig, ConfigError> {
    let format = need(written.format, "log.format")?;
    let json = match format.as_str() {
        "text" => false,
        "json" => true,
        other => return Err(ConfigError(format!("log.format: `{other}` is neither `text` nor `json`"))),
    };
    let filter = need(written.filter, "log.filter")?;
    tracing_subscriber::EnvFilter::try_new(&filter).map_err(|e| ConfigError(format!("log.filter: {e}")))?;
    Ok(LogConfig { json, filter })
}

/// `$XDG_DATA_HOME/windrose`, else `~/.local/share/windrose`.
///
/// # Errors
/// When the environment has neither variable.
pub fn default_dir(environment: &[(String, String)]) -> Result<PathBuf, ConfigError> {
    let variable = |name: &str| {
        environment.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| PathBuf::from(value))
    };
    variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("windrose"))
        .ok_or_else(|| ConfigError("storage.dir: there is neither XDG_DATA_HOME nor HOME; name a folder".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(environment: &[(&str, &str)], set: &[(&str, &str)]) -> Sources {
        let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let mut environment: Vec<(String, String)> = own(environment);
        environment.push(("HOME".into(), "/home/somebody".into()));
        Sources { file: None, environment, set: own(set) }
    }

    #[test]
    fn defaults_grant_nothing_and_bind_loopback() {
        let config = Config::load(&sources(&[], &[])).unwrap();
        assert!(config.data.listen.ip().is_loopback() && config.control.listen.ip().is_loopback());
        assert_eq!(config.ceiling.grants, Grants::default());
        assert_eq!(config.dir, Path::new("/home/somebody/.local/share/windrose"));
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("w.toml");
        std::fs::write(&file, "[data]\nlisten = \"127.0.0.1:1\"\nmax_body = 1\n[control]\nlisten = \"127.0.0.1:9\"\n")
            .unwrap();
        let mut sources = sources(
            &[("WINDROSE_DATA_LISTEN", "127.0.0.1:2"), ("WINDROSE_DATA_MAX_BODY", "2MiB")],
            &[("data.listen", "127.0.0.1:3"), ("ceiling.network", "a.example, b.example:443")],
        );
        sources.file = Some(file);
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.data.listen.port(), 3);
        assert_eq!(config.data.http.max_body, 2 << 20);
        assert_eq!(config.control.listen.port(), 9);
        assert_eq!(config.ceiling.grants.network, ["a.example", "b.example:443"]);
    }

    #[test]
    fn the_ceiling_cuts_down_what_was_asked_for() {
        let set = [("ceiling.sessions", "3"), ("ceiling.threads", "4")];
        let ceiling = Config::load(&sources(&[], &set)).unwrap().ceiling;
        let parallel = |device, sessions, threads, cores| {
            ceiling.parallel(&GraphOptions { device, sessions, threads, ..GraphOptions::default() }, cores)
        };
        // Asked for, and what comes of it on how many cores: sessions, threads.
        for (asked, cores, expected) in [
            ((None, None), 2, (2, 1)),
            ((None, None), 8, (3, 1)),
            ((None, Some(2)), 2, (1, 2)),
            ((None, Some(2)), 5, (2, 2)),
            ((None, Some(64)), 2, (1, 4)),
            ((Some(64), Some(64)), 2, (3, 4)),
            ((Some(2), Some(2)), 1, (2, 2)),
        ] {
            assert_eq!(parallel(Device::Cpu, asked.0, asked.1, cores), expected, "{asked:?} on {cores}");
        }
        assert_eq!(parallel(Device::Cuda, None, None, 16), (1, 1));
        assert_eq!(parallel(Device::Cuda, Some(2), None, 16), (2, 1));
    }

    #[test]
    fn variables_of_commands_and_orchestrators_are_no_mistakes() {
        for (variable, value) in [
            (FILE_VARIABLE, "/etc/windrose.toml"),
            (client::TOKEN_VARIABLE, "secret"),
            (client::URL_VARIABLE, "http://127.0.0.1:8001"),
            ("WINDROSE_PORT", "tcp://10.0.0.1:8000"),
            ("WINDROSE_DATA_SERVICE_HOST", "10.0.0.1"),
            ("WINDROSE_SERVICE_PORT_HTTP", "8000"),
            ("WINDROSE_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(Config::load(&sources(&[(variable, value)], &[])).is_ok(), "{variable}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (key, value, expected) in [
            ("data.listen", "here", "data.listen: `here` is not an address"),
            ("ceiling.memory", "8GiB", "ceiling.memory: a 32-bit"),
            ("sandbox.instances", "0", "sandbox.instances must be at least 1"),
            ("ceiling.memroy", "1", "did you mean `ceiling.memory`?"),
            ("log.format", "xml", "log.format: `xml`"),
            ("engines.onnxruntime", "/no/such/file", "engines.onnxruntime: there is no file"),
            ("storage.revisions", "0", "storage.revisions must be at least 1"),
            ("prepare.wall", "0s", "prepare.wall must be"),
            ("prepare.trial", "0s", "prepare.trial must be"),
            ("ceiling.load", "perhaps", "ceiling.load: "),
            ("engines.isolation", "none", "engines.isolation: "),
            ("engines.child_run", "0s", "engines.child_run must be"),
        ] {
            let error = Config::load(&sources(&[], &[(key, value)])).unwrap_err();
            assert!(error.0.contains(expected), "{key}={value}: {error}");
        }
        for (variable, value, expected) in [
            (
                "WINDROSE_CEILING_MEMROY",
                "1GiB",
                "`WINDROSE_CEILING_MEMROY` is no setting; did you mean `WINDROSE_CEILING_MEMORY`?",
            ),
            ("WINDROSE_TOKN", "x", "did you mean `WINDROSE_TOKEN`?"),
            ("WINDROSE_DATA_PORT", "80", "`WINDROSE_DATA_PORT` is no setting"),
        ] {
            let error = Config::load(&sources(&[(variable, value)], &[])).unwrap_err();
            assert!(error.0.contains(expected), "{variable}={value}: {error}");
        }
        let error = Config::load(&sources(&[("WINDROSE_PREPARE_CPU", "long")], &[])).unwrap_err();
        assert!(error.0.starts_with("WINDROSE_PREPARE_CPU: `long` is no duration"), "{error}");
    }
}
