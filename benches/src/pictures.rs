//! The SDK's helpers for pictures in the sandbox, beside the same helpers compiled for the machine, whose resizing takes the
//! widest vectors that it has. Both keep one core busy and wait for nothing, so that their processor time is what they take;
//! a neighbour changes it least.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use windrose_sandbox::{Description, Program};

use crate::pairs::{median, process_cpu};
use crate::sandbox::{Host, context, guest, picture_request};

/// Calls of a helper in one turn.
const TIMES: usize = 10;

/// The helpers, each over the files that it is asked about.
const HELPERS: [&str; 7] = ["decode", "smooth", "bilinear", "area", "lanczos", "normalize", "softmax"];

/// Prints the whole section: one line for each helper and file, `rounds` pairs each.
pub async fn section(rounds: usize, native: &Path, files: &[&Path]) -> Result<()> {
    let host = Host::new()?;
    let program = host.program(&guest("pictures")?, None)?;
    let signature = program.describe(&context()).await?;
    println!("\nPicture helpers in the sandbox beside the same helpers native, us of CPU a call");
    println!("  {:52} {:>9} {:>9}  ratio", "", "native", "sandbox");
    for path in files {
        let file = std::fs::read(path).with_context(|| format!("{}: run `make venv`", path.display()))?;
        let mut native = Native::start(native, path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for helper in HELPERS {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                theirs.push(native.ask(helper)?);
                ours.push(sandboxed(&program, &signature, &file, helper).await?);
            }
            println!(
                "  {:52} {:9.1} {:9.1}  x{:.2}",
                format!("{helper}, {name}"),
                median(theirs.iter().copied()),
                median(ours.iter().copied()),
                median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs)),
            );
        }
    }
    Ok(())
}

/// Microseconds of processor time of one call in the sandbox: a request with many calls less one with none.
async fn sandboxed(program: &Program, signature: &Description, file: &[u8], helper: &str) -> Result<f64> {
    let timed = async |times: usize| -> Result<f64> {
        let request = picture_request(file, helper, times as i64);
        let start = process_cpu();
        program.infer(signature, request, &context()).await?;
        Ok((process_cpu() - start).as_secs_f64() * 1e6)
    };
    let nothing = timed(0).await?;
    Ok((timed(TIMES).await? - nothing) / TIMES as f64)
}

/// The example `native` of the guest, running.
struct Native {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Native {
    fn start(program: &Path, file: &Path) -> Result<Native> {
        let mut child = Command::new(program)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: `make bench` builds it", program.display()))?;
        let ask = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Native { child, ask, answers })
    }

    /// Microseconds of processor time of one call.
    fn ask(&mut self, helper: &str) -> Result<f64> {
        writeln!(self.ask, "{helper} {TIMES}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().parse::<f64>().context("the native helpers failed")? / 1e3)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
