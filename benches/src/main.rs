//! Windrose beside its floors, in one run: bare wasmtime for the sandbox, the bare engine for the inference, a bare hyper
//! server for the protocol, native code for the helpers of guests.
//!
//! The machine is shared and noisy, so ours and the floor take turns, and what counts is the median of the ratios of
//! neighbours; CPU time stands beside wall time.

mod cases;
mod engine;
mod floor;
mod gateway;
mod load;
mod pairs;
mod pictures;
mod process;
mod sandbox;
mod served;
mod wasmtime_floor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::served::Effort;

/// Prints Windrose's figures beside its floors.
#[derive(Parser)]
struct Arguments {
    /// What to measure; everything when nothing is named.
    sections: Vec<Section>,
    /// The engines that the gateway is measured with.
    #[arg(long, value_delimiter = ',', default_value = "rten,onnxruntime")]
    engines: Vec<String>,
    /// Seconds of each load run.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Pairs of runs, ours and the floor's, for each figure.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The gateway's binary.
    #[arg(long, default_value = "target/release/windrose")]
    windrose: PathBuf,
    /// The native helpers for pictures.
    #[arg(long, default_value = "target/guests-native/release/examples/native")]
    native: PathBuf,
    /// Serve as the bare hyper floor, with answers of this many bytes. The bench starts itself so.
    #[arg(long, hide = true)]
    floor: Option<usize>,
    /// The port of `--floor`; a free one where it is 0.
    #[arg(long, hide = true, default_value_t = 0)]
    floor_port: u16,
    /// Only put load on this port of loopback, with the request of `--request`, and print what was seen as JSON.
    #[arg(long, requires = "request")]
    load: Option<u16>,
    /// A file with a whole HTTP/1.1 request.
    #[arg(long)]
    request: Option<PathBuf>,
    /// Connections of `--load`.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

/// A part of the output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Instances and inferences in this process.
    Sandbox,
    /// A guest's own work with and without limits.
    Limits,
    /// Picture helpers against native ones.
    Pictures,
    /// The gateway over HTTP.
    Served,
}

/// Pictures of the package scikit-image, which the tests' environment has: 451 x 300 and 1,000 x 872 pixels.
const PNG: &str = "chelsea.png";
const JPEG: &str = "hubble_deep_field.jpg";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // The load and the floor take what cores they find; what runs in this process takes one, and its engine another.
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    if let Some(answer_bytes) = arguments.floor {
        return runtime()?.block_on(floor::serve(arguments.floor_port, answer_bytes));
    }
    if let (Some(port), Some(request)) = (arguments.load, &arguments.request) {
        let request = std::fs::read(request)?.leak();
        let time = Duration::from_secs_f64(arguments.seconds);
        let seen = runtime()?.block_on(load::run(port, request, arguments.connections, time))?;
        println!("{}", seen.json());
        return Ok(());
    }
    let wanted = |section| arguments.sections.is_empty() || arguments.sections.contains(&section);
    let alone = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = arguments.rounds * 3;
    if wanted(Section::Sandbox) {
        alone.block_on(sandbox::section(rounds))?;
    }
    if wanted(Section::Limits) {
        alone.block_on(sandbox::limits(rounds, &picture(PNG)?))?;
    }
    if wanted(Section::Pictures) {
        let files = [picture(PNG)?, picture(JPEG)?];
        let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        alone.block_on(pictures::section(rounds, &arguments.native, &files))?;
    }
    if wanted(Section::Served) {
        let effort = Effort { time: Duration::from_secs_f64(arguments.seconds), rounds: arguments.rounds };
        for engine in &arguments.engines {
            runtime()?.block_on(served::section(&arguments.windrose, engine, &effort))?;
        }
    }
    Ok(())
}

/// A picture of scikit-image, wherever its Python is.
fn picture(name: &str) -> Result<PathBuf> {
    let libraries = std::fs::read_dir("target/venv/lib")?;
    let data = libraries.flatten().map(|python| python.path().join("site-packages/skimage/data").join(name));
    data.into_iter().find(|path| path.exists()).ok_or_else(|| anyhow::anyhow!("{name}: run `make venv`"))
}
