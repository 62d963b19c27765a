//! Exchanges with `wasi:http` components, 0.2 and 0.3, from one path.
//!
//! The guest runs in a task of its own, which outlives the answer's head: it ends when the guest does, when a limit or
//! the deadline does, or when the answer's body is dropped. A body that is cut short ends with an error, never as if it
//! were whole.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::Request as Request3;
use wasmtime_wasi_http::{Error as HttpError, WasiBody, WasiHttpView};

use crate::code::Entry;
use crate::program::{HttpBody, Inner, Outcome};
use crate::state::State;
use crate::ticker::{End, Registration};
use crate::{CallContext, CallError};

type Head = oneshot::Sender<Response<WasiBody>>;

/// How the guest ended, once it has.
type Ended = Arc<OnceLock<Result<(), CallError>>>;

/// One exchange.
pub(crate) async fn serve(
    program: &Arc<Inner>,
    request: Request<HttpBody>,
    context: &CallContext,
) -> Result<Response<HttpBody>, CallError> {
    let request = prepare(request)?;
    let (head, answer) = oneshot::channel();
    let ended = Ended::default();
    let call = program.watch(context);
    let watch = call.watch().clone();
    let task = tokio::spawn(guest(program.clone(), call, context.clone(), (request, head), ended.clone()));
    let task = AbortOnDrop(task);
    let Ok(response) = answer.await else {
        let _ = finished(task).await;
        return Err(match ended.get() {
            Some(Err(error)) => error.clone(),
            Some(Ok(())) => CallError::Contract("it returned without an answer".into()),
            None => CallError::Host("the guest's task ended".into()),
        });
    };
    let left = program.limits.output;
    let body = |inner| Answer { inner, task, ended, left, watch, done: false };
    Ok(response.map(|inner| body(inner).boxed_unsync()))
}

async fn finished(mut task: AbortOnDrop) -> Result<(), tokio::task::JoinError> {
    (&mut task.0).await
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The request as both versions take it: with an authority, and bodies that fail in their words.
fn prepare(request: Request<HttpBody>) -> Result<Request<WasiBody>, CallError> {
    let (mut parts, body) = request.into_parts();
    if parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) {
        parts.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    if parts.headers.get(HOST).is_some_and(|host| host.to_str().is_err()) {
        return Err(CallError::InvalidInput("the header `host` is not text".into()));
    }
    let body = body.map_err(|e| HttpError::InternalError(Some(e.to_string()))).boxed_unsync();
    Ok(Request::from_parts(parts, body))
}

/// Runs the guest to its end.
async fn guest(
    program: Arc<Inner>,
    call: Registration,
    context: CallContext,
    (request, head): (Request<WasiBody>, Head),
    ended: Ended,
) {
    let mut store = State::store(&program, &call, &context, None);
    let outcome = call.guard(pin!(exchange(&program, &mut store, request, head))).await;
    let result = match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Outcome::Call(error))) => Err(error),
        Ok(Err(Outcome::Guest(error))) => Err(store.data_mut().failure(&error)),
        Err(end) => Err(end.into()),
    };
    // Before the store goes: what is left of the body then ends, and asks for the reason.
    let _ = ended.set(result);
    drop(store);
}

async fn exchange(
    program: &Inner,
    store: &mut Store<State>,
    request: Request<WasiBody>,
    head: Head,
) -> Result<(), Outcome> {
    let code = program.code().await?;
    match &code.entry {
        Entry::Http2(pre) => {
            let proxy = pre.instantiate_async(&mut *store).await?;
            let refused = Arc::new(OnceLock::new());
            let note = refused.clone();
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(Scheme::Http, request)?;
            let out = http.new_response_outparam_from_callback(move |answer| match answer {
                Ok(response) => _ = head.send(response),
                Err(code) => _ = note.set(format!("{code:?}")),
            })?;
            proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await?;
            match refused.get() {
                Some(code) => Err(refusal(store, code).into()),
                None => Ok(()),
            }
        }
        Entry::Http3(pre) => {
            let service = pre.instantiate_async(&mut *store).await?;
            let (request, io) = Request3::from_http(store.data_mut().http().hooks, request);
            let refused = store
                .run_concurrent(async |accessor| {
                    let response = match service.handle(accessor, request).await? {
                        Ok(response) => response,
                        Err(code) => return wasmtime::error::Ok(Some(format!("{code:?}"))),
                    };
                    let response = accessor.with(|store| response.into_http(store, io))?;
                    let _ = head.send(response);
                    // The guest goes on after its answer: it writes the body.
                    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    Ok(None)
                })
                .await??;
            match refused {
                Some(code) => Err(refusal(store, &code).into()),
                None => Ok(()),
            }
        }
        _ => Err(CallError::Host("not a wasi:http component".into()).into()),
    }
}

/// The error of a guest that answered with an error code.
fn refusal(store: &mut Store<State>, code: &str) -> CallError {
    match store.data_mut().engine_error.take() {
        Some(error) => CallError::Engine(error),
        None => CallError::Failed(format!("it answered with {code}")),
    }
}

/// The answer's body: bounded, and the guest's task ends with it.
struct Answer {
    inner: WasiBody,
    task: AbortOnDrop,
    ended: Ended,
    /// Bytes that may still come.
    left: u64,
    watch: Arc<crate::ticker::Watch>,
    done: bool,
}

impl Answer {
    fn fail(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.done = true;
        self.task.0.abort();
        Poll::Ready(Some(Err(error.into())))
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => return Poll::Pending,
        };
        match frame {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                match this.left.checked_sub(size) {
                    Some(left) => this.left = left,
                    None => {
                        this.watch.end(End::Output);
                        return this.fail(End::Output.into());
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // However the body ends, the guest's own end says whether it is whole.
            end => match (this.ended.get(), end) {
                (Some(Err(error)), _) => {
                    let error = error.clone();
                    this.fail(error)
                }
                (_, Some(Err(error))) => this.fail(CallError::Failed(format!("its answer broke off: {error}"))),
                _ => {
                    this.done = true;
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
