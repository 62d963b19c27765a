//! The settings as a person writes them: tables of optional keys, each with its documentation and its default.

use std::path::PathBuf;

use serde::Deserialize;
use windrose_engine::{EngineChoice, Isolation};

use super::units::{List, Size, Span};

/// How the environment variables of settings begin.
pub const PREFIX: &str = "WINDROSE_";

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The table that it stands in.
    pub table: &'static str,
    /// Its name in that table.
    pub name: &'static str,
    /// Its default as TOML; empty when there is none.
    pub default: &'static str,
    /// What it means.
    pub about: &'static str,
}

/// A table of the configuration.
macro_rules! table {
    ($(#[doc = $about:literal])+ $type:ident, $table:literal,
     { $( $(#[doc = $doc:literal])+ $field:ident: $value:ty = $default:literal, )* }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $type {
            $( $(#[doc = $doc])+ pub $field: Option<$value>, )*
        }

        impl $type {
            /// What the table is for.
            pub const ABOUT: &'static str = concat!($($about),+);
            /// Its keys.
            pub const KEYS: &'static [Key] = &[
                $( Key { table: $table, name: stringify!($field), default: $default, about: concat!($($doc),+) }, )*
            ];

            fn merge(&mut self, over: $type) {
                $( if over.$field.is_some() { self.$field = over.$field; } )*
            }
        }
    };
}

table! {
    /// The data listener: what clients of the models talk to.
    Data, "data", {
        /// Address and port. Loopback by default: put a proxy with TLS in front, or name another address.
        listen: String = "\"127.0.0.1:8000\"",
        /// The largest request body, after decompression as well as before.
        max_body: Size = "\"64MiB\"",
        /// What bodies together may hold in memory, of requests and of answers that clients have not taken yet; further requests
        /// are refused.
        max_body_total: Size = "\"1GiB\"",
        /// How long a client may take to send the head of a request, and how long a connection may be idle.
        header_timeout: Span = "\"75s\"",
        /// How long a client may take nothing of its answer, before its connection is closed, or over HTTP/2 its stream reset.
        write_timeout: Span = "\"60s\"",
        /// Connections at the same time; further ones wait to be accepted.
        max_connections: usize = "8192",
        /// How long requests in flight may go on after SIGTERM.
        drain: Span = "\"30s\"",
        /// The file of tenants: a call of a model then needs a key of one of them. It is read again when it changes. Without
        /// one everybody may call, and all are one tenant.
        tenants: PathBuf = "",
    }
}

table! {
    /// The control listener: deploying, inspecting, metrics. Every call needs the token, or a deployer's key.
    Control, "control", {
        /// Address and port. Plain HTTP: keep it on loopback or on a network of your own.
        listen: String = "\"127.0.0.1:8001\"",
        /// The largest file that can be uploaded.
        max_blob: Size = "\"4GiB\"",
        /// Preparations that run at the same time; further ones wait.
        preparations: usize = "1",
        /// Deployments that may wait; further ones are refused.
        queue: usize = "32",
        /// The file of deployers: who may deploy beside the operator, and which models. It is read again when it changes.
        /// Without one only the operator deploys.
        deployers: PathBuf = "",
    }
}

table! {
    /// Where everything is kept.
    Storage, "storage", {
        /// The folder; `$XDG_DATA_HOME/windrose`, else `~/.local/share/windrose`, when not given.
        dir: PathBuf = "",
        /// How long a file that no model names is kept after its upload, and a compiled module that no model has.
        keep: Span = "\"1h\"",
        /// Revisions of the log that are kept: the newest, each with who changed what, when and from where.
        revisions: u64 = "1000",
    }
}

table! {
    /// The native engines.
    Engines, "engines", {
        /// What `engine = "auto"` in a manifest means, and what runs what a module brings itself by `load`: `auto` takes
        /// ONNX Runtime where its library is found, else `rten`.
        default: EngineChoice = "\"auto\"",
        /// ONNX Runtime's library: `search`, `off`, or the path of the file.
        onnxruntime: String = "\"search\"",
        /// Further folders to search for it, before the usual ones.
        search: List = "[]",
        /// Where graphs run: `process`, the gateway's own, or `child`, one with limits for each graph. A manifest can ask
        /// for `child`, and never for less than this. What a module brings itself by `load` always runs in a child, and
        /// so does a graph that divides integers in ONNX Runtime by what may be 0 or -1.
        isolation: Isolation = "\"process\"",
        /// Memory of one child that runs a graph, the shared memory of its tensors not counted.
        child_memory: Size = "\"4GiB\"",
        /// The longest that one run may take in a child; the child is ended then. In the gateway's own process no run can
        /// be ended.
        child_run: Span = "\"1m\"",
        /// Children at the same time. A graph that needs a further one takes the place of the idle graph that was used
        /// least recently, which is loaded again for its next call; it is refused where all are in use.
        children: usize = "64",
    }
}

table! {
    /// The sandbox.
    Sandbox, "sandbox", {
        /// Instances at the same time, over all models; those of modules that know WASI 0.3 are counted apart. A quarter of them
        /// may wait to be used again.
        instances: u32 = "256",
    }
}

table! {
    /// What stays in memory of models that are not called. Beyond a budget, the least recently used leaves memory, never one
    /// in use, and comes back with its next call.
    Memory, "memory", {
        /// Compiled code of modules, which comes back from the cache on disk.
        modules: Size = "\"2GiB\"",
        /// Weights of graphs, as bytes of their files for each copy in memory. They are loaded again from there; any
        /// amount when not given.
        weights: Size = "",
    }
}

table! {
    /// The most that any model gets. A manifest asks, and the smaller holds.
    Ceiling, "ceiling", {
        /// Linear memory of one call.
        memory: Size = "\"1GiB\"",
        /// Tensors that the host holds for one call.
        tensor_memory: Size = "\"1GiB\"",
        /// Wall time of one call, and the longest deadline that a client can ask for.
        wall: Span = "\"10m\"",
        /// CPU time of the module in one call; the engine's time is not counted.
        cpu: Span = "\"2m\"",
        /// Calls of one model version at the same time.
        concurrency: u32 = "256",
        /// The largest answer.
        output: Size = "\"256MiB\"",
        /// What one call may log.
        log: Size = "\"1MiB\"",
        /// Requests that one instance may answer, of one tenant and one after the other. A manifest that does not ask gets a
        /// fresh instance for each.
        reuse: u32 = "1000",
        /// Hosts that a module may be granted, as `host` or `host:port`. None by default.
        network: List = "[]",
        /// Whether a module may be granted `wasi:nn` `load` of bytes that it brings itself.
        load: bool = "false",
        /// Sessions, each with a thread, of one graph; the number of cores where 0.
        sessions: usize = "0",
        /// Threads inside one session; the number of cores where 0.
        threads: usize = "0",
    }
}

table! {
    /// The child process in which a deployment is compiled, loaded and tested first.
    Prepare, "prepare", {
        /// Its memory.
        memory: Size = "\"4GiB\"",
        /// Its CPU time.
        cpu: Span = "\"10m\"",
        /// Its wall time.
        wall: Span = "\"5m\"",
        /// How long it tries one graph with several rows, to find out whether they may run together and how many pay.
        trial: Span = "\"2s\"",
    }
}

table! {
    /// Other sites. Without a file this gateway is alone.
    Fleet, "fleet", {
        /// The fleet file, which lists the sites. It is read again when it changes.
        file: PathBuf = "",
        /// Which of its sites this gateway is.
        site: String = "\"\"",
        /// Where peers connect, with certificates on both sides; nobody does where it is empty.
        listen: String = "\"127.0.0.1:8002\"",
        /// This site's certificate, PEM. Certificates, key and authority are read again when they change.
        certificate: PathBuf = "",
        /// The key of the certificate, PEM.
        key: PathBuf = "",
        /// The authority that signs the certificates of all sites, PEM.
        authority: PathBuf = "",
        /// The largest body of a request that is kept to be sent again, and of an answer that is held before its first byte.
        hold: Size = "\"1MiB\"",
        /// Jurisdictions to which everything that enters here may go; any where the list is empty.
        allow: List = "[]",
        /// Jurisdictions to which nothing may go that enters here.
        deny: List = "[]",
    }
}

table! {
    /// What is written to standard error.
    Log, "log", {
        /// `text` or `json`.
        format: String = "\"text\"",
        /// Which events, in the syntax of `tracing`: `info`, `windrose=debug,warn`.
        filter: String = "\"info\"",
    }
}

/// A whole configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Written {
    pub data: Data,
    pub control: Control,
    pub storage: Storage,
    pub engines: Engines,
    pub sandbox: Sandbox,
    pub memory: Memory,
    pub ceiling: Ceiling,
    pub prepare: Prepare,
    pub fleet: Fleet,
    pub log: Log,
}

/// The tables in the order of the reference: what each is for, and its keys.
pub const TABLES: [(&str, &[Key]); 10] = [
    (Data::ABOUT, Data::KEYS),
    (Control::ABOUT, Control::KEYS),
    (Storage::ABOUT, Storage::KEYS),
    (Engines::ABOUT, Engines::KEYS),
    (Sandbox::ABOUT, Sandbox::KEYS),
    (Memory::ABOUT, Memory::KEYS),
    (Ceiling::ABOUT, Ceiling::KEYS),
    (Prepare::ABOUT, Prepare::KEYS),
    (Fleet::ABOUT, Fleet::KEYS),
    (Log::ABOUT, Log::KEYS),
];

impl Key {
    /// `table.name`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.table, self.name)
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}_{}", self.table, self.name).to_uppercase()
    }
}

/// Every key.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    TABLES.iter().flat_map(|(_, keys)| keys.iter())
}

impl Written {
    /// Takes what `over` has.
    pub fn merge(&mut self, over: Written) {
        self.data.merge(over.data);
        self.control.merge(over.control);
        self.storage.merge(over.storage);
        self.engines.merge(over.engines);
        self.sandbox.merge(over.sandbox);
        self.memory.merge(over.memory);
        self.ceiling.merge(over.ceiling);
        self.prepare.merge(over.prepare);
        self.fleet.merge(over.fleet);
        self.log.merge(over.log);
    }

    /// The defaults, from the very text that the reference shows.
    ///
    /// # Errors
    /// Never, as the tests show.
    pub fn defaults() -> Result<Written, toml::de::Error> {
        let mut text = String::new();
        for (_, keys) in TABLES {
            for key in keys.iter().filter(|key| !key.default.is_empty()) {
                text.push_str(&format!("{}.{} = {}\n", key.table, key.name, key.default));
            }
        }
        toml::from_str(&text)
    }

    /// One key from text, as the environment and `--set` give it: a TOML value, or else plain text.
    ///
    /// # Errors
    /// When the key takes no such value.
    pub fn from_pair(key: &Key, value: &str) -> Result<Written, String> {
        if let Ok(written) = toml::from_str(&format!("{}.{} = {value}", key.table, key.name)) {
            return Ok(written);
        }
        let quoted = toml::Value::String(value.to_string()).to_string();
        toml::from_str(&format!("{}.{} = {quoted}", key.table, key.name)).map_err(|e| e.message().to_string())
    }
}
