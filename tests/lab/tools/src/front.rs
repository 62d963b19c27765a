//! A front that stands before a site's gateway and misbehaves when told to, as a sick site would.
//!
//! It speaks what the gateway speaks: HTTP/1.1 or HTTP/2, over mutual TLS with the site's own certificate, or plain.
//! Each connection of a client becomes one connection to the gateway, and ends with it, so that a gateway that
//! dies or restarts looks like one. Commands arrive as lines on standard input; it ends when that closes.

mod fault;
mod tls;

use std::error::Error;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::fault::Fault;
use self::tls::Tls;

/// Whatever went wrong on the way.
type BoxError = Box<dyn Error + Send + Sync>;

/// Any body that passes through.
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A connection, plain or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type BoxStream = Box<dyn Stream>;

/// How long the gateway behind has to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How the front is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// The gateway behind.
    #[arg(long)]
    to: SocketAddr,
    /// Certificates: what the site shows, what its clients show, and the authority of both. Plain without them.
    #[command(flatten)]
    identities: Option<Identities>,
}

/// Files in PEM.
#[derive(clap::Args)]
#[group(requires_all = ["ca", "cert", "key", "client_cert", "client_key"])]
pub struct Identities {
    /// The authority that signed everybody's certificates.
    #[arg(long, required = false)]
    ca: PathBuf,
    /// The site's certificate.
    #[arg(long, required = false)]
    cert: PathBuf,
    /// Its key.
    #[arg(long, required = false)]
    key: PathBuf,
    /// The certificate with which to speak to the gateway behind.
    #[arg(long, required = false)]
    client_cert: PathBuf,
    /// Its key.
    #[arg(long, required = false)]
    client_key: PathBuf,
}

/// Runs until standard input closes.
///
/// # Errors
/// When it cannot listen, or the certificates are none.
pub fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = arguments.identities.as_ref().map(Tls::load).transpose()?;
    let (fault, seen) = watch::channel(Fault::None);
    let front = Arc::new(Front { to: arguments.to, tls, fault: seen });
    let listener = runtime.block_on(TcpListener::bind(arguments.listen)).context("listen")?;
    println!("listening");
    let (ended, end) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        obey(&fault);
        drop(ended);
    });
    runtime.block_on(async {
        tokio::select! {
            _ = end => Ok(()),
            failed = accept(listener, front) => failed,
        }
    })
}

/// Carries out the commands on standard input, and repeats each as its answer.
fn obey(fault: &watch::Sender<Fault>) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match Fault::parse(&line) {
            Ok(new) => {
                fault.send_replace(new);
                println!("{line}");
            }
            Err(error) => println!("{error:#}"),
        }
    }
}

/// What all connections share.
struct Front {
    to: SocketAddr,
    tls: Option<Tls>,
    fault: watch::Receiver<Fault>,
}

async fn accept(listener: TcpListener, front: Arc<Front>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let front = front.clone();
        // A connection that fails is closed; whoever made it sees that, and the harness sees what became of it.
        tokio::spawn(async move { drop(front.serve(stream).await) });
    }
}

// === impl Front ===

impl Front {
    async fn serve(self: Arc<Front>, stream: TcpStream) -> Result<()> {
        if *self.fault.borrow() == Fault::Mute {
            self.unmuted().await;
            return Ok(());
        }
        stream.set_nodelay(true)?;
        let behind = tokio::time::timeout(CONNECT, TcpStream::connect(self.to)).await??;
        behind.set_nodelay(true)?;
        let (client, behind): (BoxStream, Behind) = match &self.tls {
            None => (Box::new(stream), Behind::http1(Box::new(behind)).await?),
            Some(tls) => {
                let behind = Behind::http2(tls.connect(behind).await?).await?;
                (tls.accept(stream).await?, behind)
            }
        };
        let ended = behind.ended.clone();
        let service = service_fn(move |request| self.clone().answer(behind.clone(), request));
        let server = auto::Builder::new(TokioExecutor::new());
        let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(client), service));
        tokio::select! {
            _ = connection.as_mut() => return Ok(()),
            () = ended.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        // The gateway behind has closed: what it had not answered fails, and nothing more is taken.
        let _ = tokio::time::timeout(CONNECT, connection).await;
        Ok(())
    }

    async fn answer(self: Arc<Front>, behind: Behind, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let answer = behind.send(request).await?;
        let fault = *self.fault.borrow();
        if fault == Fault::Mute {
            self.unmuted().await;
            return Err("this answer was kept back".into());
        }
        fault.apply(answer).await
    }

    /// Waits until the fault is another than silence.
    async fn unmuted(&self) {
        // An error is the end of the front.
        let _ = self.fault.clone().wait_for(|fault| *fault != Fault::Mute).await;
    }
}

/// The connection to the gateway behind.
#[derive(Clone)]
struct Behind {
    sender: Sender,
    /// Cancelled when the connection has ended.
    ended: CancellationToken,
}

#[derive(Clone)]
enum Sender {
    /// One request after the other.
    Http1(Arc<Mutex<http1::SendRequest<Incoming>>>),
    /// Many at the same time.
    Http2(http2::SendRequest<Incoming>),
}

// === impl Behind ===

impl Behind {
    async fn http1(stream: BoxStream) -> Result<Behind> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Behind { sender: Sender::Http1(Arc::new(Mutex::new(sender))), ended: drive(connection) })
    }

    async fn http2(stream: BoxStream) -> Result<Behind> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Behind { sender: Sender::Http2(sender), ended: drive(connection) })
    }

    async fn send(self, request: Request<Incoming>) -> Result<Response<Incoming>, BoxError> {
        Ok(match self.sender {
            Sender::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(mut sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }
}

/// Drives a connection, and says when it has ended.
fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> CancellationToken {
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        // However it ended, it did.
        let _ = connection.await;
        drop(guard);
    });
    ended
}
