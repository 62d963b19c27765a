//! A real server process with a data folder of its own, and the command line beside it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_windrose");

/// A file of the checkout.
pub fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// One gateway process; it is killed when this goes.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub data: SocketAddr,
    pub control: SocketAddr,
    /// Environment variables of every process from now on.
    pub settings: Vec<(String, String)>,
    process: Option<Child>,
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Server {
    /// A running gateway, once it is ready.
    pub fn start(settings: &[(&str, &str)]) -> Server {
        let mut server = Server::stopped(settings);
        server.run();
        server
    }

    /// A gateway that was never started.
    pub fn stopped(settings: &[(&str, &str)]) -> Server {
        Server {
            dir: tempfile::tempdir().unwrap(),
            data: free_port(),
            control: free_port(),
            settings: settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            process: None,
        }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env_clear()
            .env("WINDROSE_STORAGE_DIR", self.data_dir())
            .env("WINDROSE_DATA_LISTEN", self.data.to_string())
            .env("WINDROSE_CONTROL_LISTEN", self.control.to_string())
            .env("WINDROSE_ENGINES_DEFAULT", "rten")
            .envs(self.settings.iter().map(|(k, v)| (k, v)));
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts the process and waits until it is ready.
    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = self.command().arg("serve").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.process = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        while !matches!(self.get("/v2/health/ready"), Some((200, _))) {
            assert!(Instant::now() < end, "not ready within a minute:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL, while others still talk to it.
    pub fn kill_now(&self) {
        let id = self.process.as_ref().and_then(|child| rustix::process::Pid::from_raw(child.id() as i32)).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; the exit status.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.process.take()?;
        let id = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// A command that must work; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that must fail; its exit status and what it said.
    pub fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.cli(arguments);
        assert!(!output.status.success(), "{arguments:?} worked");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub fn deploy_graph(&self, graph: &str, name: &str, version: &str) {
        let path = checkout(&format!("models/test/{graph}.onnx"));
        self.ok(&["deploy", path.to_str().unwrap(), "--name", name, "--version", version]);
    }

    pub fn get(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        exchange(self.data, "GET", path, "", b"").ok()
    }

    /// One inference with the input `x`; status and body.
    pub fn infer(&self, model: &str) -> (u16, Value) {
        let body = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1.5,2.5]}]}"#;
        self.post(&format!("/v2/models/{model}/infer"), body)
    }

    /// One request to the data listener; status and body.
    pub fn post(&self, path: &str, body: &[u8]) -> (u16, Value) {
        match exchange(self.data, "POST", path, "", body) {
            Ok((status, body)) => (status, serde_json::from_slice(&body).unwrap_or_default()),
            Err(error) => (0, Value::String(error.to_string())),
        }
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("token")).unwrap().trim().to_string()
    }

    /// One call of the control API.
    pub fn control(&self, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> (u16, Value) {
        let header = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let (status, body) = exchange(self.control, method, path, &header, body).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One HTTP/1.1 exchange on a connection of its own; status and body.
pub fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<(u16, Vec<u8>)> {
    let (head, body) = answered(address, method, path, headers, body)?;
    let status =
        head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| std::io::Error::other("no status"))?;
    Ok((status, body))
}

/// As [`exchange`]; the head in lower case, and the body.
pub fn answered(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: w\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    )?;
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let wrong = || std::io::Error::other("no HTTP answer");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(wrong)?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    Ok((head, answer.split_off(end + 4)))
}
