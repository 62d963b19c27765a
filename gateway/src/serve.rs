//! From settings to a running gateway, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admit::tenants::Door;
use crate::config::keys::KeyFile;
use crate::config::{Config, LogConfig};
use crate::control::api::{self, Api, Uploads};
use crate::control::load::{Loader, LoaderConfig};
use crate::control::prepare::Host;
use crate::control::registry::{Bounds, Registry};
use crate::control::store::Store;
use crate::control::token::Token;
use crate::control::{AssetFolders, make_private};
use crate::fleet::Fleet;
use crate::http::{self, DataPlane};
use crate::snapshot::{Current, Snapshot};
use crate::telemetry::Telemetry;

/// Why the gateway could not start. The message says what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct StartError {
    what: String,
    why: String,
}

/// Adds what was being done to an error.
fn doing<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> StartError {
    let what = what.to_string();
    move |error| StartError { what, why: error.to_string() }
}

/// How long a thread for blocking work waits for more. They are woken in turn: were it long, then every thread that the
/// busiest moment needed would always find some work in time, and stay with its memory for as long as the process.
const BLOCKING_IDLE: Duration = Duration::from_millis(100);

/// How long peers have to hear that this gateway leaves.
const LEAVE: Duration = Duration::from_millis(100);

/// Runs a gateway until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config) -> Result<(), StartError> {
    start_log(&config.log);
    raise_file_limit();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_keep_alive(BLOCKING_IDLE);
    let runtime = runtime.build().map_err(doing("starting the runtime"))?;
    let result = runtime.block_on(serve(config));
    // A graph may still be running for a caller that is gone.
    runtime.shutdown_background();
    result
}

fn start_log(config: &LogConfig) {
    let filter = tracing_subscriber::EnvFilter::new(&config.filter);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A test may have a log of its own already.
    let _ = if config.json { log.json().try_init() } else { log.with_ansi(false).try_init() };
}

/// As many open files as the system lets this process have: each connection and each file of a guest is one.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

async fn bind(address: SocketAddr, key: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = TcpListener::bind(address).await.map_err(doing(&format!("{key}: listening on {address}")))?;
    let address = listener.local_addr().map_err(doing(key))?;
    Ok((listener, address))
}

/// The listeners of a gateway, each with the address that it has.
struct Listeners {
    data: (TcpListener, SocketAddr),
    control: (TcpListener, SocketAddr),
    peers: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Listeners, StartError> {
        let data = bind(config.data.listen, "data.listen").await?;
        let control = bind(config.control.listen, "control.listen").await?;
        let peers = match config.fleet.as_ref().and_then(|fleet| fleet.listen) {
            Some(listen) => Some(bind(listen, "fleet.listen").await?),
            None => None,
        };
        if !control.1.ip().is_loopback() {
            let control_address = control.1;
            tracing::warn!(%control_address, "the control API speaks plain HTTP on an address that is not loopback");
        }
        Ok(Listeners { data, control, peers })
    }

    /// Where no guest may connect to.
    fn addresses(&self) -> Vec<SocketAddr> {
        let peers = self.peers.as_ref().map(|(_, address)| *address);
        [self.data.1, self.control.1].into_iter().chain(peers).collect()
    }
}

fn loader(config: &Config, closed: Vec<SocketAddr>) -> Result<Loader, StartError> {
    let assets = AssetFolders::open(config.dir.join("assets")).map_err(doing("storage.dir"))?;
    let loader = Loader::new(LoaderConfig {
        host: Host::new(config),
        isolation: config.isolation,
        ceiling: config.ceiling.clone(),
        budget: config.prepare,
        closed,
        assets: Arc::new(assets),
    });
    loader.map_err(doing("starting sandbox and engines"))
}

async fn serve(config: Config) -> Result<(), StartError> {
    let started = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).map_err(doing("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(doing("signals"))?;
    make_private(&config.dir).map_err(doing(&format!("storage.dir: {}", config.dir.display())))?;
    let store = Store::open(&config.dir).map_err(doing("storage.dir"))?;
    let token = Token::open(&config.dir.join("token")).map_err(doing("the token of the control API"))?;
    let listeners = Listeners::bind(&config).await?;
    let loader = loader(&config, listeners.addresses())?;
    let current: Current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let bounds = Bounds {
        preparations: config.control.preparations,
        queue: config.control.queue,
        keep: config.keep,
        revisions: config.revisions,
    };
    let deployers =
        config.control.deployers.as_deref().map(KeyFile::open).transpose().map_err(doing("the deployers"))?;
    let registry = Registry::open(store, loader, deployers, current.clone(), bounds).await;
    let registry = registry.map_err(doing("reading the store"))?;
    let telemetry = Telemetry::new();
    telemetry.memory.attach(registry.loader.sandbox.modules().clone(), registry.loader.engines.weights().clone());
    let plane = DataPlane::new(current.clone(), telemetry.clone(), config.data.http.clone());
    plane.set_ready(false);
    let door = config.data.tenants.as_deref().map(Door::open).transpose().map_err(doing("the tenants"))?;
    if let Some(door) = &door {
        plane.guard(door.clone());
    }
    let fleet = match config.fleet {
        Some(settings) => {
            let fleet = Fleet::start(settings, &config.dir, current, registry.clone(), telemetry.clone())
                .map_err(doing("the fleet"))?;
            plane.join(fleet.clone());
            Some(fleet)
        }
        None => None,
    };
    let api = Api {
        registry: registry.clone(),
        token,
        telemetry,
        max_blob: config.control.max_blob,
        data: listeners.data.1,
        fleet: fleet.clone(),
        door,
        started,
        uploads: Uploads::default(),
    };
    let running = Running::start(listeners, api, plane.clone(), fleet.clone());
    tokio::spawn(registry.clone().mend());
    tokio::spawn(registry.clone().tidy());
    tokio::spawn(async move {
        registry.load_all().await;
        if let Some(fleet) = fleet {
            fleet.settled().await;
        }
        plane.set_ready(true);
        tracing::info!(ms = started.elapsed().as_millis() as u64, "ready");
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.drain().await;
    Ok(())
}

/// What answers on the listeners, until it is drained.
struct Running {
    data: JoinHandle<()>,
    control: JoinHandle<()>,
    peers: Option<JoinHandle<()>>,
    fleet: Option<Arc<Fleet>>,
    stop_data: CancellationToken,
    stop_control: CancellationToken,
}

impl Running {
    fn start(listeners: Listeners, api: Api, plane: Arc<DataPlane>, fleet: Option<Arc<Fleet>>) -> Running {
        let (stop_data, stop_control) = (CancellationToken::new(), CancellationToken::new());
        let ((control, control_address), (data, data_address)) = (listeners.control, listeners.data);
        let control = tokio::spawn(api::serve(control, Arc::new(api), stop_control.clone()));
        let data = tokio::spawn(http::serve(data, plane.clone(), stop_data.clone()));
        let peers = fleet
            .clone()
            .zip(listeners.peers)
            .map(|(fleet, (listener, _))| tokio::spawn(http::peer::serve(listener, plane, fleet, stop_data.clone())));
        tracing::info!(data = %data_address, control = %control_address, "listening");
        Running { data, control, peers, fleet, stop_data, stop_control }
    }

    /// Takes no new connections, and waits for the requests that are in flight.
    async fn drain(self) {
        tracing::info!("stopping: no new connections, requests in flight finish");
        if let Some(fleet) = self.fleet {
            // Peers hear of it before connections end, and send nothing more.
            fleet.leave();
            tokio::time::sleep(LEAVE).await;
        }
        self.stop_data.cancel();
        if let Some(peers) = self.peers
            && let Err(error) = peers.await
        {
            tracing::error!(%error, "the peer listener ended badly");
        }
        if let Err(error) = self.data.await {
            tracing::error!(%error, "the data plane ended badly");
        }
        self.stop_control.cancel();
        if let Err(error) = self.control.await {
            tracing::error!(%error, "the control listener ended badly");
        }
        tracing::info!("stopped");
    }
}
