//! Runs of `wasi:cli` commands: the body on standard input, the answer from standard output.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Store;
use wasmtime_wasi::I32Exit;

use crate::code::Entry;
use crate::output::Sink;
use crate::program::{Inner, Outcome};
use crate::state::{State, Stdio};
use crate::{CallContext, CallError, CommandOutput};

/// One run.
pub(crate) async fn run(program: &Arc<Inner>, input: Bytes, context: &CallContext) -> Result<CommandOutput, CallError> {
    let call = program.watch(context);
    let output = Sink::capture(call.watch().clone(), program.limits.output);
    let stdio = Stdio { input, output: output.clone() };
    let status = program
        .call_watched(&call, context, Some(stdio), async |store, code| {
            let result = start(&code.entry, store).await?;
            let status = match result {
                Ok(Ok(())) => 0,
                Ok(Err(())) => 1,
                Err(error) => match error.downcast_ref::<I32Exit>() {
                    Some(exit) => exit.0,
                    None => return Err(Outcome::Guest(error)),
                },
            };
            match store.data_mut().engine_error.take() {
                Some(error) if status != 0 => Err(Outcome::Call(CallError::Engine(error))),
                _ => Ok(status),
            }
        })
        .await?;
    Ok(CommandOutput { status, stdout: output.take() })
}

type Exit = wasmtime::Result<Result<(), ()>>;

async fn start(entry: &Entry, store: &mut Store<State>) -> Result<Exit, Outcome> {
    match entry {
        Entry::Command2(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            Ok(command.wasi_cli_run().call_run(&mut *store).await)
        }
        Entry::Command3(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            let run = store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await;
            Ok(run.and_then(|result| result))
        }
        _ => Err(CallError::Host("not a command".into()).into()),
    }
}
