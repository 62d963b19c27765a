//! Where an admitted request runs: here, in the sandbox, or at one replica after the other of those that [`replicas`]
//! chooses. This is the only module that may try a second time.

#[cfg(test)]
mod law_tests;
pub mod patience;
pub mod replicas;
pub mod upload;

use std::time::{Duration, Instant};

use bytes::Bytes;
use windrose_sandbox::{CallContext, CommandOutput, HttpBody, InferRequest};

use crate::admit::{Admitted, Place};
use crate::error::{Error, Kind};
use crate::request::{Request, Response};

/// A result, and how long its call took in the sandbox and its engine.
pub type Timed<T> = (Result<T, Error>, Duration);

/// Runs one inference.
///
/// Fails as the sandbox and the engine say, and with [`Kind::Internal`] when the model has no signature, which its
/// kind rules out.
pub async fn infer(admitted: Admitted<Request>) -> Timed<Response> {
    let started = Instant::now();
    let context = admitted.context();
    let Admitted { served, what: request, permit, .. } = admitted;
    let Some(signature) = &served.signature else {
        let error = Error::new(Kind::Internal, "internal error").with_detail("a model without a signature");
        return (Err(error), Duration::ZERO);
    };
    let call = InferRequest { inputs: request.inputs, outputs: request.outputs, parameters: request.parameters };
    let answer = served.program.infer(signature, call, &context).await;
    drop(permit);
    let response = answer.map(|a| Response { outputs: a.outputs, parameters: a.parameters });
    (response.map_err(Error::from), started.elapsed())
}

/// Runs a command once over a body. Fails as the sandbox says, and with [`Kind::GuestFailed`] when the command ends
/// with another status than 0.
pub async fn run(admitted: Admitted<Bytes>) -> Timed<CommandOutput> {
    let started = Instant::now();
    let context = admitted.context();
    let Admitted { served, what: stdin, permit, .. } = admitted;
    let output = served.program.run(stdin, &context).await;
    drop(permit);
    let output = output.map_err(Error::from).and_then(|output| match output.status {
        0 => Ok(output),
        status => Err(Error::new(Kind::GuestFailed, format!("the command ended with status {status}"))),
    });
    (output, started.elapsed())
}

/// Hands one exchange to a `wasi:http` component. The answer's body streams, and the permit goes with it. Fails as the
/// sandbox says, up to the answer's head.
pub async fn serve(admitted: Admitted<http::Request<HttpBody>>) -> Timed<(http::Response<HttpBody>, Place)> {
    let started = Instant::now();
    let context = admitted.context();
    let Admitted { served, what: request, permit, .. } = admitted;
    let answer = served.program.serve(request, &context).await;
    (answer.map(|answer| (answer, permit)).map_err(Error::from), started.elapsed())
}

impl<T> Admitted<T> {
    /// What every call of this request carries.
    fn context(&self) -> CallContext {
        CallContext { deadline: self.deadline, request_id: self.request_id.clone(), tenant: self.tenant.clone() }
    }
}
