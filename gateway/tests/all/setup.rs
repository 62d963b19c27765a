//! A data plane on a listener of its own, with graphs behind the pass-through module, and a client for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use windrose::control::manifest::Manifest;
use windrose::http::{DataPlane, HttpConfig, serve};
use windrose::snapshot::{Current, Served, Snapshot};
use windrose::telemetry::Telemetry;
use windrose_engine::{Engines, EnginesConfig, Graph, GraphOptions, OnnxRuntimeLibrary, default_tenant};
use windrose_sandbox::{CallContext, Limits, PASSTHROUGH, Program, ProgramConfig, Sandbox, SandboxConfig};

/// One model to serve: a graph of `models/test` behind the pass-through module.
pub struct Model {
    pub name: &'static str,
    pub version: &'static str,
    pub graph: &'static str,
    pub concurrency: u32,
    pub timeout: Duration,
    pub max_timeout: Duration,
}

impl Model {
    pub fn new(name: &'static str, version: &'static str, graph: &'static str) -> Model {
        let (timeout, max_timeout) = (Duration::from_secs(30), Duration::from_secs(60));
        Model { name, version, graph, concurrency: 64, timeout, max_timeout }
    }

    fn load(&self) -> Arc<Served> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/test").join(self.graph).with_extension("onnx");
        let onnx = std::fs::read(path).unwrap();
        let options = GraphOptions { sessions: Some(1), ..GraphOptions::default() };
        self.with(&host().1.load(onnx.into(), &options).unwrap())
    }

    /// This model with a graph that is loaded.
    pub fn with(&self, graph: &Graph) -> Arc<Served> {
        let (sandbox, engines) = host();
        let module = sandbox.module(PASSTHROUGH).unwrap();
        let limits = Limits { concurrency: self.concurrency, ..Limits::default() };
        let graphs = BTreeMap::from([("model".to_owned(), graph.clone())]);
        let (kind, module_digest) = (module.kind(), module.digest().to_owned());
        let config = ProgramConfig {
            module,
            label: format!("{}/{}", self.name, self.version),
            graphs: graphs.clone(),
            assets: None,
            args: vec![],
            env: vec![],
            limits: limits.clone(),
            grants: Default::default(),
            engines: engines.clone(),
            closed: vec![],
            weight: 1,
        };
        let program = Program::new(sandbox, config).unwrap();
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "name": self.name,
            "version": self.version,
            "graphs": {"model": {"digest": "0".repeat(64)}},
        }))
        .unwrap();
        let context = CallContext {
            deadline: std::time::Instant::now() + Duration::from_secs(30),
            request_id: "describe".into(),
            tenant: default_tenant(),
        };
        let describe = program.clone();
        let signature = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(describe.describe(&context)).unwrap()
        });
        Arc::new(Served {
            manifest: Arc::new(manifest),
            module_digest,
            kind,
            program,
            graphs: graphs.into_iter().collect(),
            signature: Some(signature.join().unwrap()),
            calls: Arc::new(windrose::admit::Calls::new(self.concurrency)),
            limits,
            default_timeout: self.timeout,
            max_timeout: self.max_timeout,
            metrics: Default::default(),
        })
    }
}

/// One sandbox and one set of engines for all tests: a pool reserves a lot of address space.
fn host() -> &'static (Sandbox, Arc<Engines>) {
    static HOST: OnceLock<(Sandbox, Arc<Engines>)> = OnceLock::new();
    HOST.get_or_init(|| {
        let sandbox = SandboxConfig { cache: None, cache_key: None, instances: 64, memory: 256 << 20, modules: None };
        let engines = EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Off, ..EnginesConfig::default() };
        (Sandbox::new(sandbox).unwrap(), Arc::new(Engines::new(engines).unwrap()))
    })
}

/// A data plane that serves.
pub struct Gateway {
    pub address: SocketAddr,
    pub current: Current,
    pub plane: Arc<DataPlane>,
    pub telemetry: Arc<Telemetry>,
    pub shutdown: CancellationToken,
    pub server: JoinHandle<()>,
}

/// An answer, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Gateway {
    pub async fn start(models: &[Model]) -> Gateway {
        Gateway::with(models, HttpConfig::default()).await
    }

    pub async fn with(models: &[Model], config: HttpConfig) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served: Vec<_> = models.iter().map(Model::load).collect();
        let current: Current = Arc::new(ArcSwap::from_pointee(Snapshot::new(7, served)));
        let telemetry = Telemetry::new();
        let plane = DataPlane::new(current.clone(), telemetry.clone(), config);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, plane.clone(), shutdown.clone()));
        Gateway { address, current, plane, telemetry, shutdown, server }
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, request: Request<Bytes>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = request.map(Full::new);
        request.headers_mut().insert("host", "test".parse().unwrap());
        Answer::read(client.send_request(request).await.unwrap()).await
    }

    /// Sends one request over HTTP/2.
    pub async fn send_http2(&self, request: Request<Bytes>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let uri = format!("http://{}{}", self.address, request.uri());
        let mut request = request.map(Full::new);
        *request.uri_mut() = uri.parse().unwrap();
        Answer::read(client.send_request(request).await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Bytes::new()).unwrap()).await
    }

    /// Posts a body to a model's inference.
    pub async fn infer(&self, model: &str, body: impl Into<Bytes>) -> Answer {
        self.infer_with(model, body, &[]).await
    }

    pub async fn infer_with(&self, model: &str, body: impl Into<Bytes>, headers: &[(&str, &str)]) -> Answer {
        self.send(infer_request(model, body, headers)).await
    }
}

/// An inference of `model`, which may have a version: `m/versions/1`.
pub fn infer_request(model: &str, body: impl Into<Bytes>, headers: &[(&str, &str)]) -> Request<Bytes> {
    let mut request = Request::post(format!("/v2/models/{model}/infer"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

impl Answer {
    pub async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The message of an error, after checking that it is one of this status and kind.
    #[track_caller]
    pub fn error(&self, status: u16, kind: &str) -> String {
        assert_eq!((self.status.as_u16(), self.header("windrose-error")), (status, kind), "{:?}", self.body);
        assert_eq!(self.header("content-type"), "application/json");
        assert!(!self.header("x-request-id").is_empty() && self.header("traceparent").len() == 55);
        self.json()["error"].as_str().unwrap().to_owned()
    }
}
