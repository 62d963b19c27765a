//! Calls of the world `model`: requests lowered into handles and lists, answers checked against the signature.

use std::sync::Arc;

use wasmtime::Store;
use windrose_engine::{DataType, Dim, Fault, GraphSpec, Tensor, TensorSpec};

use crate::code::Entry;
use crate::kept::{Guest, Instance};
use crate::nn::{ModelPre, types};
use crate::program::{Inner, Outcome};
use crate::state::State;
use crate::{CallContext, CallError, InferRequest, InferResponse, Limit, Parameter, Program};

/// Asks the module for its signature.
pub(crate) async fn describe(program: &Arc<Inner>, context: &CallContext) -> Result<GraphSpec, CallError> {
    let description = program
        .call(context, async |store, code| {
            let model = model(&code.entry)?.instantiate_async(&mut *store).await?;
            Ok(model.windrose_model_handler().call_describe(&mut *store).await?)
        })
        .await?;
    match description {
        types::Description::Graph(name) => match program.graphs.get(&name) {
            Some(graph) => Ok(graph.spec().clone()),
            None => Err(CallError::Contract(format!("it describes itself as the graph `{name}`, which it has not"))),
        },
        types::Description::Signature(signature) => {
            let inputs = declarations("input", signature.inputs)?;
            let outputs = declarations("output", signature.outputs)?;
            if outputs.is_empty() {
                return Err(CallError::Contract("it declares no output".into()));
            }
            Ok(GraphSpec { inputs, outputs })
        }
    }
}

/// One inference.
pub(crate) async fn infer(
    program: &Program,
    signature: &GraphSpec,
    request: InferRequest,
    context: &CallContext,
) -> Result<InferResponse, CallError> {
    let (wanted, kept, program) = (request.outputs.clone(), &program.kept, &program.inner);
    let call = program.watch(context);
    let mut instance = kept.begin(program, &call, context);
    let Instance { store, guest, .. } = &mut instance;
    let answer = program
        .run(&call, store, async |store, code| {
            let (request, held) = lower(store.data_mut(), request)?;
            let guest = match guest {
                Some(guest) => guest,
                None => guest.insert(Guest::new(model(&code.entry)?.instantiate_async(&mut *store).await?, code)),
            };
            let response = guest.model.windrose_model_handler().call_infer(&mut *store, &request).await?;
            drop(request);
            let state = store.data_mut();
            state.release(held);
            let response = response.map_err(|failure| Outcome::Call(blame(state, failure)))?;
            Ok(lift(store, signature, &wanted, response)?)
        })
        .await?;
    kept.end(instance);
    Ok(answer)
}

fn model(entry: &Entry) -> Result<&ModelPre<State>, CallError> {
    match entry {
        Entry::Model(pre) => Ok(pre),
        _ => Err(CallError::Host("not a module of the world `model`".into())),
    }
}

/// What a module's own failure means: an engine that was too busy, or too late, stays so whatever the module says.
fn blame(state: &mut State, failure: types::Failure) -> CallError {
    let failure = match failure {
        types::Failure::InvalidInput(text) => types::Failure::InvalidInput(clipped(text)),
        types::Failure::Internal(text) => types::Failure::Internal(clipped(text)),
    };
    match (failure, state.engine_error.take()) {
        (types::Failure::InvalidInput(text), Some(error)) => match error.fault() {
            Fault::Caller | Fault::Graph => CallError::InvalidInput(text),
            Fault::Time | Fault::Crash | Fault::Unready | Fault::Overload | Fault::Deadline | Fault::Host => {
                CallError::Engine(error)
            }
        },
        (types::Failure::InvalidInput(text), None) => CallError::InvalidInput(text),
        (types::Failure::Internal(_), Some(error)) => CallError::Engine(error),
        (types::Failure::Internal(text), None) => CallError::Failed(text),
    }
}

/// The most of a module's own words that goes into a message, bytes.
const MAX_WORDS: usize = 4 << 10;

/// A guest's text, cut to what a message may hold.
fn clipped(mut text: String) -> String {
    if text.len() > MAX_WORDS {
        text.truncate(text.floor_char_boundary(MAX_WORDS));
        text.push('…');
    }
    text
}

// === impl requests ===

/// What an element of byte strings takes on the host beside its bytes: the list that it becomes, and what an allocator adds.
const ELEMENT: u64 = size_of::<Vec<u8>>() as u64 + 16;

/// The request as the guest takes it, and what its byte strings are charged for until the guest has answered.
fn lower(state: &mut State, request: InferRequest) -> wasmtime::Result<(types::Request, u64)> {
    let mut inputs = Vec::with_capacity(request.inputs.len());
    let mut held = 0;
    for (name, tensor) in request.inputs {
        let value = match tensor.datatype() {
            DataType::Bytes => {
                // Before they are there: they may take many times what the tensor does.
                let strings = tensor.len() as u64;
                let bytes = strings.saturating_mul(ELEMENT).saturating_add(tensor.data().len() as u64);
                state.charge(bytes)?;
                held += bytes;
                types::Value::Strings(types::ByteStrings {
                    shape: tensor.shape().iter().map(|d| u32::try_from(*d)).collect::<Result<_, _>>()?,
                    elements: tensor.strings().map(Vec::from).collect(),
                })
            }
            _ => types::Value::Tensor(state.push_tensor(tensor)?),
        };
        inputs.push(types::NamedValue { name, value });
    }
    let parameter = |(name, value)| {
        let value = match value {
            Parameter::Boolean(v) => types::Parameter::Boolean(v),
            Parameter::Integer(v) => types::Parameter::Integer(v),
            Parameter::Number(v) => types::Parameter::Number(v),
            Parameter::Text(v) => types::Parameter::Text(v),
        };
        (name, value)
    };
    let parameters = request.parameters.into_iter().map(parameter).collect();
    Ok((types::Request { inputs, outputs: request.outputs, parameters }, held))
}

// === impl answers ===

/// Takes the answer out of the store, each output as the signature declares it.
fn lift(
    store: &mut Store<State>,
    signature: &GraphSpec,
    wanted: &[String],
    response: types::Response,
) -> Result<InferResponse, CallError> {
    let state = store.data_mut();
    let mut left = Left(state.program.limits.output);
    let mut named: Vec<(String, Tensor)> = Vec::with_capacity(response.outputs.len());
    for types::NamedValue { name, value } in response.outputs {
        let spec = signature.outputs.iter().find(|spec| spec.name == name);
        let Some(spec) = spec else {
            let name = clipped(name);
            return Err(CallError::Contract(format!("it returned `{name}`, which it does not declare")));
        };
        if named.iter().any(|(other, _)| *other == name) {
            return Err(CallError::Contract(format!("it returned `{name}` twice")));
        }
        let tensor = typed(state, spec, value)?;
        if wanted.is_empty() || wanted.contains(&name) {
            left.take(tensor.data().len())?;
            named.push((name, tensor));
        }
    }
    let mut outputs = Vec::with_capacity(named.len());
    let mut take = |name: &String| -> Result<(), CallError> {
        let at = named.iter().position(|(other, _)| other == name);
        let at = at.ok_or_else(|| CallError::Contract(format!("it did not return `{name}`")))?;
        outputs.push(named.swap_remove(at));
        Ok(())
    };
    if wanted.is_empty() {
        signature.outputs.iter().map(|spec| &spec.name).try_for_each(&mut take)?;
    } else {
        wanted.iter().try_for_each(&mut take)?;
    }
    let parameter = |(name, value): (String, types::Parameter)| {
        let value = match value {
            types::Parameter::Boolean(v) => Parameter::Boolean(v),
            types::Parameter::Integer(v) => Parameter::Integer(v),
            types::Parameter::Number(v) if v.is_finite() => Parameter::Number(v),
            types::Parameter::Number(v) => {
                let name = clipped(name);
                return Err(CallError::Contract(format!("its parameter `{name}` is {v}, which no answer can hold")));
            }
            types::Parameter::Text(v) => Parameter::Text(v),
        };
        let text = if let Parameter::Text(text) = &value { text.len() } else { size_of::<u64>() };
        left.take(name.len())?;
        left.take(text)?;
        Ok((name, value))
    };
    let parameters = response.parameters.into_iter().map(parameter).collect::<Result<_, CallError>>()?;
    Ok(InferResponse { outputs, parameters })
}

/// How many bytes the answer may still have.
struct Left(u64);

impl Left {
    fn take(&mut self, bytes: usize) -> Result<(), CallError> {
        self.0 = self.0.checked_sub(bytes as u64).ok_or(CallError::Limit(Limit::Output))?;
        Ok(())
    }
}

/// A returned value as the tensor that was declared.
fn typed(state: &mut State, spec: &TensorSpec, value: types::Value) -> Result<Tensor, CallError> {
    let name = &spec.name;
    let tensor = match value {
        types::Value::Tensor(handle) => {
            let tensor = state.take_tensor(handle).map_err(|e| CallError::Contract(format!("`{name}`: {e}")))?;
            let from = tensor.datatype();
            tensor.reinterpret(spec.datatype).map_err(|e| {
                CallError::Contract(format!("`{name}` is declared {} and came as {from}: {e}", spec.datatype))
            })?
        }
        types::Value::Strings(_) if spec.datatype != DataType::Bytes => {
            return Err(CallError::Contract(format!("`{name}` is declared {} and came as strings", spec.datatype)));
        }
        types::Value::Strings(strings) => {
            let shape: Vec<usize> = strings.shape.iter().map(|d| *d as usize).collect();
            Tensor::from_strings(shape, &strings.elements).map_err(|e| CallError::Contract(format!("`{name}`: {e}")))?
        }
    };
    if !spec.fits(tensor.shape()) {
        return Err(CallError::Contract(format!("`{name}` came with the shape {:?}", tensor.shape())));
    }
    Ok(tensor)
}

// === impl signatures ===

fn declarations(what: &str, specs: Vec<types::TensorSpec>) -> Result<Vec<TensorSpec>, CallError> {
    let mut declared: Vec<TensorSpec> = Vec::with_capacity(specs.len());
    for spec in specs {
        if spec.name.is_empty() || declared.iter().any(|other| other.name == spec.name) {
            return Err(CallError::Contract(format!("its {what} `{}` is empty or declared twice", spec.name)));
        }
        let dim = |d: Option<u32>| d.map_or(Dim::Symbol(String::new()), |n| Dim::Fixed(n.into()));
        declared.push(TensorSpec {
            name: spec.name,
            datatype: datatype(spec.data_type),
            shape: Some(spec.shape.into_iter().map(dim).collect()),
        });
    }
    Ok(declared)
}

fn datatype(declared: types::DataType) -> DataType {
    match declared {
        types::DataType::Bool => DataType::Bool,
        types::DataType::Uint8 => DataType::Uint8,
        types::DataType::Uint16 => DataType::Uint16,
        types::DataType::Uint32 => DataType::Uint32,
        types::DataType::Uint64 => DataType::Uint64,
        types::DataType::Int8 => DataType::Int8,
        types::DataType::Int16 => DataType::Int16,
        types::DataType::Int32 => DataType::Int32,
        types::DataType::Int64 => DataType::Int64,
        types::DataType::Fp16 => DataType::Fp16,
        types::DataType::Bf16 => DataType::Bf16,
        types::DataType::Fp32 => DataType::Fp32,
        types::DataType::Fp64 => DataType::Fp64,
        types::DataType::Bytes => DataType::Bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(clipped("short".into()), "short");
        assert_eq!(clipped("a".repeat(MAX_WORDS)).len(), MAX_WORDS);
        let cut = clipped(format!("a{}", "é".repeat(MAX_WORDS)));
        assert!(cut.ends_with("é…") && cut.len() == MAX_WORDS - 1 + '…'.len_utf8(), "{}", cut.len());
    }
}
