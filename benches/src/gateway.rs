//! The processes under test: the gateway, and the bare hyper server that is its floor.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cases::Case;

/// A running gateway with a data folder of its own.
pub struct Gateway {
    binary: PathBuf,
    engine: String,
    data: tempfile::TempDir,
    child: Child,
    /// The data listener's.
    pub port: u16,
    control: u16,
    last: Option<Vec<u8>>,
}

impl Gateway {
    /// Starts a gateway on free ports.
    pub fn start(binary: &Path, engine: &str) -> Result<Gateway> {
        ensure!(binary.exists(), "{} is not there: run `cargo build --release`", binary.display());
        let data = tempfile::tempdir()?;
        let (port, control) = (free_port()?, free_port()?);
        let child = spawn(binary, engine, data.path(), port, control)?;
        let (binary, engine) = (binary.to_owned(), engine.to_owned());
        Ok(Gateway { binary, engine, data, child, port, control, last: None })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Deploys a case's graph, where it is not yet, and sends it its first request. Returns the time that took.
    pub async fn deploy(&mut self, case: &Case) -> Result<Duration> {
        self.answering("/v2/health/live").await?;
        let start = Instant::now();
        let graph = case.graph.to_string_lossy();
        let project = match case.module {
            None => vec!["deploy".to_owned(), graph.into_owned()],
            Some(name) => {
                vec!["deploy".into(), format!("target/guests/{name}.wasm"), "--graph".into(), format!("model={graph}")]
            }
        };
        let output = Command::new(&self.binary)
            .args(project)
            .args(["--name", case.model, "--model-version", "1"])
            .args(["--control", &format!("http://127.0.0.1:{}", self.control)])
            .env("WINDROSE_STORAGE_DIR", self.data.path())
            .output()?;
        ensure!(output.status.success(), "deploy: {}", String::from_utf8_lossy(&output.stderr));
        let request = case.request();
        self.answer_bytes(&request).await?;
        self.last = Some(request);
        Ok(start.elapsed())
    }

    /// Sends one request and returns the size of the answer's body.
    pub async fn answer_bytes(&self, request: &[u8]) -> Result<usize> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        // The last header line of the head is complete: `connection: close` goes in front of the empty line.
        let head = request.windows(4).position(|w| w == b"\r\n\r\n").context("a request without a head")?;
        let closing = [&request[..head], b"\r\nconnection: close", &request[head..]].concat();
        stream.write_all(&closing).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "answer: {}", String::from_utf8_lossy(&answer));
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").context("an answer without a head")?;
        Ok(answer.len() - head - 4)
    }

    /// Kills the gateway, starts it on the same data and returns the time until the last case is answered again.
    pub async fn restart(&mut self) -> Result<Duration> {
        self.child.kill()?;
        self.child.wait()?;
        let request = self.last.clone().context("nothing was deployed")?;
        let start = Instant::now();
        self.child = spawn(&self.binary, &self.engine, self.data.path(), self.port, self.control)?;
        while self.answer_bytes(&request).await.is_err() {
            ensure!(start.elapsed() < Duration::from_secs(60), "the gateway did not come back");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(start.elapsed())
    }

    async fn answering(&self, path: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
        for _ in 0..500 {
            if self.answer_bytes(request.as_bytes()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the gateway does not answer {path}")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &Path, engine: &str, data: &Path, port: u16, control: u16) -> Result<Child> {
    Command::new(binary)
        .arg("serve")
        .args(["--listen", &format!("127.0.0.1:{port}"), "--control-listen", &format!("127.0.0.1:{control}")])
        .args(["--engine", engine])
        .env("WINDROSE_STORAGE_DIR", data)
        // As a service runs: with it, wasmtime walks the stack at the end of every call.
        .env_remove("RUST_BACKTRACE")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the gateway")
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A running bare hyper server.
pub struct Floor {
    child: Child,
    /// Its port.
    pub port: u16,
}

impl Floor {
    /// Starts this program again as the floor.
    pub fn start(answer_bytes: usize) -> Result<Floor> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--floor", &answer_bytes.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        Ok(Floor { child, port: line.trim().parse().context("the floor did not print its port")? })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
