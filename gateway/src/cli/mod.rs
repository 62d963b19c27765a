//! What a person types. Everything but `serve` talks to the control API like anybody else.

/// Shadows the standard macro, which panics where the reader of a pipe has gone.
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::out::say(format!("{}\n", format_args!($($text)*)).as_bytes()) };
}

/// As `println`.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::out::tell(&format!($($text)*)) };
}

mod client;
mod deploy;
mod explain;
mod fleet;
mod infer;
mod keys;
mod new;
mod npy;
mod out;
pub mod project;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, ClientConfig, Config, FILE_VARIABLE, Sources, reference};
use crate::control::prepare;
use client::Client;

/// Serve machine-learning models from sandboxed WebAssembly modules.
#[derive(Parser)]
#[command(name = "windrose", version, about, max_term_width = 100)]
#[command(after_help = "Exit status: 0 success, 1 the gateway or the model refused, 2 wrong usage or wrong files, \
    3 the gateway cannot be reached, 4 the gateway does not accept the token.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a gateway until SIGTERM.
    Serve(Serve),
    /// Upload a model and make it live: a folder with a windrose.toml, a component (.wasm) or a bare graph (.onnx).
    Deploy(deploy::Deploy),
    /// List what is deployed.
    Models(show::Models),
    /// Show everything about one version of a model: what it imports, was granted, and runs on.
    Inspect(show::Inspect),
    /// Send one request to a model and show its answer.
    Infer(infer::Infer),
    /// Remove a model, or one version of it. Requests in flight finish.
    Delete(show::Delete),
    /// Check a model without deploying it: locally, then by the gateway's dry run.
    Validate(deploy::Validate),
    /// Make a folder with a new module in Rust, Python or JavaScript, its manifest and a test.
    New(new::New),
    /// Show where a request for a model would go now and why, and where the last ones went.
    Explain(explain::Explain),
    /// Make the certificates with which the sites of a fleet know each other.
    Fleet(fleet::Fleet),
    /// Make a key for a tenant, and what the file of tenants is to say of it.
    Tenant(keys::Tenant),
    /// Make a key for a deployer, and what the file of deployers is to say of it.
    Deployer(keys::Deployer),
    /// Print a completion script for a shell, for example `windrose completions bash`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Not for people: the child in which the gateway prepares what is deployed.
    #[command(hide = true)]
    Prepare,
    /// Not for people: the child in which the gateway runs a graph.
    #[command(hide = true)]
    Engine,
}

#[derive(clap::Args)]
#[command(
    after_help = "Every setting is on the page that --print-reference prints; each can be given by the file, by an \
    environment variable (WINDROSE_TABLE_KEY) or by --set."
)]
struct Serve {
    /// The configuration file.
    #[arg(long, env = FILE_VARIABLE, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder in which everything is kept.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Address of the data listener [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address of the control listener [default: 127.0.0.1:8001].
    #[arg(long, value_name = "ADDRESS:PORT")]
    control_listen: Option<String>,
    /// What `engine = "auto"` means: auto, rten or onnxruntime.
    #[arg(long)]
    engine: Option<String>,
    /// Any setting, as table.key=value. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Print the reference of all settings, and end.
    #[arg(long)]
    print_reference: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write table.key=value")?;
    Ok((key.trim().to_string(), value.trim().to_string()))
}

/// Where the gateway is.
#[derive(clap::Args, Clone)]
struct Gateway {
    /// Address of the control API [default: WINDROSE_CONTROL_URL, else http://127.0.0.1:8001].
    #[arg(long, value_name = "URL")]
    control: Option<String>,
    /// File with the control API's token [default: WINDROSE_TOKEN itself, else `token` in the data folder].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl Gateway {
    fn client(&self) -> Result<Client, Failure> {
        let config = ClientConfig::load(self.control.clone(), self.token_file.clone(), &config::environment());
        Ok(Client::new(config.map_err(|error| Failure::usage(error.to_string()))?))
    }
}

/// Why a command failed: what to say, and the exit status.
#[derive(Debug)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// The gateway or the model refused.
    pub fn refused(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), status: 1 }
    }

    /// What was typed, or the files that it names, are wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), status: 2 }
    }

    /// The gateway cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), status: 3 }
    }

    /// The gateway does not accept the token.
    pub fn unauthorized(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), status: 4 }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result = match command {
        Command::Prepare => prepare::child::main(),
        Command::Engine => windrose_engine::backend::child::main(),
        Command::Serve(serve) => run_server(serve),
        Command::Fleet(fleet) => fleet.run(),
        Command::Tenant(tenant) => tenant.run(),
        Command::Deployer(deployer) => deployer.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(), "windrose", &mut script);
            out::say(&script);
            Ok(())
        }
        command => run_client(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// The commands for people.
fn visible() -> clap::Command {
    let all = Cli::command();
    let commands = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("windrose").version(env!("CARGO_PKG_VERSION")).subcommands(commands)
}

fn run_server(serve: Serve) -> Result<(), Failure> {
    if serve.print_reference {
        out::say(reference::markdown().as_bytes());
        return Ok(());
    }
    let short = [
        ("storage.dir", serve.data_dir),
        ("data.listen", serve.listen),
        ("control.listen", serve.control_listen),
        ("engines.default", serve.engine),
    ];
    let mut set: Vec<(String, String)> =
        short.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect();
    set.extend(serve.set);
    let config =
        Config::load(&Sources::process(serve.config, set)).map_err(|error| Failure::usage(error.to_string()))?;
    crate::serve::run(config).map_err(|error| Failure::refused(error.to_string()))?;
    windrose_engine::process::leave(0)
}

fn run_client(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(error.to_string()))?;
    runtime.block_on(async {
        match command {
            Command::Deploy(deploy) => deploy.run().await,
            Command::Models(models) => models.run().await,
            Command::Inspect(inspect) => inspect.run().await,
            Command::Infer(infer) => infer.run().await,
            Command::Explain(explain) => explain.run().await,
            Command::Delete(delete) => delete.run().await,
            Command::Validate(validate) => validate.run().await,
            Command::New(new) => new.run(),
            Command::Serve(_)
            | Command::Fleet(_)
            | Command::Tenant(_)
            | Command::Deployer(_)
            | Command::Completions { .. }
            | Command::Prepare
            | Command::Engine => Ok(()),
        }
    })
}

/// Prints a value as JSON, for scripts.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::refused(error.to_string()))?;
    println!("{text}");
    Ok(())
}
