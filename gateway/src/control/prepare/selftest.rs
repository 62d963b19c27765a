//! The self-test: a golden request and its answer, or, where there is none, each graph run once on zeros.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use windrose_engine::{DataType, Dim, EngineError, Graph, GraphSpec, Job, Tensor, TensorSpec};
use windrose_sandbox::{CallContext, CallError, InferRequest, ModuleKind, Program};

use super::PrepareError;
use super::child::sandbox_failed;
use super::job::TestFiles;
use crate::http::oip;
use crate::http::oip::halves::{self, List};

/// What is tested.
pub struct Subject<'a> {
    /// How it is called.
    pub kind: ModuleKind,
    /// The program.
    pub program: &'a Program,
    /// Its signature, where it has one.
    pub signature: Option<&'a GraphSpec>,
}

fn refuse(message: impl Into<String>) -> PrepareError {
    PrepareError::Refused(format!("self-test: {}", message.into()))
}

fn read(path: &Path) -> Result<Bytes, PrepareError> {
    std::fs::read(path).map(Bytes::from).map_err(|error| PrepareError::Host(format!("self-test: {error}")))
}

/// Sends the golden input and compares the answer.
///
/// # Errors
/// Says what failed, or where the answer differs.
pub async fn golden(subject: &Subject<'_>, test: &TestFiles, context: &CallContext) -> Result<(), PrepareError> {
    let input = read(&test.input)?;
    let expected = test.output.as_deref().map(read).transpose()?;
    if subject.kind != ModuleKind::Http && (test.method.is_some() || test.path.is_some()) {
        return Err(refuse("only the request to an http component has a method and a path"));
    }
    match (subject.kind, subject.signature) {
        (ModuleKind::Model, Some(signature)) => {
            let outputs = infer(subject.program, signature, &input, context).await?;
            match expected {
                Some(expected) => compare(&outputs, &expected, test.tolerance),
                None => Ok(()),
            }
        }
        (ModuleKind::Command, _) => {
            let output = subject.program.run(input, context).await.map_err(called)?;
            if output.status != 0 {
                return Err(refuse(format!("the command ended with status {}", output.status)));
            }
            compare_bytes(&output.stdout, expected.as_deref(), test.tolerance)
        }
        (ModuleKind::Http, _) => {
            let answer = exchange(subject.program, test, input, context).await?;
            compare_bytes(&answer, expected.as_deref(), test.tolerance)
        }
        (ModuleKind::Model, None) => Err(PrepareError::Host("a model without a signature".into())),
    }
}

fn called(error: CallError) -> PrepareError {
    match error {
        CallError::Host(_) | CallError::NotLoaded(_) => sandbox_failed(format!("self-test: {error}")),
        error => refuse(error.to_string()),
    }
}

async fn infer(
    program: &Program,
    signature: &GraphSpec,
    input: &Bytes,
    context: &CallContext,
) -> Result<Vec<(String, Tensor)>, PrepareError> {
    let wrong = |error| refuse(format!("input: {error}"));
    let (body, json_length) = halves::as_sent(input, List::Inputs).map_err(wrong)?;
    let request = oip::decode_request(&body, json_length, &mut |_| true).map_err(wrong)?.request;
    check_inputs(signature, &request.inputs)?;
    let request = InferRequest { inputs: request.inputs, outputs: request.outputs, parameters: request.parameters };
    Ok(program.infer(signature, request, context).await.map_err(called)?.outputs)
}

fn check_inputs(signature: &GraphSpec, inputs: &[(String, Tensor)]) -> Result<(), PrepareError> {
    for (name, tensor) in inputs {
        let Some(declared) = signature.inputs.iter().find(|spec| spec.name == *name) else {
            return Err(refuse(format!("input: the model has no input `{name}`")));
        };
        if declared.datatype != tensor.datatype() {
            let (is, wants) = (tensor.datatype(), declared.datatype);
            return Err(refuse(format!("input: `{name}` is {is}, and the model takes {wants}")));
        }
    }
    Ok(())
}

async fn exchange(
    program: &Program,
    test: &TestFiles,
    input: Bytes,
    context: &CallContext,
) -> Result<Bytes, PrepareError> {
    let body = Full::new(input).map_err(|never| match never {}).boxed_unsync();
    let (method, path) = (test.method.as_deref().unwrap_or("POST"), test.path.as_deref().unwrap_or("/"));
    let request = http::Request::builder().method(method).uri(format!("http://model{path}")).body(body);
    let request = request.map_err(|error| PrepareError::Host(error.to_string()))?;
    let answer = program.serve(request, context).await.map_err(called)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| refuse(error.to_string()))?.to_bytes();
    if status.is_success() { Ok(body) } else { Err(refuse(format!("the component answered {status}"))) }
}

/// Compares what a component or a command answers: byte by byte, and where both are JSON, value by value.
fn compare_bytes(actual: &[u8], expected: Option<&[u8]>, tolerance: f64) -> Result<(), PrepareError> {
    let Some(expected) = expected.filter(|expected| *expected != actual) else { return Ok(()) };
    let json = |text| serde_json::from_slice::<Value>(text).ok();
    if let Some((actual, wanted)) = json(actual).zip(json(expected)) {
        return match other_value(&actual, &wanted, tolerance) {
            Some(path) => Err(refuse(format!("the answer differs from the golden one at its JSON path `{path}`"))),
            None => Ok(()),
        };
    }
    let at = actual.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let (is, wants) = (actual.len(), expected.len());
    Err(refuse(format!("the answer ({is} bytes) differs from the golden one ({wants} bytes) at byte {at}")))
}

/// The JSON pointer of the first value that is another. A number with a fraction may be off as an output of floats may.
fn other_value(actual: &Value, wanted: &Value, tolerance: f64) -> Option<String> {
    let within = |key: &str, a: &Value, b: &Value| {
        let path = other_value(a, b, tolerance)?;
        Some(format!("/{key}{path}"))
    };
    match (actual, wanted) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| within(&at.to_string(), a, b))
        }
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            b.iter().find_map(|(key, b)| a.get(key).map_or_else(|| Some(format!("/{key}")), |a| within(key, a, b)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let are_near = a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| near(a, b, tolerance));
            (!are_near).then(String::new)
        }
        (actual, wanted) => (actual != wanted).then(String::new),
    }
}

/// Compares the JSON answer of a request of the Open Inference Protocol with the golden one.
///
/// # Errors
/// Where they differ.
pub fn compare_golden(answer: &Bytes, golden: &Bytes, tolerance: f64) -> Result<(), String> {
    let (_, answer) = oip::decode_response(answer, None).map_err(|error| format!("the answer: {error}"))?;
    compare(&answer.outputs, golden, tolerance).map_err(|error| error.to_string())
}

fn compare(actual: &[(String, Tensor)], expected: &Bytes, tolerance: f64) -> Result<(), PrepareError> {
    let wrong = |error| refuse(format!("output: {error}"));
    let (expected, json_length) = halves::as_sent(expected, List::Outputs).map_err(wrong)?;
    let (_, expected) = oip::decode_response(&expected, json_length).map_err(wrong)?;
    for (name, wanted) in &expected.outputs {
        let Some((_, tensor)) = actual.iter().find(|(n, _)| n == name) else {
            return Err(refuse(format!("the answer has no output `{name}`")));
        };
        if tensor.datatype() != wanted.datatype() || tensor.shape() != wanted.shape() {
            return Err(refuse(format!(
                "output `{name}` is {} of shape {:?}, and the golden one {} of shape {:?}",
                tensor.datatype(),
                tensor.shape(),
                wanted.datatype(),
                wanted.shape()
            )));
        }
        if let Some(at) = first_difference(tensor, wanted, tolerance) {
            let shown = |tensor: &Tensor| element(tensor, at).map_or(String::new(), |element| format!(" {element}"));
            return Err(refuse(format!(
                "output `{name}` differs from the golden one at element {at}:{} instead of{}",
                shown(tensor),
                shown(wanted)
            )));
        }
    }
    Ok(())
}

/// The first element that is another. A floating one may be off by `tolerance`, against the larger magnitude or 1; all others
/// are what they are, or not.
fn first_difference(actual: &Tensor, wanted: &Tensor, tolerance: f64) -> Option<usize> {
    if let Some((a, b)) = floats(actual).zip(floats(wanted)) {
        return a.iter().zip(&b).position(|(a, b)| !near(*a, *b, tolerance));
    }
    match actual.datatype().width() {
        Some(width) => actual.data().chunks(width).zip(wanted.data().chunks(width)).position(|(a, b)| a != b),
        None => actual.strings().zip(wanted.strings()).position(|(a, b)| a != b),
    }
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// The elements as doubles; `None` of a type that is not floating.
fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.datatype() {
        DataType::Fp16 => Some(tensor.values::<half::f16>()?.iter().map(|v| v.to_f64()).collect()),
        DataType::Bf16 => Some(tensor.values::<half::bf16>()?.iter().map(|v| v.to_f64()).collect()),
        DataType::Fp32 => Some(tensor.values::<f32>()?.iter().map(|v| f64::from(*v)).collect()),
        DataType::Fp64 => Some(tensor.values::<f64>()?.to_vec()),
        _ => None,
    }
}

/// An element as people write it; `None` for a byte string, which may be long.
fn element(tensor: &Tensor, at: usize) -> Option<String> {
    macro_rules! shown {
        ($($name:ident: $rust:ty),*) => {
            match tensor.datatype() {
                $( DataType::$name => tensor.values::<$rust>()?.get(at)?.to_string(), )*
                DataType::Bool => (*tensor.data().get(at)? != 0).to_string(),
                DataType::Bytes => return None,
            }
        };
    }
    Some(shown!(
        Uint8: u8, Uint16: u16, Uint32: u32, Uint64: u64, Int8: i8, Int16: i16, Int32: i32, Int64: i64,
        Fp16: half::f16, Bf16: half::bf16, Fp32: f32, Fp64: f64
    ))
}

/// Runs each graph once on zeros, with every free dimension 1. An ordinary error is only a warning, since zeros may
/// mean nothing to the graph; one that does not end, or wants memory that is not there, is refused. So is one that is
/// `bare`, the model itself, and makes another shape or type than it declares: that is what clients would be told.
///
/// # Errors
/// As above.
pub async fn zeros(graphs: &BTreeMap<String, Graph>, bare: bool, wall: Duration) -> Result<Vec<String>, PrepareError> {
    let mut warnings = Vec::new();
    for (name, graph) in graphs {
        let inputs: Option<Vec<_>> = graph.spec().inputs.iter().map(zero).collect();
        let Some(inputs) = inputs else {
            warnings.push(format!("graph `{name}` was not tried: it declares an input without a rank or too large"));
            continue;
        };
        let job = Job { inputs, deadline: Some(Instant::now() + wall), ..Job::default() };
        let endless = || refuse(format!("graph `{name}`, run on zeros, did not end within {wall:?}"));
        match tokio::time::timeout(wall, graph.compute(job)).await {
            Err(_) | Ok(Err(EngineError::Deadline)) => return Err(endless()),
            Ok(Err(error)) if out_of_memory(&error) => {
                return Err(refuse(format!("graph `{name}`, run on zeros, wants more memory than there is: {error}")));
            }
            Ok(Err(EngineError::InvalidGraph(why))) if bare => return Err(refuse(format!("graph `{name}` {why}"))),
            Ok(Err(error)) => warnings.push(format!(
                "graph `{name}`, run on zeros with every free dimension 1, failed: {error}. A golden test would tell more"
            )),
            Ok(Ok(outputs)) => match misdeclared(graph.spec(), &outputs) {
                Some(why) if bare => return Err(refuse(format!("graph `{name}` {why}"))),
                Some(why) => warnings.push(format!("graph `{name}` {why}")),
                None => {}
            },
        }
    }
    Ok(warnings)
}

/// The first output that has not the declared shape.
fn misdeclared(spec: &GraphSpec, outputs: &[(String, Tensor)]) -> Option<String> {
    outputs.iter().find_map(|(name, tensor)| {
        let declared = spec.outputs.iter().find(|declared| declared.name == *name)?;
        let dims = declared.shape.as_ref().filter(|_| !declared.fits(tensor.shape()))?;
        let dims: Vec<_> = dims.iter().map(Dim::to_string).collect();
        Some(format!("declares its output `{name}` as [{}], and made {:?}", dims.join(", "), tensor.shape()))
    })
}

fn out_of_memory(error: &EngineError) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    ["bad_alloc", "bad allocation", "failed to allocate", "out of memory"].iter().any(|words| text.contains(words))
}

/// The most bytes of one input of zeros.
const MOST_ZEROS: usize = 256 << 20;

fn zero(spec: &TensorSpec) -> Option<(String, Tensor)> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => usize::try_from(*size).ok(),
        Dim::Symbol(_) => Some(1),
    };
    let shape: Vec<usize> = spec.shape.as_ref()?.iter().map(size).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let bytes = count.checked_mul(spec.datatype.width().unwrap_or(4)).filter(|bytes| *bytes <= MOST_ZEROS)?;
    // An empty byte string is a length of zero: four zero bytes.
    let tensor = Tensor::new(spec.datatype, shape, Bytes::from(vec![0; bytes])).ok()?;
    Some((spec.name.clone(), tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn numbers_differ_beyond_the_tolerance_only() {
        assert_eq!(first_difference(&floats(&[1.0, 1e6]), &floats(&[1.00001, 1e6 + 10.0]), 1e-4), None);
        assert_eq!(first_difference(&floats(&[1.0, 2.0]), &floats(&[1.0, 2.1]), 1e-4), Some(1));
        assert_eq!(first_difference(&floats(&[f32::NAN]), &floats(&[f32::NAN]), 0.0), None);
        assert_eq!(first_difference(&floats(&[f32::NAN]), &floats(&[1.0]), 1.0), Some(0));
    }

    #[test]
    fn what_is_not_floating_is_compared_exactly() {
        let ints = |values: &[i64]| Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap();
        let tokens = ints(&[30_000, i64::MAX - 1]);
        assert_eq!(first_difference(&tokens, &tokens, 1.0), None);
        assert_eq!(first_difference(&tokens, &ints(&[30_001, i64::MAX - 1]), 1e-4), Some(0));
        assert_eq!(first_difference(&tokens, &ints(&[30_000, i64::MAX]), 0.0), Some(1));
        let bytes = |values: &[u8]| Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap();
        assert_eq!(first_difference(&bytes(&[1, 200]), &bytes(&[1, 201]), 0.5), Some(1));
        let bools = |values: &'static [u8]| Tensor::new(DataType::Bool, vec![values.len()], values.into()).unwrap();
        assert_eq!(first_difference(&bools(&[1, 0]), &bools(&[1, 1]), 1.0), Some(1));
        let said = |t: &Tensor| element(t, 1).unwrap();
        assert_eq!((said(&tokens), said(&bools(&[1, 0]))), ((i64::MAX - 1).to_string(), "false".to_string()));
    }

    #[test]
    fn halves_have_the_tolerance_that_floats_have() {
        let halves = |value: f32| Tensor::from_vec(vec![1], vec![half::f16::from_f32(value)]).unwrap();
        assert_eq!(first_difference(&halves(1.0), &halves(1.01), 0.1), None);
        assert_eq!(first_difference(&halves(1.0), &halves(1.01), 1e-4), Some(0));
    }

    #[test]
    fn a_golden_answer_of_halves_is_written_in_numbers() {
        let halves = |values: &[f32]| {
            let values: Vec<_> = values.iter().map(|value| half::bf16::from_f32(*value)).collect();
            vec![("y".to_owned(), Tensor::from_vec(vec![values.len()], values).unwrap())]
        };
        let golden = r#"{"outputs": [{"name": "y", "datatype": "BF16", "shape": [2], "data": [1, 0.5]}]}"#.into();
        assert_eq!(compare(&halves(&[1.0, 0.5]), &golden, 1e-4), Ok(()));
        let error = compare(&halves(&[1.0, 0.25]), &golden, 1e-4).unwrap_err().to_string();
        assert!(error.ends_with("at element 1: 0.25 instead of 0.5"), "{error}");
        let large = r#"{"outputs": [{"name": "y", "datatype": "BF16", "shape": [1], "data": [1e39]}]}"#.into();
        let error = compare(&halves(&[1.0]), &large, 1e-4).unwrap_err().to_string();
        assert!(error.contains("output: y: element 0") && error.ends_with("out of range for BF16"), "{error}");
    }

    #[test]
    fn an_answer_of_json_is_compared_by_its_values() {
        let compare = |actual: &str, expected: &str| {
            let compared = compare_bytes(actual.as_bytes(), Some(expected.as_bytes()), 1e-4);
            compared.map_err(|error| error.to_string())
        };
        let golden = r#"{"species": "setosa", "probability": [1, 0.5], "count": 3}"#;
        assert_eq!(compare(r#"{"count":3,"species":"setosa","probability":[0.99999,0.50001]}"#, golden), Ok(()));
        for (actual, place) in [
            (r#"{"species": "setosa", "probability": [1, 0.6], "count": 3}"#, "path `/probability/1`"),
            (r#"{"species": "virginica", "probability": [1, 0.5], "count": 3}"#, "path `/species`"),
            (r#"{"species": "setosa", "probability": [1], "count": 3}"#, "path `/probability`"),
            (r#"{"species": "setosa", "probability": [1, 0.5], "counts": 3}"#, "path `/count`"),
            (r#"{"species": "setosa", "probability": [1, 0.5]}"#, "path ``"),
            (r#"{"species": "setosa", "probability": [1, 0.5], "count": 4}"#, "path `/count`"),
            ("[]", "path ``"),
            ("<html>", "at byte 0"),
        ] {
            let error = compare(actual, golden).unwrap_err();
            assert!(error.ends_with(place), "{actual}: {error}");
        }
        assert_eq!(compare("<html>", "<html>"), Ok(()));
        assert_eq!(compare_bytes(b"anything", None, 0.0), Ok(()));
    }

    #[test]
    fn strings_differ_by_content() {
        let strings = |texts: &[&str]| Tensor::from_strings(vec![texts.len()], texts).unwrap();
        assert_eq!(first_difference(&strings(&["a", "b"]), &strings(&["a", "b"]), 0.0), None);
        assert_eq!(first_difference(&strings(&["a", "b"]), &strings(&["a", "c"]), 0.0), Some(1));
    }

    #[test]
    fn zeros_have_the_declared_shape() {
        let spec = |shape: Vec<Dim>, datatype| TensorSpec { name: "x".into(), datatype, shape: Some(shape) };
        let (_, tensor) = zero(&spec(vec![Dim::Symbol("N".into()), Dim::Fixed(3)], DataType::Fp32)).unwrap();
        assert_eq!(tensor.shape(), [1, 3]);
        let (_, tensor) = zero(&spec(vec![Dim::Fixed(2)], DataType::Bytes)).unwrap();
        assert_eq!(tensor.strings().count(), 2);
        assert!(zero(&spec(vec![Dim::Fixed(u64::MAX), Dim::Fixed(2)], DataType::Fp32)).is_none());
    }
}
