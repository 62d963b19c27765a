//! A small client of the two listeners.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, Take};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_util::io::ReaderStream;

use super::Failure;
use crate::config::ClientConfig;
use crate::control::api::types::{ErrorBody, ProgressLine, StatusAnswer};
use crate::control::prepare::Event;
use crate::control::token;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The most that is read of an answer, bytes.
const MAX_ANSWER: usize = 1 << 30;

/// How much of a file is sent at a time, bytes.
const PART: usize = 256 << 10;

/// How long a gateway that was started a moment ago may take until it listens.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is tried meanwhile.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A client of one gateway.
pub struct Client {
    config: ClientConfig,
    /// Set once the gateway was waited for.
    waited: OnceCell<()>,
    http: hyper_util::client::legacy::Client<HttpConnector, Body>,
}

/// An answer, read to its end.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// How much of the body is JSON, where binary data is behind it.
    pub json_length: Option<usize>,
    /// Its body.
    pub body: Bytes,
}

/// A file on its way. Its length goes ahead, so that one that is too large is refused before it is sent.
struct Upload<F> {
    parts: ReaderStream<Take<File>>,
    /// Bytes that are still to come.
    left: u64,
    /// Told how many bytes each part has.
    sent: F,
}

impl<F: Fn(u64) + Unpin> http_body::Body for Upload<F> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let part = ready!(Pin::new(&mut self.parts).poll_next(cx)).transpose()?;
        if let Some(part) = &part {
            self.left = self.left.saturating_sub(part.len() as u64);
            (self.sent)(part.len() as u64);
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(config: ClientConfig) -> Client {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Client { config, waited: OnceCell::new(), http }
    }

    fn token(&self) -> Result<String, Failure> {
        if let Some(token) = &self.config.token {
            return Ok(token.clone());
        }
        let file = &self.config.token_file;
        token::read(file).map_err(|error| {
            let hint = "a gateway makes it at its first start; name it with --token-file, or set WINDROSE_TOKEN";
            Failure::unauthorized(format!("no token: {}: {error} ({hint})", file.display()))
        })
    }

    /// Waits for somebody to listen at `base`, but not for long; whatever else is wrong there, the call itself will meet.
    async fn wait_for(&self, base: &str) {
        let Ok(uri) = base.parse::<Uri>() else { return };
        let Some(host) = uri.host().map(|host| host.trim_matches(['[', ']'])) else { return };
        let port = uri.port_u16().unwrap_or(80);
        let listening = async {
            let mut told = false;
            while matches!(TcpStream::connect((host, port)).await, Err(e) if e.kind() == ErrorKind::ConnectionRefused) {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("waiting for the gateway at {base}");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        };
        self.waited.get_or_init(|| async { tokio::time::timeout(PATIENCE, listening).await.unwrap_or_default() }).await;
    }

    async fn send(&self, request: Request<Body>, base: &str) -> Result<Response<Incoming>, Failure> {
        self.http.request(request).await.map_err(|error| {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                why = cause.to_string();
                source = cause.source();
            }
            Failure::unreachable(format!("cannot reach the gateway at {base}: {why}"))
        })
    }

    async fn control(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let base = &self.config.control;
        // A gateway makes its token at its first start, before it listens.
        self.wait_for(base).await;
        // Whether anybody listens is told before whether there is a token.
        let token = self.token();
        let request = Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .header(AUTHORIZATION, format!("Bearer {}", token.as_deref().unwrap_or("none")))
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("windrose/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let response = self.send(request, base).await?;
        token?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(Failure::unauthorized(format!("the gateway at {base} does not accept this token")));
        }
        Ok(response)
    }

    /// A call whose answer is one JSON value.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        let response = self.control(method, path, "application/json", full(Bytes::new())).await?;
        let answer = read(response).await?;
        if !answer.status.is_success() {
            return Err(refused(&answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| Failure::refused(format!("strange answer: {error}")))
    }

    /// How the gateway stands.
    pub async fn status(&self) -> Result<StatusAnswer, Failure> {
        self.call(Method::GET, "/v1/status").await
    }

    /// Whether the gateway has a file.
    pub async fn has_blob(&self, digest: &str) -> Result<bool, Failure> {
        let path = format!("/v1/blobs/{digest}");
        let response = self.control(Method::HEAD, &path, "application/json", full(Bytes::new())).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(Failure::refused(format!("asking for a file: {status}"))),
        }
    }

    /// Uploads a file, telling how many bytes went out with each part.
    pub async fn put_blob(
        &self,
        digest: &str,
        file: &Path,
        sent: impl Fn(u64) + Send + Unpin + 'static,
    ) -> Result<(), Failure> {
        let wrong = |error| Failure::usage(format!("{}: {error}", file.display()));
        let open = File::open(file).await.map_err(wrong)?;
        let left = open.metadata().await.map_err(wrong)?.len();
        let parts = ReaderStream::with_capacity(open.take(left), PART);
        let body = Upload { parts, left, sent }.boxed_unsync();
        let response = self.control(Method::PUT, &format!("/v1/blobs/{digest}"), "application/json", body).await?;
        let answer = read(response).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refused(&answer)) }
    }

    /// A call that tells its progress, a line at a time, and ends with a result.
    pub async fn progress<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        json: Vec<u8>,
        mut tell: impl FnMut(Event),
    ) -> Result<T, Failure> {
        let mut response = self.control(method, path, "application/x-ndjson", full(json.into())).await?;
        if !response.status().is_success() {
            return Err(refused(&read(response).await?));
        }
        let strange = |error: &dyn std::fmt::Display| Failure::refused(format!("strange answer: {error}"));
        let mut buffer = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| strange(&error))?;
            buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                match serde_json::from_slice(&line).map_err(|error| strange(&error))? {
                    ProgressLine::Progress(event) => tell(event),
                    ProgressLine::Result(result) => return Ok(result),
                    ProgressLine::Failed(error) => return Err(Failure::refused(error.error)),
                }
            }
        }
        Err(strange(&"it ended too early"))
    }

    /// The address of the data listener.
    pub async fn data_url(&self) -> Result<String, Failure> {
        match &self.config.data {
            Some(url) => Ok(url.clone()),
            None => Ok(data_url(&self.config.control, &self.status().await?.data)),
        }
    }

    /// One exchange with the data listener.
    pub async fn data(
        &self,
        url: &str,
        method: Method,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Answer, Failure> {
        self.wait_for(url).await;
        let mut request = Request::builder().method(method).uri(url).header(CONTENT_LENGTH, body.len());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(key) = &self.config.key {
            request = request.header(AUTHORIZATION, format!("Bearer {}", key.trim()));
        }
        let request = request.body(full(body)).map_err(|error| Failure::usage(error.to_string()))?;
        let answer = read(self.send(request, url).await?).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            let Failure { message, .. } = refused(&answer);
            return Err(Failure::unauthorized(format!("{message}; WINDROSE_KEY gives it")));
        }
        Ok(answer)
    }
}

/// Where a gateway's data listener is, seen from here: `listener` is the address that it is bound to, and at `control` we
/// reach the gateway. What is bound to every address, or to those that only its own machine has, is on the same host for us.
fn data_url(control: &str, listener: &str) -> String {
    let Ok(bound) = listener.parse::<SocketAddr>() else { return format!("http://{listener}") };
    let control = control.parse::<Uri>().unwrap_or_default();
    let host = control.host().unwrap_or_default();
    let is_here = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified());
    let ip = bound.ip().to_canonical();
    match !host.is_empty() && (ip.is_unspecified() || ip.is_loopback() && !is_here) {
        true => format!("http://{host}:{}", bound.port()),
        false => format!("http://{bound}"),
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, Failure> {
    let (head, body) = response.into_parts();
    let body = http_body_util::Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| Failure::unreachable(format!("the answer broke off: {error}")))?.to_bytes();
    let json_length = head.headers.get("inference-header-content-length");
    let json_length = json_length.and_then(|length| length.to_str().ok()?.parse().ok());
    Ok(Answer { status: head.status, json_length, body })
}

/// What an answer with an error says.
pub fn refused(answer: &Answer) -> Failure {
    match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(body) => Failure::refused(body.error),
        Err(_) => match serde_json::from_slice::<serde_json::Value>(&answer.body) {
            Ok(serde_json::Value::Object(body)) if body.get("error").is_some_and(|e| e.is_string()) => {
                Failure::refused(body["error"].as_str().unwrap_or_default())
            }
            _ => Failure::refused(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body))),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_data_listener_is_where_the_gateway_is_reached() {
        for (control, listener, expected) in [
            ("http://127.0.0.1:8001", "127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://localhost:8001", "127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://[::1]:8001", "127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://gate.example:9001", "0.0.0.0:8000", "http://gate.example:8000"),
            ("http://gate.example:9001", "[::]:8000", "http://gate.example:8000"),
            ("http://[fd00::1]:9001", "[::]:8000", "http://[fd00::1]:8000"),
            ("http://127.0.0.1:9001", "0.0.0.0:8000", "http://127.0.0.1:8000"),
            ("http://gate.example:9001", "127.0.0.1:8000", "http://gate.example:8000"),
            ("http://10.0.0.1", "[::1]:8000", "http://10.0.0.1:8000"),
            ("http://10.0.0.1:9001", "192.0.2.7:8000", "http://192.0.2.7:8000"),
            ("http://localhost:9001", "[2001:db8::7]:8000", "http://[2001:db8::7]:8000"),
        ] {
            assert_eq!(data_url(control, listener), expected, "{control} {listener}");
        }
    }

    #[tokio::test]
    async fn an_upload_says_its_length_first_and_may_be_refused_by_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = format!("http://{}", listener.local_addr().unwrap());
        // Nothing of the body is read, and the connection stays until the client has its answer.
        let gateway = async {
            loop {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                let mut lines = Vec::new();
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    lines.push(std::mem::take(&mut line));
                }
                // The client looks first whether anybody listens.
                if !lines.is_empty() {
                    let body = r#"{"error":"too large","kind":"too_large"}"#;
                    let head = format!("HTTP/1.1 413 Payload Too Large\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).await.unwrap();
                    return (lines, stream);
                }
            }
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let environment =
            [("HOME".to_string(), "/nowhere".to_string()), ("WINDROSE_TOKEN".to_string(), "t".to_string())];
        let client = Client::new(ClientConfig::load(Some(control), None, &environment).unwrap());
        let ((lines, _stream), put) = tokio::join!(gateway, client.put_blob("d", file.path(), |_| ()));
        assert!(lines.contains(&format!("content-length: {}\r\n", 64 << 20)), "{lines:?}");
        assert_eq!(put.unwrap_err().message, "too large");
    }
}
