//! Where a guest's standard output and error go: into the log line by line, or into an answer, each with its bound.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};

use crate::ticker::{End, Watch};

/// The longest line of the log; longer ones are cut into several.
const LINE: usize = 4096;
/// What a guest may write at once.
const PERMIT: usize = 64 << 10;

/// Takes what a guest writes to one or both of its standard streams. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Mutex<State>>);

struct State {
    watch: Arc<Watch>,
    /// What ends the call when it writes more.
    end: End,
    left: u64,
    kind: Kind,
}

enum Kind {
    /// Lines for the log, with the model and the request that they belong to.
    Log { model: Arc<str>, request: Arc<str>, line: Vec<u8>, last: String },
    /// An answer.
    Capture(BytesMut),
}

impl Sink {
    /// A sink whose lines go to the log.
    pub(crate) fn log(watch: Arc<Watch>, bytes: u64, model: Arc<str>, request: Arc<str>) -> Sink {
        let kind = Kind::Log { model, request, line: Vec::new(), last: String::new() };
        Sink(Arc::new(Mutex::new(State { watch, end: End::Log, left: bytes, kind })))
    }

    /// A sink that keeps what is written.
    pub(crate) fn capture(watch: Arc<Watch>, bytes: u64) -> Sink {
        Sink(Arc::new(Mutex::new(State { watch, end: End::Output, left: bytes, kind: Kind::Capture(BytesMut::new()) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the log of another call of the same instance.
    pub(crate) fn again(&self, watch: Arc<Watch>, bytes: u64, request_id: Arc<str>) {
        let mut state = self.state();
        (state.watch, state.left) = (watch, bytes);
        if let Kind::Log { request, line, last, .. } = &mut state.kind {
            *request = request_id;
            line.clear();
            last.clear();
        }
    }

    /// Takes what was captured.
    pub(crate) fn take(&self) -> Bytes {
        match &mut self.state().kind {
            Kind::Capture(bytes) => bytes.split().freeze(),
            Kind::Log { .. } => Bytes::new(),
        }
    }

    /// Writes out a line that has no end yet, and returns the last line that there was.
    pub(crate) fn finish(&self) -> String {
        let mut state = self.state();
        state.emit();
        match &mut state.kind {
            Kind::Log { last, .. } => std::mem::take(last),
            Kind::Capture(_) => String::new(),
        }
    }

    /// Takes `bytes`, or ends the call.
    fn put(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut state = self.state();
        let Some(left) = state.left.checked_sub(bytes.len() as u64) else {
            state.watch.end(state.end);
            return Err("more output than the model may write");
        };
        state.left = left;
        if let Kind::Capture(captured) = &mut state.kind {
            captured.extend_from_slice(bytes);
            return Ok(());
        }
        for part in bytes.split_inclusive(|b| *b == b'\n').flat_map(|line| line.chunks(LINE)) {
            let Kind::Log { line, .. } = &mut state.kind else { continue };
            line.extend_from_slice(part);
            if line.len() >= LINE || line.ends_with(b"\n") {
                state.emit();
            }
        }
        Ok(())
    }
}

impl State {
    fn emit(&mut self) {
        let Kind::Log { model, request, line, last } = &mut self.kind else { return };
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if !text.is_empty() {
            tracing::info!(target: "windrose::guest", model = &**model, request_id = &**request, "{text}");
            *last = text;
        }
    }
}

// === impl the streams of both WASI versions ===

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.put(&bytes).map_err(StreamError::trap)
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(PERMIT)
    }
}

#[async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(PERMIT)];
        Poll::Ready(self.put(bytes).map(|()| bytes.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
