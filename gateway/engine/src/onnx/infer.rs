//! What an operator makes of what is known of its inputs: the types of its outputs, and how large they can be.
//!
//! An operator that is not listed makes values of which nothing is known. What is listed is what rten has, and more.

use super::counters;
use super::element::Element;
use super::value::{Bound, Value};

/// A node as far as it decides what comes out.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub op: String,
    /// What is known of the inputs; nothing of those that are left out.
    pub inputs: Vec<Option<Value>>,
    /// The type that an attribute names.
    pub to: Option<Element>,
    /// The value that an attribute holds.
    pub constant: Option<Value>,
    /// What an attribute says elements that meet are made one by: `add`, `mul`, and so on.
    pub reduction: Option<String>,
    /// The outputs of each inner graph.
    pub graphs: Vec<Vec<Value>>,
}

/// Operators that only move elements of their first input about, or leave some out.
const MOVERS: [&str; 26] = [
    "Compress",
    "ConcatFromSequence",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "ReduceMax",
    "ReduceMin",
    "Reshape",
    "ReverseSequence",
    "SequenceAt",
    "SequenceErase",
    "Slice",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Squeeze",
    "Tile",
    "TopK",
    "Transpose",
    "Unsqueeze",
];

/// Operators that make floats of the type of their first input, of any size.
const FLOATS: [&str; 75] = [
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Attention",
    "BatchNormalization",
    "BiasGelu",
    "Celu",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DFT",
    "Det",
    "DynamicQuantizeLSTM",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "FusedConv",
    "FusedMatMul",
    "GRU",
    "Gelu",
    "GlobalLpPool",
    "GridSample",
    "GroupNormalization",
    "GroupQueryAttention",
    "HardSwish",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMulNBits",
    "MeanVarianceNormalization",
    "Mish",
    "MultiHeadAttention",
    "PRelu",
    "QuickGelu",
    "RMSNormalization",
    "RNN",
    "RandomNormalLike",
    "RandomUniformLike",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
    "Resize",
    "RoiAlign",
    "RotaryEmbedding",
    "STFT",
    "Selu",
    "Shrink",
    "SimplifiedLayerNormalization",
    "Sin",
    "Sinh",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "ThresholdedRelu",
    "Upsample",
    "GlobalAveragePool",
    "AveragePool",
];

/// Operators whose outputs are true or false.
const TRUTHS: [&str; 10] =
    ["And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"];

/// Operators whose outputs are sizes, counts and indices.
const SIZES: [&str; 7] = ["ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "SequenceLength", "Shape", "Size"];

/// Those of them that also take integers, and may make more of them than they were.
const ADDERS: [&str; 4] = ["PRelu", "ReduceL1", "ReduceL2", "ReduceSumSquare"];

/// Those of [`MOVERS`] that compare elements, and leave out what is smaller or larger.
const COMPARERS: [&str; 5] = ["GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMin", "TopK"];

/// What comes out of a node at `position` among its outputs.
pub(super) fn output(call: &Call, position: usize) -> Value {
    let nothing = Value::data(None);
    let op = call.op.as_str();
    let at = |position: usize| call.inputs.get(position).copied().flatten();
    let first = at(0).unwrap_or(nothing);
    match (op, position) {
        ("MaxPool" | "TopK", 1) | ("Unique", 1..) => return Value::size(),
        ("Dropout" | "DynamicQuantizeLinear", 1..) => return second(op, position),
        ("If" | "Loop" | "Scan", _) => return inner(call, position),
        _ => {}
    }
    if MOVERS.contains(&op) || op == "Unique" {
        return first;
    }
    if FLOATS.contains(&op) {
        return Value::data(first.element);
    }
    if TRUTHS.contains(&op) || op == "Xor" {
        return Value::data(Some(Element::BOOL));
    }
    if SIZES.contains(&op) {
        return Value::size();
    }
    if let Some(value) = arithmetic(call, first, at(1)) {
        // Not clipped to its type yet: whether it leaves 32 bits is still asked.
        return value;
    }
    if let Some(value) = made(call, first) {
        return value;
    }
    let all = || call.inputs.iter().map(|input| input.unwrap_or(nothing)).reduce(Value::or).unwrap_or(nothing);
    match op {
        "Concat" | "SequenceConstruct" => all(),
        "SequenceInsert" => first.or(at(1).unwrap_or(nothing)),
        "Where" => at(1).unwrap_or(nothing).or(at(2).unwrap_or(nothing)),
        "OneHot" => at(2).unwrap_or(nothing),
        "Pad" => first.or(at(2).unwrap_or(zero(first.element))),
        "Trilu" => first.or(zero(first.element)),
        "Scatter" | "ScatterElements" | "ScatterND" => first.or(at(2).unwrap_or(nothing)),
        "Dropout" => Value::data(first.element),
        "Softmax" | "Sigmoid" | "HardSigmoid" => Value::bounded(first.element, Bound::Within(0.0, 1.0)),
        "Tanh" => Value::bounded(first.element, Bound::Within(-1.0, 1.0)),
        "Hardmax" => Value::bounded(first.element, Bound::Within(0.0, 1.0)),
        "BitShift" | "BitwiseAnd" | "BitwiseNot" | "BitwiseOr" | "BitwiseXor" => Value::data(first.element),
        _ => nothing,
    }
}

/// The further outputs of operators that have some of another type.
fn second(op: &str, position: usize) -> Value {
    match (op, position) {
        ("Dropout", _) => Value::data(Some(Element::BOOL)),
        (_, 1) => Value::data(Some(Element::FLOAT)),
        _ => Value::data(Some(Element::UINT8)),
    }
}

fn zero(element: Option<Element>) -> Value {
    Value { element, bound: Bound::Within(0.0, 0.0), whole: true, divides: false, loose: false }
}

/// What an operator of numbers makes of them, before it wraps. `None` for all others.
fn arithmetic(call: &Call, a: Value, b: Option<Value>) -> Option<Value> {
    let second = b.unwrap_or(Value::data(a.element));
    let integers = a.element.is_some_and(|e| !e.is_float());
    let (x, y) = (a.bound, second.bound);
    let each = |make: fn(Bound, Bound) -> Bound| {
        call.inputs.iter().map(|input| input.map_or(Bound::ANY, |value| value.bound)).reduce(make).unwrap_or(Bound::ANY)
    };
    let all_whole = call.inputs.iter().flatten().all(|input| input.whole);
    let (bound, whole) = match call.op.as_str() {
        "Add" => (x.plus(y), all_whole),
        "Sub" => (x.plus(y.negated()), all_whole),
        "Mul" => (x.times(y), all_whole),
        "Div" => (x.over(y, integers), false),
        "Mod" => (x.modulo(y, integers), false),
        "Pow" => (x.power(y), false),
        "Neg" => (x.negated(), a.whole),
        "Abs" => (x.absolute(), a.whole),
        "Sum" => (each(Bound::plus), all_whole),
        "Mean" => (each(Bound::or), false),
        "Max" => (each(Bound::max), all_whole),
        "Min" => (each(Bound::min), all_whole),
        "Relu" => (x.max(Bound::Within(0.0, 0.0)), a.whole),
        "Clip" => (clip(call, x), all_whole),
        "Sign" => (Bound::Within(-1.0, 1.0), a.whole),
        "Ceil" | "Floor" | "Round" => (x.rounded(), a.whole),
        "ReduceMean" => (x, false),
        "ReduceSum" => (x.summed(), a.whole),
        "ReduceProd" => (x.multiplied(), a.whole),
        "MatMul" => (x.times(y).summed(), false),
        "Einsum" | "Gemm" => (Bound::ANY, false),
        "CumSum" => (x.summed(), a.whole),
        "Range" => (range(call), false),
        _ => return None,
    };
    let element = a.element.or(b.and_then(|b| b.element).filter(|_| call.op != "Pow"));
    Some(Value { element, bound, whole, divides: false, loose: false })
}

fn clip(call: &Call, bound: Bound) -> Bound {
    let end = |position: usize| call.inputs.get(position).copied().flatten().map(|value| value.bound);
    let bound = end(1).map_or(bound, |low| bound.max(low));
    end(2).map_or(bound, |high| bound.min(high))
}

/// Numbers from the first input up or down to the second; the third is added once more than is seen.
fn range(call: &Call) -> Bound {
    let [Some(start), Some(limit), Some(delta)] = call.inputs[..] else { return Bound::ANY };
    let (low, high) = limit.bound.ends();
    let steps = delta.bound;
    let last = match limit.bound {
        // The last that is seen is before the limit.
        Bound::Within(..) => Bound::Within(low + 1.0, (high - 1.0).max(low + 1.0)),
        Bound::Size => Bound::Size,
    };
    start.bound.or(last).or(last.plus(steps))
}

/// What an operator makes whose type does not come from its inputs' values.
fn made(call: &Call, first: Value) -> Option<Value> {
    let at = |position: usize| call.inputs.get(position).copied().flatten();
    let type_of = |position: usize| at(position).and_then(|value| value.element);
    Some(match call.op.as_str() {
        "Constant" => call.constant.unwrap_or(Value::data(None)),
        "ConstantOfShape" => call.constant.unwrap_or(zero(Some(Element::FLOAT))),
        "Cast" => cast(first, call.to),
        "CastLike" => cast(first, type_of(1)),
        "BitCast" => Value::data(call.to),
        "EyeLike" => Value::bounded(call.to.or(first.element), Bound::Within(0.0, 1.0)),
        "RandomNormal" | "RandomUniform" => Value::data(call.to.or(Some(Element::FLOAT))),
        "Bernoulli" => Value::bounded(call.to.or(first.element), Bound::Within(0.0, 1.0)),
        "Multinomial" => Value::bounded(call.to.or(Some(Element::INT32)), Bound::Size),
        "SequenceEmpty" => Value::data(call.to.or(Some(Element::FLOAT))),
        "QuantizeLinear" => Value::data(type_of(2).or(call.to).or(Some(Element::UINT8))),
        "DequantizeLinear" => Value::data(type_of(1)),
        "DynamicQuantizeLinear" => Value::data(Some(Element::UINT8)),
        "ConvInteger" | "MatMulInteger" => Value::data(Some(Element::INT32)),
        "QLinearConv" | "QLinearMatMul" => Value::data(type_of(7)),
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" | "TfIdfVectorizer" => Value::data(Some(Element::FLOAT)),
        "StringConcat" | "StringNormalizer" => Value::data(Some(Element::STRING)),
        _ => return None,
    })
}

/// A value in another type. Between integers of which the second can be all that the first can, nothing changes.
fn cast(from: Value, to: Option<Element>) -> Value {
    let widens = |from: Element, to: Element| match (from.range(), to.range()) {
        (Some((a, b)), Some((c, d))) => a >= c && b <= d && from.bits() <= to.bits(),
        _ => false,
    };
    let divides = from.divides && from.element.zip(to).is_some_and(|(from, to)| widens(from, to));
    let truth = to == Some(Element::BOOL);
    let bound = if truth { Bound::Within(0.0, 1.0) } else { from.bound };
    let (low, high) = from.bound.ends();
    let other = from.element != Some(Element::BOOL) && (low < 0.0 || high > 1.0);
    let loose = (truth || to.is_none()) && (from.loose || other);
    Value { element: to, bound, whole: from.whole, divides: divides && !truth, loose }
}

/// What an inner graph hands out.
fn inner(call: &Call, position: usize) -> Value {
    let outputs = |at: usize| call.graphs.iter().map(move |graph| graph.get(at).copied());
    let first = match call.op.as_str() {
        "If" => outputs(position).reduce(|a, b| Some(a?.or(b?))).flatten(),
        // The first of a loop's is whether it goes on.
        "Loop" => outputs(position + 1).next().flatten(),
        _ => outputs(position).next().flatten(),
    };
    let Some(value) = first else { return Value::data(None) };
    let carried = match call.op.as_str() {
        "Loop" => call.inputs.get(position + 2).copied().flatten(),
        "Scan" => call.inputs.get(position).copied().flatten(),
        _ => None,
    };
    carried.map_or(value, |before| Value { element: value.element, ..value.or(before) })
}

/// What the first graph inside a node starts from: its inputs, in their order.
pub(super) fn entry(call: &Call, position: usize) -> Value {
    let at = |position: usize| call.inputs.get(position).copied().flatten();
    match (call.op.as_str(), position) {
        ("Loop", 0) => {
            // It counts up to the number before the one that was asked for.
            let bound = match counters::turns(call) {
                Bound::Within(_, most) => Bound::Within(0.0, (most - 1.0).max(0.0)),
                Bound::Size => Bound::Size,
            };
            Value::bounded(Some(Element::INT64), bound)
        }
        // What a turn makes it for the next is seen only behind its graph.
        ("Loop", 1) => Value { loose: true, ..Value::data(Some(Element::BOOL)) },
        // What is carried changes with each turn.
        ("Loop" | "Scan", _) => Value::data(at(position).and_then(|value| value.element)),
        _ => Value::data(None),
    }
}

/// Whether a run in native code may trap: the quotient of integers, if it is one, by what may be 0 or -1.
pub(super) fn may_trap(call: &Call) -> bool {
    let at = |position: usize| call.inputs.get(position).copied().flatten();
    let element = at(0).and_then(|a| a.element).or(at(1).and_then(|b| b.element));
    let divides = at(1).is_some_and(|b| b.divides);
    matches!(call.op.as_str(), "Div" | "Mod") && !divides && element.is_none_or(|e| !e.is_float())
}

/// Whether a node makes the same of other numbers than 0 and 1 where its input at `position` is BOOL: it asks of them
/// only whether they are 0, or moves them to where that is asked of its output.
fn takes_loose(call: &Call, position: usize, made: &Value) -> bool {
    let op = call.op.as_str();
    match (op, position) {
        ("And" | "If" | "NonZero" | "Not" | "Or" | "Shape" | "Size" | "Xor", _) | ("Loop" | "CastLike", 1) => true,
        ("Cast" | "CastLike", _) => made.element == Some(Element::BOOL),
        ("Concat" | "Pad" | "SequenceConstruct" | "SequenceInsert" | "Trilu" | "Where", _) => true,
        ("Scatter" | "ScatterElements" | "ScatterND", _) => call.reduction.as_deref().is_none_or(|r| r == "none"),
        _ => MOVERS.contains(&op) && !COMPARERS.contains(&op),
    }
}

/// Why an engine with 32 bits would make something else of this output, if it would.
pub(super) fn lost(call: &Call, made: &Value) -> Option<String> {
    let op = call.op.as_str();
    let loose = |value: &Value| value.loose && value.element.is_none_or(|e| e == Element::BOOL);
    let mut inputs = call.inputs.iter().enumerate().filter_map(|(position, input)| Some((position, input.as_ref()?)));
    // What a turn carries to the next is not followed.
    let carried = matches!(op, "Loop" | "Scan") && loose(made);
    if carried || inputs.any(|(position, input)| loose(input) && !takes_loose(call, position, made)) {
        return Some("takes for numbers what was cast to BOOL, where all but 0 become 1".into());
    }
    let long = made.element.is_none_or(|e| e == Element::INT64);
    let from = call.inputs.first().copied().flatten();
    let kind = |e: Option<Element>| e.map_or("numbers of a type that is not told", Element::name);
    if matches!(op, "Cast" | "CastLike") {
        let floats = from.is_none_or(|from| from.element.is_none_or(Element::is_float));
        let name = kind(from.and_then(|from| from.element));
        return match made.element {
            Some(Element::INT64) if floats && !made.bound.fits() => {
                Some(format!("casts {name} to INT64, and what it casts may not fit 32 bits"))
            }
            Some(Element::BOOL) if floats && !made.whole => {
                Some(format!("casts {name} to BOOL, where a fraction counts as false"))
            }
            _ => None,
        };
    }
    let adds = |reduction: &str| matches!(reduction, "add" | "mul");
    let grows = match op {
        "Scatter" | "ScatterElements" | "ScatterND" => call.reduction.as_deref().is_some_and(adds),
        _ if ADDERS.contains(&op) => made.element == Some(Element::INT64),
        _ => !made.bound.fits() && arithmetic(call, from.unwrap_or(Value::data(None)), None).is_some(),
    };
    (long && grows).then(|| format!("computes with {}, and the result may not fit 32 bits", kind(made.element)))
}
