//! Connections of a client that keeps them open, and finds another address of the name when one does not answer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::question::{Body, Request};

/// How long one address has to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// No address of the name accepted a connection.
    Connect(String),
    /// The connection ended, or spoke nonsense, before an answer began.
    NoAnswer(hyper::Error),
    /// An answer began and was cut.
    Cut(hyper::Error),
}

/// Connections by the address that they lead to.
pub struct Pool {
    target: String,
    max: usize,
    open: Cell<usize>,
    /// Connections so far: each begins with another of the name's addresses.
    tried: Cell<usize>,
    /// Used in turn, so that all addresses get the same.
    idle: RefCell<VecDeque<Idle>>,
}

struct Idle {
    sender: SendRequest<Body>,
    address: SocketAddr,
    slot: Slot,
}

/// One of the connections that may be open; given back when it is dropped.
struct Slot(Rc<Pool>);

/// A connection in use. It goes back to the pool when its answer was whole, and is closed otherwise.
pub struct Connection {
    sender: Option<SendRequest<Body>>,
    address: SocketAddr,
    slot: Option<Slot>,
    whole: bool,
}

// === impl Pool ===

impl Pool {
    /// An empty pool.
    pub fn new(target: String, max: usize) -> Pool {
        Pool { target, max, open: Cell::new(0), tried: Cell::new(0), idle: RefCell::new(VecDeque::new()) }
    }

    /// Opens connections ahead of the load; one that fails is opened again when it is needed.
    pub async fn open(self: &Rc<Pool>, count: usize) {
        for _ in 0..count {
            if let Ok(mut connection) = self.connect().await {
                connection.answered();
            }
        }
    }

    /// Sends a request over an idle connection, or over a new one. Goes on with the next connection as long as
    /// nothing of the request was sent; `address` becomes where it was sent to.
    pub async fn send(
        self: &Rc<Pool>,
        request: Request,
        address: &mut String,
    ) -> Result<(hyper::Response<Incoming>, Connection), Failed> {
        let mut request = request;
        loop {
            let mut connection = match self.take() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            *address = connection.address.to_string();
            let Some(sender) = &mut connection.sender else { continue };
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok((answer, connection)),
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failed::NoAnswer(refused.into_error())),
                },
            }
        }
    }

    fn take(self: &Rc<Pool>) -> Option<Connection> {
        loop {
            let Idle { sender, address, slot } = self.idle.borrow_mut().pop_front()?;
            let connection = Connection { sender: Some(sender), address, whole: false, slot: Some(slot) };
            if connection.sender.as_ref().is_some_and(|s| s.is_ready()) {
                return Some(connection);
            }
        }
    }

    async fn connect(self: &Rc<Pool>) -> Result<Connection, Failed> {
        if self.open.get() >= self.max {
            return Err(Failed::Connect(format!("{} connections are open", self.max)));
        }
        let slot = Slot::take(self);
        let (sender, address) = self.connect_any().await?;
        Ok(Connection { sender: Some(sender), address, whole: false, slot: Some(slot) })
    }

    async fn connect_any(&self) -> Result<(SendRequest<Body>, SocketAddr), Failed> {
        let turn = self.tried.get();
        self.tried.set(turn + 1);
        let found = tokio::net::lookup_host(&self.target).await.map_err(|e| Failed::Connect(e.to_string()))?;
        let mut addresses: Vec<SocketAddr> = found.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let count = addresses.len().max(1);
        addresses.rotate_left(turn % count);
        let mut problem = String::from("the name has no address");
        for address in addresses {
            match connect_to(address).await {
                Ok(sender) => return Ok((sender, address)),
                Err(error) => problem = format!("{address}: {error}"),
            }
        }
        Err(Failed::Connect(problem))
    }
}

async fn connect_to(address: SocketAddr) -> Result<SendRequest<Body>, String> {
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no connection in time".into()),
    };
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Its end shows at the sender.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

// === impl Connection ===

impl Connection {
    /// The answer was whole: the connection may be used again.
    pub fn answered(&mut self) {
        self.whole = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let (Some(sender), Some(slot)) = (self.sender.take(), self.slot.take())
            && self.whole
            && !sender.is_closed()
        {
            let pool = slot.0.clone();
            pool.idle.borrow_mut().push_back(Idle { sender, address: self.address, slot });
        }
    }
}

// === impl Slot ===

impl Slot {
    fn take(pool: &Rc<Pool>) -> Slot {
        pool.open.set(pool.open.get() + 1);
        Slot(pool.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

// === impl Failed ===

impl Failed {
    /// One word for the record.
    pub fn kind(&self) -> &'static str {
        match self {
            Failed::Connect(_) => "connect",
            Failed::NoAnswer(_) => "reset",
            Failed::Cut(_) => "cut",
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Connect(why) => f.write_str(why),
            Failed::NoAnswer(error) | Failed::Cut(error) => write!(f, "{error}"),
        }
    }
}
