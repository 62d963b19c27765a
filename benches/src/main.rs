//! Windrose beside its floors, in one run: a bare hyper server for the protocol, the bare engine for the inference.
//!
//! The machine is shared and noisy, so ours and the floor take turns, and what counts is the median of the ratios of
//! neighbours. The sandbox's own floors (bare wasmtime) are in `gateway/sandbox/benches`.

mod cases;
mod engine;
mod floor;
mod gateway;
mod load;
mod process;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::cases::Case;

/// Prints the gateway's figures beside its floors.
#[derive(Parser)]
struct Arguments {
    /// The engine that the gateway uses: rten or onnxruntime.
    #[arg(long, default_value = "rten")]
    engine: String,
    /// Seconds of each load run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Pairs of runs, ours and the floor's, for each figure.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The gateway's binary.
    #[arg(long, default_value = "target/release/windrose")]
    windrose: std::path::PathBuf,
    /// Serve as the bare hyper floor, with answers of this many bytes. The bench starts itself so.
    #[arg(long, hide = true)]
    floor: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(answer_bytes) = arguments.floor {
        return floor::serve(answer_bytes).await;
    }
    let mut gateway = gateway::Gateway::start(&arguments.windrose, &arguments.engine)?;
    println!("engine {}, {} pairs of {} s", arguments.engine, arguments.rounds, arguments.seconds);
    for case in cases::all() {
        let first = gateway.deploy(&case).await?;
        println!("\n{}", case.title);
        println!("  deployed and first answer after {:.0} ms", first.as_secs_f64() * 1e3);
        let bare = engine::bare(&case, &arguments.engine)?;
        println!("  bare engine, one thread: {:.1} us", bare.as_secs_f64() * 1e6);
        compare(&case, &gateway, &arguments, bare).await?;
    }
    println!("\nstart to first answer, nothing to compile: {:.0} ms", gateway.restart().await?.as_secs_f64() * 1e3);
    Ok(())
}

/// One load run and what it cost the server.
struct Run {
    seen: load::Seen,
    cpu_us: f64,
    resident: u64,
}

async fn measure(port: u16, pid: u32, request: &'static [u8], connections: usize, time: Duration) -> Result<Run> {
    let before = process::cpu_time(pid)?;
    let seen = load::run(port, request, connections, time).await?;
    let cpu = process::cpu_time(pid)? - before;
    let cpu_us = cpu.as_secs_f64() * 1e6 / seen.count().max(1) as f64;
    Ok(Run { seen, cpu_us, resident: process::resident(pid)? })
}

async fn compare(case: &Case, gateway: &gateway::Gateway, arguments: &Arguments, bare: Duration) -> Result<()> {
    let request: &'static [u8] = case.request().leak();
    let floor = gateway::Floor::start(gateway.answer_bytes(request).await?)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    println!("  conns        req/s   p50 us   p99 us  CPU us/req      MB   floor req/s  CPU us   of the floors' sum");
    for &connections in case.connections {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..arguments.rounds {
            theirs.push(measure(floor.port, floor.pid(), request, connections, time).await?);
            ours.push(measure(gateway.port, gateway.pid(), request, connections, time).await?);
        }
        let bare_us = bare.as_secs_f64() * 1e6;
        let ratio = median(ours.iter().zip(&theirs).map(|(o, t)| o.cpu_us / (t.cpu_us + bare_us)));
        println!(
            "  {connections:5} {:12.0} {:8.0} {:8.0} {:11.1} {:7.0} {:13.0} {:7.1}   CPU x{ratio:.2}",
            median(ours.iter().map(|r| r.seen.rate())),
            median(ours.iter().map(|r| r.seen.quantile_us(0.5))),
            median(ours.iter().map(|r| r.seen.quantile_us(0.99))),
            median(ours.iter().map(|r| r.cpu_us)),
            median(ours.iter().map(|r| r.resident as f64 / 1e6)),
            median(theirs.iter().map(|r| r.seen.rate())),
            median(theirs.iter().map(|r| r.cpu_us)),
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
