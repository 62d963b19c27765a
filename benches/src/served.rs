//! The gateway over HTTP, beside its floors: a bare hyper server for the protocol, the bare engine for the inference.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cases::{self, Case};
use crate::gateway::{Floor, Gateway};
use crate::pairs::median;
use crate::{engine, load, process};

/// How long and how often.
pub struct Effort {
    /// One load run.
    pub time: Duration,
    /// Pairs of runs, ours and the floor's, for each figure.
    pub rounds: usize,
}

/// One load run and what it cost the server.
struct Run {
    seen: load::Seen,
    cpu_us: f64,
    resident: u64,
}

/// Prints the whole section for one engine.
pub async fn section(binary: &Path, engine: &str, effort: &Effort) -> Result<()> {
    let mut gateway = Gateway::start(binary, engine)?;
    println!("\nOver HTTP, engine {engine}, {} pairs of {:.1} s", effort.rounds, effort.time.as_secs_f64());
    for case in cases::all() {
        let first = gateway.deploy(&case).await?;
        let bare = engine::bare(&case, engine)?;
        println!(
            "\n{}: deployed and answered after {:.0} ms; bare engine, one thread, {:.1} us",
            case.title,
            first.as_secs_f64() * 1e3,
            bare.as_secs_f64() * 1e6
        );
        compare(&case, &gateway, effort, bare).await?;
    }
    let starts = [gateway.restart().await?, gateway.restart().await?, gateway.restart().await?];
    let start = median(starts.iter().map(|start| start.as_secs_f64() * 1e3));
    println!("\nstart to first answer, nothing to compile: {start:.0} ms");
    Ok(())
}

async fn measure(port: u16, pid: u32, request: &'static [u8], connections: usize, time: Duration) -> Result<Run> {
    let before = process::cpu_time(pid)?;
    let seen = load::run(port, request, connections, time).await?;
    let cpu = process::cpu_time(pid)? - before;
    let cpu_us = cpu.as_secs_f64() * 1e6 / seen.count().max(1) as f64;
    Ok(Run { seen, cpu_us, resident: process::resident(pid)? })
}

async fn compare(case: &Case, gateway: &Gateway, effort: &Effort, bare: Duration) -> Result<()> {
    let request: &'static [u8] = case.request().leak();
    let floor = Floor::start(gateway.answer_bytes(request).await?)?;
    let bare_us = bare.as_secs_f64() * 1e6;
    println!(
        "  conns |    req/s   p50 us   p99 us   CPU us   MB |  hyper: req/s   p50   p99   CPU | CPU of hyper + engine"
    );
    for &connections in case.connections {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first request of a connection count is not like the others: it fills pools.
        load::run(gateway.port, request, connections, effort.time / 4).await?;
        for _ in 0..effort.rounds {
            theirs.push(measure(floor.port, floor.pid(), request, connections, effort.time).await?);
            ours.push(measure(gateway.port, gateway.pid(), request, connections, effort.time).await?);
        }
        let pairs = || ours.iter().zip(&theirs);
        let refused: usize = ours.iter().map(|r| r.seen.refused).sum();
        let asked = refused + ours.iter().map(|r| r.seen.count()).sum::<usize>();
        let refused = if refused > 0 { format!(" | {refused} of {asked} refused") } else { String::new() };
        println!(
            "  {connections:5} | {:8.0} {:8.0} {:8.0} {:8.1} {:4.0} | {:13.0} {:5.0} {:5.0} {:5.1} | x{:.2} {:+.1} us{refused}",
            median(ours.iter().map(|r| r.seen.rate())),
            median(ours.iter().map(|r| r.seen.quantile_us(0.5))),
            median(ours.iter().map(|r| r.seen.quantile_us(0.99))),
            median(ours.iter().map(|r| r.cpu_us)),
            median(ours.iter().map(|r| r.resident as f64 / 1e6)),
            median(theirs.iter().map(|r| r.seen.rate())),
            median(theirs.iter().map(|r| r.seen.quantile_us(0.5))),
            median(theirs.iter().map(|r| r.seen.quantile_us(0.99))),
            median(theirs.iter().map(|r| r.cpu_us)),
            median(pairs().map(|(o, t)| o.cpu_us / (t.cpu_us + bare_us))),
            median(pairs().map(|(o, t)| o.cpu_us - t.cpu_us - bare_us)),
        );
    }
    Ok(())
}
