//! From the contract's generated types to this crate's, and back.

use std::marker::PhantomData;

use crate::bindings::exports::windrose::model::handler::Guest;
use crate::bindings::windrose::model::types as wit;
use crate::host::RawTensor;
use crate::signature::Spec;
use crate::{DataType, Error, Model, Parameter, Request, Signature, Strings, Tensor, Value};

/// A [`Model`] as the export of a module.
pub struct Adapter<M>(PhantomData<M>);

/// An initialiser as the export of a module.
pub trait Initialise {
    /// What the module's author wrote.
    fn initialise() -> crate::Result<()>;
}

/// An [`Initialise`] as the contract has it.
pub struct Initialiser<I>(PhantomData<I>);

impl<I: Initialise> crate::initialize_bindings::exports::windrose::model::initialize::Guest for Initialiser<I> {
    fn initialize() -> Result<(), String> {
        let outcome = I::initialise().map_err(|error| error.message().to_owned());
        forget_streams();
        outcome
    }
}

/// Makes the preview 1 adapter, through which the standard library prints, forget the host's handles: instances that
/// start from this memory have others.
#[allow(unsafe_code, reason = "a function of the adapter that every component of this target has")]
fn forget_streams() {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn reset_adapter_state();
    }
    // SAFETY: it takes and returns nothing, and the adapter makes its state anew when it is called next.
    unsafe { reset_adapter_state() }
}

impl<M: Model> Guest for Adapter<M> {
    fn describe() -> wit::Description {
        M::describe().into()
    }

    fn infer(request: wit::Request) -> Result<wit::Response, wit::Failure> {
        let request = Request {
            inputs: request.inputs.into_iter().map(|input| (input.name, input.value.into())).collect(),
            outputs: request.outputs,
            parameters: request.parameters.into_iter().map(|(name, value)| (name, value.into())).collect(),
        };
        let response = M::infer(request)?;
        let named = |(name, value): (String, Value)| wit::NamedValue { name, value: value.into() };
        Ok(wit::Response {
            outputs: response.outputs.into_iter().map(named).collect(),
            parameters: response.parameters.into_iter().map(|(name, value)| (name, value.into())).collect(),
        })
    }
}

impl From<Error> for wit::Failure {
    fn from(error: Error) -> wit::Failure {
        let message = error.message().to_owned();
        if error.is_invalid_input() { wit::Failure::InvalidInput(message) } else { wit::Failure::Internal(message) }
    }
}

impl From<wit::Value> for Value {
    fn from(value: wit::Value) -> Value {
        match value {
            wit::Value::Tensor(tensor) => Value::Tensor(Tensor(RawTensor(tensor))),
            wit::Value::Strings(strings) => {
                Value::Strings(Strings { shape: strings.shape, elements: strings.elements })
            }
        }
    }
}

impl From<Value> for wit::Value {
    fn from(value: Value) -> wit::Value {
        match value {
            Value::Tensor(tensor) => wit::Value::Tensor(tensor.0.0),
            Value::Strings(strings) => {
                wit::Value::Strings(wit::ByteStrings { shape: strings.shape, elements: strings.elements })
            }
        }
    }
}

impl From<wit::Parameter> for Parameter {
    fn from(parameter: wit::Parameter) -> Parameter {
        match parameter {
            wit::Parameter::Boolean(value) => Parameter::Boolean(value),
            wit::Parameter::Integer(value) => Parameter::Integer(value),
            wit::Parameter::Number(value) => Parameter::Number(value),
            wit::Parameter::Text(value) => Parameter::Text(value),
        }
    }
}

impl From<Parameter> for wit::Parameter {
    fn from(parameter: Parameter) -> wit::Parameter {
        match parameter {
            Parameter::Boolean(value) => wit::Parameter::Boolean(value),
            Parameter::Integer(value) => wit::Parameter::Integer(value),
            Parameter::Number(value) => wit::Parameter::Number(value),
            Parameter::Text(value) => wit::Parameter::Text(value),
        }
    }
}

impl From<Signature> for wit::Description {
    fn from(signature: Signature) -> wit::Description {
        let specs = |specs: Vec<Spec>| specs.into_iter().map(Into::into).collect();
        match signature.graph {
            Some(name) => wit::Description::Graph(name),
            None => wit::Description::Signature(wit::Signature {
                inputs: specs(signature.inputs),
                outputs: specs(signature.outputs),
            }),
        }
    }
}

impl From<Spec> for wit::TensorSpec {
    fn from(spec: Spec) -> wit::TensorSpec {
        wit::TensorSpec { name: spec.name, data_type: spec.data_type.into(), shape: spec.shape }
    }
}

impl From<DataType> for wit::DataType {
    fn from(data_type: DataType) -> wit::DataType {
        match data_type {
            DataType::Bool => wit::DataType::Bool,
            DataType::Uint8 => wit::DataType::Uint8,
            DataType::Uint16 => wit::DataType::Uint16,
            DataType::Uint32 => wit::DataType::Uint32,
            DataType::Uint64 => wit::DataType::Uint64,
            DataType::Int8 => wit::DataType::Int8,
            DataType::Int16 => wit::DataType::Int16,
            DataType::Int32 => wit::DataType::Int32,
            DataType::Int64 => wit::DataType::Int64,
            DataType::Fp16 => wit::DataType::Fp16,
            DataType::Bf16 => wit::DataType::Bf16,
            DataType::Fp32 => wit::DataType::Fp32,
            DataType::Fp64 => wit::DataType::Fp64,
            DataType::Bytes => wit::DataType::Bytes,
        }
    }
}
