//! rten: pure Rust, built in.
//!
//! It holds `f32`, `i32`, `i8` and `u8`. Graphs that declare INT64 or BOOL run on its `i32`: their inputs are converted
//! here, their outputs back, and a value that does not fit is the caller's error. A graph that has any other type
//! anywhere is refused; so is one with a constant of 64 bits that it would saturate, unless all that it does is to leave
//! a slice open, and one that computes with INT64 of which the reader cannot tell that they stay within 32 bits. BOOL
//! that was cast from other numbers than 0 and 1 still has them: a graph that takes it for numbers is refused, and so is
//! one that computes with integers of 8 bits, which most operators of rten do not take.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rten::{LoadErrorKind, Model, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::{Tensor as RtenTensor, TensorView};

use super::{Engine, Loaded, Loading, Session, Work};
use crate::onnx::Element as OnnxElement;
use crate::{DataType, Device, Element, EngineError, EngineInfo, GraphInfo, GraphSpec, Isolation, Tensor};

/// The version that is compiled in; a test compares it with the lock file.
pub(crate) const VERSION: &str = "0.27.0";

/// The operators that rten has for integers of 8 bits: those that move them about, and those that quantise.
const ON_BYTES: [&str; 43] = [
    "BitCast",
    "Cast",
    "CastLike",
    "Constant",
    "ConstantOfShape",
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeLinear",
    "Expand",
    "EyeLike",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "If",
    "Loop",
    "MatMulInteger",
    "MatMulNBits",
    "Pad",
    "QuantizeLinear",
    "Reshape",
    "ReverseSequence",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "Shape",
    "Size",
    "Slice",
    "Split",
    "SplitToSequence",
    "Squeeze",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
];

/// The engine.
pub(crate) struct Rten {
    info: EngineInfo,
}

impl Rten {
    pub fn new() -> Rten {
        let providers = vec!["CPU".to_owned()];
        Rten { info: EngineInfo { name: "rten".into(), version: VERSION.into(), providers } }
    }
}

impl Engine for Rten {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn load(&self, graph: Loading) -> Result<Loaded, EngineError> {
        let Loading { onnx, model, device, sessions, threads } = graph;
        if device != Device::Cpu {
            return Err(EngineError::Unavailable("rten runs on the CPU only".into()));
        }
        check_types(&model)?;
        // The optimiser runs parts of the graph, and may panic as any run.
        let loaded = catch_unwind(AssertUnwindSafe(|| Model::load(onnx.into())));
        let loaded =
            loaded.map_err(|_| EngineError::InvalidGraph("rten panicked while it loaded this graph".into()))?;
        let loaded = Arc::new(Weights::new(loaded.map_err(load_error)?, &model.spec)?);
        let info = GraphInfo {
            engine: self.info.name.clone(),
            version: self.info.version.clone(),
            provider: "CPU".into(),
            nodes: Default::default(),
            sessions,
            threads,
            isolation: Isolation::Process,
        };
        let session = |_| -> Box<dyn Session> { Box::new(RtenSession::new(&loaded, threads)) };
        Ok(Loaded { info, sessions: (0..sessions).map(session).collect() })
    }
}

/// Refuses what rten would compute otherwise than the graph says.
fn check_types(model: &crate::onnx::Model) -> Result<(), EngineError> {
    let needs = |why: String| Err(EngineError::Unsupported(format!("{why}: this graph needs ONNX Runtime")));
    let declared = model.spec.inputs.iter().chain(&model.spec.outputs);
    for spec in declared {
        if !holds(spec.datatype) {
            return needs(format!("rten has no {}, the type of '{}'", spec.datatype, spec.name));
        }
    }
    // Halves would be widened to f32 and doubles rounded to it, which gives other numbers; but of a weight of halves that
    // the graph widens itself.
    let lacks = |element: OnnxElement, place: &str| format!("rten has no {}, the type of {place}", element.name());
    if let Some(place) = &model.half {
        return needs(lacks(OnnxElement::FLOAT16, place));
    }
    let inside = |(e, _): &(&OnnxElement, &String)| **e != OnnxElement::FLOAT16 && !e.datatype().is_some_and(holds);
    if let Some((element, place)) = model.elements.iter().find(inside) {
        return needs(lacks(*element, place));
    }
    let lacking = model.on_bytes.iter().find(|(op, _)| !ON_BYTES.contains(&op.as_str()));
    if let Some((op, (element, place))) = lacking {
        return needs(format!("rten has no {op} of {}, as in {place}", element.name()));
    }
    match &model.beyond_32_bits {
        Some(why) => needs(format!("rten has 32-bit numbers: {why}")),
        None => Ok(()),
    }
}

/// Whether inputs and outputs may have this type.
fn holds(datatype: DataType) -> bool {
    use DataType::{Bool, Fp32, Int8, Int32, Int64, Uint8};
    matches!(datatype, Fp32 | Int32 | Int8 | Uint8 | Int64 | Bool)
}

fn load_error(error: rten::LoadError) -> EngineError {
    match error.kind() {
        LoadErrorKind::OperatorInvalid => {
            EngineError::Unsupported(format!("rten cannot run this graph, which needs ONNX Runtime: {error}"))
        }
        _ => EngineError::InvalidGraph(format!("rten cannot load this graph: {error}")),
    }
}

/// A loaded graph, held once for all its sessions.
struct Weights {
    model: Model,
    inputs: Vec<(String, NodeId)>,
    outputs: Vec<(NodeId, DataType)>,
}

impl Weights {
    fn new(model: Model, spec: &GraphSpec) -> Result<Weights, EngineError> {
        let node = |name: &str| {
            let missing = || EngineError::InvalidGraph(format!("rten did not find '{name}' in this graph"));
            model.find_node(name).ok_or_else(missing)
        };
        let inputs = spec.inputs.iter().map(|s| Ok((s.name.clone(), node(&s.name)?))).collect::<Result<_, _>>()?;
        let outputs = spec.outputs.iter().map(|s| Ok((node(&s.name)?, s.datatype))).collect::<Result<_, _>>()?;
        Ok(Weights { model, inputs, outputs })
    }
}

struct RtenSession {
    weights: Arc<Weights>,
    threads: usize,
    pool: Arc<ThreadPool>,
    options: RunOptions,
}

impl RtenSession {
    fn new(weights: &Arc<Weights>, threads: usize) -> RtenSession {
        let pool = Arc::new(ThreadPool::with_num_threads(threads));
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&pool)));
        RtenSession { weights: Arc::clone(weights), threads, pool, options }
    }
}

impl Session for RtenSession {
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, EngineError> {
        let weights = &*self.weights;
        let held: Vec<Held<'_>> = inputs
            .iter()
            .zip(&weights.inputs)
            .map(|(tensor, (name, _))| Held::new(tensor, name))
            .collect::<Result<_, _>>()?;
        let views = held
            .iter()
            .zip(inputs)
            .zip(&weights.inputs)
            .map(|((held, tensor), (name, node))| Ok((*node, held.view(tensor.shape(), name)?)))
            .collect::<Result<_, EngineError>>()?;
        let wanted: Vec<(NodeId, DataType)> =
            outputs.iter().filter_map(|at| weights.outputs.get(*at).copied()).collect();
        let nodes: Vec<NodeId> = wanted.iter().map(|(node, _)| *node).collect();
        let values = weights.model.run(views, &nodes, Some(self.options.clone()));
        let values = values.map_err(|e| EngineError::Failed(format!("rten failed to run this graph: {e}")))?;
        values.into_iter().zip(wanted).map(|(value, (_, datatype))| returned(value, datatype)).collect()
    }

    fn serve(&mut self, work: &mut Work<'_>) {
        // A run on a thread of the pool stays on it; from any other thread it would be handed over, and back.
        let pool = Arc::clone(&self.pool);
        pool.run(|| work(self));
    }

    fn another(&self) -> Option<Box<dyn Session>> {
        Some(Box::new(RtenSession::new(&self.weights, self.threads)))
    }
}

/// An input's elements as rten holds them: borrowed where they are that already.
enum Held<'a> {
    Fp32(std::borrow::Cow<'a, [f32]>),
    Int32(std::borrow::Cow<'a, [i32]>),
    Int8(std::borrow::Cow<'a, [i8]>),
    Uint8(std::borrow::Cow<'a, [u8]>),
}

impl<'a> Held<'a> {
    fn new(tensor: &'a Tensor, name: &str) -> Result<Held<'a>, EngineError> {
        let held = match tensor.datatype() {
            DataType::Fp32 => tensor.values().map(Held::Fp32),
            DataType::Int32 => tensor.values().map(Held::Int32),
            DataType::Int8 => tensor.values().map(Held::Int8),
            DataType::Uint8 => tensor.values().map(Held::Uint8),
            DataType::Bool => Some(Held::Int32(tensor.data().iter().map(|b| i32::from(*b)).collect())),
            DataType::Int64 => match tensor.values::<i64>() {
                Some(values) => Some(Held::Int32(narrow(&values, name)?.into())),
                None => None,
            },
            _ => None,
        };
        held.ok_or_else(|| EngineError::Failed(format!("rten cannot hold input '{name}'")))
    }

    fn view(&self, shape: &[usize], name: &str) -> Result<ValueOrView<'_>, EngineError> {
        fn view<'a, T>(shape: &[usize], data: &'a [T], name: &str) -> Result<ValueOrView<'a>, EngineError>
        where
            ValueView<'a>: From<TensorView<'a, T>>,
        {
            let view = TensorView::try_from_data(shape, data);
            let view = view.map_err(|e| EngineError::Failed(format!("rten cannot hold input '{name}': {e}")))?;
            Ok(ValueOrView::View(view.into()))
        }
        match self {
            Held::Fp32(data) => view(shape, data, name),
            Held::Int32(data) => view(shape, data, name),
            Held::Int8(data) => view(shape, data, name),
            Held::Uint8(data) => view(shape, data, name),
        }
    }
}

/// The values in 32 bits, or the error that names the first that does not fit.
fn narrow(values: &[i64], name: &str) -> Result<Vec<i32>, EngineError> {
    let narrowed: Vec<i32> = values.iter().map(|v| *v as i32).collect();
    // In one go, so that it is done many at a time.
    if narrowed.iter().zip(values).all(|(n, v)| i64::from(*n) == *v) {
        return Ok(narrowed);
    }
    let lost = values.iter().find(|v| i32::try_from(**v).is_err()).copied().unwrap_or_default();
    Err(EngineError::InvalidInput(format!(
        "input '{name}' holds {lost}, which the engine rten cannot hold: its integers have 32 bits"
    )))
}

/// An output with its declared type.
fn returned(value: Value, declared: DataType) -> Result<Tensor, EngineError> {
    match (value, declared) {
        (Value::FloatTensor(t), DataType::Fp32) => taken(t),
        (Value::Int32Tensor(t), DataType::Int32) => taken(t),
        (Value::Int8Tensor(t), DataType::Int8) => taken(t),
        (Value::UInt8Tensor(t), DataType::Uint8) => taken(t),
        (Value::Int32Tensor(t), DataType::Int64) => {
            let shape = shape_of(&t);
            made(Tensor::from_vec(shape, t.into_data().into_iter().map(i64::from).collect()))
        }
        (Value::Int32Tensor(t), DataType::Bool) => {
            let shape = shape_of(&t);
            let bytes: Vec<u8> = t.into_data().into_iter().map(|v| u8::from(v != 0)).collect();
            made(Tensor::new(DataType::Bool, shape, bytes.into()))
        }
        (value, _) => {
            let made = value.dtype();
            Err(EngineError::InvalidGraph(format!("declares an output as {declared}, of which rten makes {made}")))
        }
    }
}

fn shape_of<T>(tensor: &RtenTensor<T>) -> Vec<usize> {
    use rten_tensor::Layout;
    tensor.shape().to_vec()
}

/// The memory of an output, taken over.
fn taken<T: Element>(tensor: RtenTensor<T>) -> Result<Tensor, EngineError> {
    let shape = shape_of(&tensor);
    made(Tensor::from_vec(shape, tensor.into_data()))
}

fn made(tensor: Result<Tensor, crate::TensorError>) -> Result<Tensor, EngineError> {
    tensor.map_err(|e| EngineError::Failed(format!("rten returned an output that does not hold together: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_lock_file() {
        let lock = include_str!("../../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"rten\"\nversion = \"{VERSION}\"\n")));
    }

    #[test]
    fn what_fits_32_bits_is_kept_and_the_rest_is_named() {
        assert_eq!(narrow(&[0, -1, i64::from(i32::MAX)], "ids"), Ok(vec![0, -1, i32::MAX]));
        for lost in [1 << 31, i64::MIN, i64::MAX, -(1 << 31) - 1] {
            let error = narrow(&[5, lost], "ids").expect_err("too wide").to_string();
            assert!(error.contains("'ids'") && error.contains(&lost.to_string()), "{error}");
        }
    }
}
