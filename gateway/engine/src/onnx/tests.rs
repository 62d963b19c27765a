//! The reader against models that a small writer makes, whole, wrong and mangled.

use proptest::prelude::*;

use super::*;
use crate::{DataType, Dim, TensorSpec};

// === A writer of the wire format ===

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field that holds a number.
fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

/// A field that holds bytes, text or a message.
fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn message(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, parts.concat())
}

/// A declared input (11) or output (12).
fn declared(field: u64, name: &str, element: i64, dims: Option<&[Vec<u8>]>) -> Vec<u8> {
    let shape = dims.map_or(Vec::new(), |dims| message(2, &dims.iter().map(|d| bytes(1, d)).collect::<Vec<_>>()));
    let tensor = message(1, &[number(1, element), shape]);
    message(field, &[bytes(1, name), bytes(2, tensor)])
}

fn weight(field: u64, name: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    message(field, &[parts.concat(), bytes(8, name)])
}

/// An operator without attributes.
fn node(op: &str, inputs: &[&str], outputs: &[&str], more: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i)).collect();
    let outputs: Vec<u8> = outputs.iter().flat_map(|o| bytes(2, o)).collect();
    message(1, &[inputs, outputs, bytes(4, op), more.concat()])
}

/// A model around the parts of a graph; it takes `x` and returns `y` unless told otherwise.
fn model(parts: &[Vec<u8>]) -> Vec<u8> {
    [number(1, 8), message(7, parts)].concat()
}

fn plain(parts: &[Vec<u8>]) -> Vec<u8> {
    let signature = [declared(11, "x", 1, None), declared(12, "y", 1, None)].concat();
    model(&[parts.concat(), signature])
}

fn refusal(onnx: &[u8]) -> String {
    match read(onnx) {
        Err(error @ (EngineError::InvalidGraph(_) | EngineError::Unsupported(_))) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn longs(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

// === What is refused ===

#[test]
fn whole_models_that_are_refused() {
    assert!(refusal(b"").contains("holds no ONNX graph"));
    assert!(refusal(&number(1, 8)).contains("holds no ONNX graph"));
    assert!(refusal(&[plain(&[]), message(7, &[])].concat()).contains("the graph is given twice"));
    assert!(refusal(&[plain(&[]), message(25, &[])].concat()).contains("local functions"));
    assert!(refusal(&[plain(&[]), message(20, &[])].concat()).contains("training"));
    assert!(refusal(&model(&[declared(11, "x", 1, None)])).contains("has no output"));
}

#[test]
fn signatures_that_are_refused() {
    let out = declared(12, "y", 1, None);
    let with = |input: Vec<u8>| refusal(&model(&[input, out.clone()]));
    assert!(with([declared(11, "x", 1, None), declared(11, "x", 7, None)].concat()).contains("'x' is declared twice"));
    assert!(with(declared(11, "", 1, None)).contains("has no name"));
    assert!(with(declared(11, "a\0b", 1, None)).contains("NUL"));
    assert!(with(message(11, &[bytes(1, [0xff, 0xfe])])).contains("not UTF-8"));
    assert!(with(message(11, &[bytes(1, "x")])).contains("'x' declares no type"));
    for (element, name) in [(14, "COMPLEX64"), (17, "FLOAT8E4M3FN"), (22, "INT4")] {
        assert!(with(declared(11, "x", element, None)).contains(name));
    }
    assert!(with(declared(11, "x", 99, None)).contains("no known element type"));
    for (field, what) in [(4, "a sequence"), (5, "a map"), (8, "a sparse tensor"), (9, "optional")] {
        assert!(with(message(11, &[bytes(1, "x"), message(2, &[message(field, &[])])])).contains(what));
    }
    assert!(with(declared(11, "x", 1, Some(&[number(1, -2)]))).contains("negative"));
    let huge = [number(1, 1 << 40), number(1, 1 << 40)];
    assert!(with(declared(11, "x", 1, Some(&huge))).contains("larger than memory"));
    assert!(with(declared(11, "x", 1, Some(&vec![number(1, 1); MAX_RANK + 1]))).contains("dimensions"));
    let both = [[number(1, 1), bytes(2, "N")].concat()];
    assert!(with(declared(11, "x", 1, Some(&both))).contains("a size and a symbol"));
    let many: Vec<u8> = (0..=MAX_VALUES).flat_map(|i| declared(11, &format!("x{i}"), 1, None)).collect();
    assert!(with(many).contains("more than 1024 inputs"));
}

#[test]
fn weights_that_are_refused() {
    let with = |parts: &[Vec<u8>]| refusal(&plain(&[weight(5, "w", parts)]));
    let floats = number(2, 1);
    assert!(with(&[floats.clone(), number(14, 1)]).contains("external data"));
    assert!(
        with(&[floats.clone(), message(13, &[bytes(1, "location"), bytes(2, "/etc/hostname")])])
            .contains("external data")
    );
    assert!(with(&[number(1, 4), floats.clone(), bytes(9, [0; 15])]).contains("takes 16 bytes, not 15"));
    assert!(with(&[number(1, 4), floats.clone()]).contains("takes 4 values and has none"));
    assert!(with(&[number(1, -4), floats.clone(), bytes(9, [0; 16])]).contains("negative"));
    assert!(with(&[number(1, 1 << 33), number(1, 1 << 33), floats.clone(), bytes(9, [0; 16])]).contains("overflow"));
    assert!(with(&[number(1, 1 << 60), floats.clone(), bytes(9, [0; 16])]).contains("larger than memory"));
    assert!(with(&[number(1, 1), number(2, 99), bytes(9, [0; 4])]).contains("no known element type"));
    assert!(with(&[number(1, 1), floats.clone(), bytes(9, [0; 4]), bytes(4, [0; 4])]).contains("raw and typed"));
    assert!(with(&[number(1, 1), floats.clone(), number(7, 1)]).contains("values of another type"));
    assert!(with(&[number(1, 2), number(2, 7), bytes(7, [1, 2, 3])]).contains("takes 2 values, not 3"));
    assert!(with(&[number(1, 1), floats.clone(), message(3, &[])]).contains("segments"));
    assert!(with(&[number(1, 1), floats.clone(), bytes(9, [0; 4]), bytes(9, [0; 4])]).contains("twice"));
    assert!(with(&[vec![number(1, 1); MAX_RANK + 1].concat(), floats]).contains("dimensions"));
    let twice = [weight(5, "w", &[number(2, 1), number(1, 0)]), weight(5, "w", &[number(2, 1), number(1, 0)])];
    assert!(refusal(&plain(&twice)).contains("'w' is given twice"));
}

#[test]
fn external_data_is_found_wherever_it_hides() {
    let outside = weight(5, "w", &[number(2, 1), number(14, 1)]);
    let in_attribute = |field: u64| {
        let attribute = message(5, &[bytes(1, "value"), bytes(field, &outside[2..])]);
        node("Constant", &[], &["c"], &[attribute])
    };
    let sparse = |parts: Vec<u8>| message(15, &[message(1, &[parts])]);
    let subgraph = node(
        "If",
        &["c"],
        &["y"],
        &[message(5, &[bytes(1, "then_branch"), message(6, std::slice::from_ref(&outside))])],
    );
    let inner = node("If", &["c"], &["y"], &[message(5, &[message(11, std::slice::from_ref(&subgraph))])]);
    let sparse_attribute = message(5, &[message(22, &[message(1, &[number(2, 1), number(14, 1)])])]);
    let cases = [
        outside.clone(),
        in_attribute(5),
        in_attribute(10),
        sparse([number(2, 1), number(14, 1)].concat()),
        subgraph,
        inner,
        node("Constant", &[], &["c"], &[sparse_attribute]),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        assert!(refusal(&plain(&[case])).contains("external data"), "case {i}");
    }
}

#[test]
fn operators_that_are_refused() {
    let domain = |d: &str| plain(&[node("Op", &["x"], &["y"], &[bytes(7, d)])]);
    for good in ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"] {
        assert!(read(&domain(good)).is_ok(), "{good}");
    }
    for bad in ["com.example", "ai.onnx.training", "AI.ONNX", "org.pytorch.aten"] {
        assert!(refusal(&domain(bad)).contains(&format!("unknown domain '{bad}'")));
    }
    let context = node("EPContext", &["x"], &["y"], &[bytes(7, "com.microsoft")]);
    assert!(refusal(&plain(&[context])).contains("reaches outside"));
    assert!(refusal(&plain(&[node("", &["x"], &["y"], &[])])).contains("names no operator"));
    let hidden = node("If", &["c"], &["y"], &[message(5, &[message(6, &[node("Op", &[], &[], &[bytes(7, "evil")])])])]);
    assert!(refusal(&plain(&[hidden])).contains("'evil'"));
    let many = node("Relu", &["x"], &["y"], &[]).repeat(MAX_NODES + 1);
    assert!(refusal(&plain(&[many])).contains("more than 200000 nodes"));
}

#[test]
fn subgraphs_nest_so_deep_and_no_deeper() {
    let nested = |depth: usize| {
        (0..depth).fold(node("Identity", &["x"], &["y"], &[]), |inner, _| {
            node("If", &["c"], &["y"], &[message(5, &[bytes(1, "then_branch"), message(6, &[inner])])])
        })
    };
    assert_eq!(read(&plain(&[nested(MAX_DEPTH)])).expect("a graph").nodes, MAX_DEPTH + 1);
    assert!(refusal(&plain(&[nested(MAX_DEPTH + 1)])).contains("nest deeper than 8"));
    assert!(refusal(&plain(&[nested(5_000)])).contains("nest deeper than 8"));
}

// === What is read ===

#[test]
fn weights_are_not_inputs_and_are_counted() {
    let raw = weight(5, "w", &[number(1, 2), number(1, 2), number(2, 1), bytes(9, [0; 16])]);
    let packed = weight(5, "p", &[bytes(1, [2, 1]), number(2, 7), bytes(7, [1, 2])]);
    let nibbles = weight(5, "n", &[number(1, 3), number(2, 21), bytes(5, [1, 2])]);
    let words = weight(5, "s", &[number(1, 2), number(2, 8), bytes(6, "a"), bytes(6, "bc")]);
    let empty = weight(5, "e", &[number(1, 0), number(2, 1)]);
    let read = read(&plain(&[declared(11, "w", 1, None), raw, packed, nibbles, words, empty])).expect("a graph");
    assert_eq!(read.spec.inputs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["x"]);
    assert_eq!(read.weight_bytes, 16 + 16 + 2 + 2);
    let elements: Vec<_> = read.elements.keys().map(|e| e.name()).collect();
    assert_eq!(elements, ["FLOAT", "INT64", "STRING", "UINT4"]);
}

#[test]
fn a_size_that_is_left_open_is_read_however_it_is_written() {
    let dims = [number(1, -1), Vec::new(), bytes(2, "?"), bytes(2, "N"), number(1, 0)];
    let onnx = model(&[declared(12, "y", 1, Some(&dims))]);
    let open = || Dim::Symbol(String::new());
    let expected = [open(), open(), open(), Dim::Symbol("N".into()), Dim::Fixed(0)];
    assert_eq!(inspect(&onnx).expect("a graph").outputs[0].shape.as_deref(), Some(&expected[..]));
}

#[test]
fn constants_beyond_32_bits_are_followed() {
    let wide = weight(5, "wide", &[number(1, 1), number(2, 7), bytes(9, longs(&[1 << 32]))]);
    let after = |nodes: &[Vec<u8>]| read(&plain(&[wide.clone(), nodes.concat()])).expect("a graph").beyond_32_bits;
    let n = |op: &str, inputs: &[&str], outputs: &[&str]| node(op, inputs, outputs, &[]);
    assert_eq!(after(&[]), None, "one that nobody uses");
    assert_eq!(after(&[n("Slice", &["x", "s", "wide"], &["y"])]), None);
    assert_eq!(
        after(&[
            n("Unsqueeze", &["wide"], &["u"]),
            n("Concat", &["u", "v"], &["e"]),
            n("Slice", &["x", "s", "e"], &["y"])
        ]),
        None
    );
    for nodes in [
        vec![n("Slice", &["wide", "s", "e"], &["y"])],
        vec![n("Add", &["x", "wide"], &["y"])],
        vec![n("Identity", &["wide"], &["i"]), n("Mul", &["i", "x"], &["y"])],
        vec![n("Identity", &["wide"], &["y"])],
    ] {
        assert!(after(&nodes).is_some());
    }
    let captured = node("If", &["c"], &["y"], &[message(5, &[message(6, &[n("Add", &["x", "wide"], &["z"])])])]);
    assert!(after(&[captured]).expect("a reason").contains("'wide', used by Add"));
    let constant = node("Constant", &[], &["k"], &[message(5, &[bytes(1, "value_int"), number(3, i64::MAX)])]);
    assert!(after(&[constant, n("Add", &["x", "k"], &["y"])]).expect("a reason").contains("'k'"));
    let double = weight(5, "d", &[number(1, 1), number(2, 11), bytes(9, 1e300f64.to_le_bytes())]);
    assert!(read(&plain(&[double, n("Mul", &["x", "d"], &["y"])])).expect("a graph").beyond_32_bits.is_some());
    let edge = weight(5, "edge", &[number(1, 2), number(2, 7), bytes(9, longs(&[i32::MIN.into(), i32::MAX.into()]))]);
    assert_eq!(read(&plain(&[edge, n("Add", &["x", "edge"], &["y"])])).expect("a graph").beyond_32_bits, None);
}

// === What is followed ===

/// An attribute that holds a number.
fn setting(name: &str, value: i64) -> Vec<u8> {
    message(5, &[bytes(1, name), number(3, value)])
}

/// An operator whose node has a name.
fn named(name: &str, op: &str, inputs: &[&str], outputs: &[&str], more: &[Vec<u8>]) -> Vec<u8> {
    node(op, inputs, outputs, &[more.concat(), bytes(3, name)])
}

/// A constant of one INT32.
fn int(name: &str, value: i32) -> Vec<u8> {
    weight(5, name, &[number(1, 1), number(2, 6), bytes(9, value.to_le_bytes())])
}

/// A graph of this element type around the parts.
fn typed(element: i64, parts: &[Vec<u8>]) -> Vec<u8> {
    let signature = [declared(11, "x", element, None), declared(11, "z", element, None), declared(12, "y", 1, None)];
    model(&[parts.concat(), signature.concat()])
}

#[test]
fn divisions_that_may_trap_are_found() {
    let trap = |element: i64, parts: &[Vec<u8>]| read(&typed(element, parts)).expect("a graph").may_trap;
    let div = |divisor: &str| named("d", "Div", &["x", divisor], &["y"], &[]);
    let branch = |inner: Vec<u8>| node("If", &["c"], &["y"], &[message(5, &[message(6, &[inner])])]);
    assert_eq!(trap(6, &[div("z")]).as_deref(), Some("node 'd' (Div)"));
    assert_eq!(trap(7, &[node("Mod", &["x", "z"], &["r"], &[])]).as_deref(), Some("the Mod that makes 'r'"));
    assert_eq!(trap(1, &[div("z")]), None, "floats");
    assert_eq!(trap(1, &[node("Cast", &["x"], &["i"], &[setting("to", 6)]), div("i")]), None, "of the first's type");
    let cast = node("Cast", &["x"], &["i"], &[setting("to", 6)]);
    assert!(trap(1, &[cast, node("Div", &["i", "i"], &["y"], &[])]).is_some(), "an integer inside");
    assert!(trap(1, &[branch(node("Div", &["n", "n"], &["y"], &[]))]).is_some(), "of a type that is not told");
    assert!(trap(6, &[branch(branch(div("z")))]).is_some(), "deep inside");
    for (value, traps) in [(2, false), (-2, false), (0, true), (-1, true)] {
        assert_eq!(trap(6, &[int("k", value), div("k")]).is_some(), traps, "{value}");
        let moved = node("Unsqueeze", &["k"], &["u"], &[]);
        assert_eq!(trap(6, &[int("k", value), moved, div("u")]).is_some(), traps, "{value}, moved");
        let constant = node("Constant", &[], &["k"], &[setting("value_int", value.into())]);
        assert_eq!(trap(7, &[constant, div("k")]).is_some(), traps, "{value}, of a node");
    }
    // An engine may take either of two values, and cuts what is too long for a type.
    let two = node("Constant", &[], &["k"], &[setting("value_int", 2), setting("value_ints", 0)]);
    assert!(trap(7, &[two, div("k")]).is_some());
    let cut = |element: i64, value: i64| weight(5, "k", &[number(1, 1), number(2, element), number(5, value)]);
    for (element, value, traps) in [(6, 1 << 32, true), (3, 255, true), (2, 255, false), (6, 255, false)] {
        assert_eq!(trap(element, &[cut(element, value), div("k")]).is_some(), traps, "{value} as {element}");
    }
    let narrowed = node("Cast", &["k"], &["n"], &[setting("to", 3)]);
    assert!(trap(3, &[int("k", 256), narrowed, div("n")]).is_some());
    let widened = node("Cast", &["k"], &["n"], &[setting("to", 7)]);
    assert_eq!(trap(7, &[int("k", 256), widened, div("n")]), None);
    // A name inside means something else there, and what it meant before afterwards.
    let inner = branch([int("k", 0), named("inner", "Mod", &["x", "k"], &["m"], &[])].concat());
    assert_eq!(trap(6, &[int("k", 2), inner.clone(), div("k")]).as_deref(), Some("node 'inner' (Mod)"));
    let hidden = branch(int("k", 2));
    assert!(trap(6, &[int("k", 0), hidden, div("k")]).is_some());
    // Used before it is made.
    assert!(trap(6, &[div("late"), node("Identity", &["z"], &["late"], &[])]).is_some());
}

#[test]
fn what_may_leave_32_bits_is_found() {
    let beyond = |element: i64, parts: &[Vec<u8>]| read(&typed(element, parts)).expect("a graph").beyond_32_bits;
    let n = |op: &str, inputs: &[&str]| named("n", op, inputs, &["y"], &[]);
    for op in ["Add", "Sub", "Mul", "Div", "Pow", "Sum"] {
        let why = beyond(7, &[n(op, &["x", "z"])]).expect(op);
        assert_eq!(why, format!("node 'n' ({op}) computes with INT64, and the result may not fit 32 bits"));
        assert_eq!(beyond(6, &[n(op, &["x", "z"])]), None, "{op} of INT32 wraps everywhere");
        assert_eq!(beyond(1, &[n(op, &["x", "z"])]), None, "{op} of floats");
    }
    for op in ["Neg", "Abs", "ReduceSum", "ReduceProd", "CumSum", "MatMul", "Gemm", "Einsum", "ReduceL1"] {
        assert!(beyond(7, &[n(op, &["x"])]).is_some(), "{op}");
    }
    for op in ["Mod", "Max", "Min", "Where", "Concat", "Equal", "Gather", "Identity"] {
        assert_eq!(beyond(7, &[n(op, &["x", "z"])]), None, "{op}");
    }
    let adds = message(5, &[bytes(1, "reduction"), bytes(4, "add")]);
    assert!(beyond(7, &[node("ScatterND", &["x", "i", "z"], &["y"], &[adds])]).is_some());
    assert_eq!(beyond(7, &[n("ScatterND", &["x", "i", "z"])]), None);
    // What comes from sizes stays as small as memory.
    let shape = node("Shape", &["x"], &["s"], &[]);
    for more in [n("Add", &["s", "s"]), n("ReduceProd", &["s"]), n("Mul", &["s", "k"]), n("Sub", &["k", "s"])] {
        assert_eq!(beyond(7, &[int("k", 64), shape.clone(), more]), None);
    }
    assert!(beyond(7, &[shape, n("Add", &["s", "x"])]).is_some());
    // Inside: what is carried may be anything after a turn.
    let body = [declared(11, "i", 7, None), declared(11, "c", 9, None), declared(11, "v", 7, None)].concat();
    let looped = |inner: Vec<u8>| {
        let body = [body.clone(), inner, declared(12, "c", 9, None), declared(12, "w", 7, None)].concat();
        node("Loop", &["x", "", "z"], &["y"], &[message(5, &[bytes(1, "body"), message(6, &[body])])])
    };
    let one = node("Constant", &[], &["one"], &[setting("value_int", 1)]);
    let add = |to: &str| [one.clone(), node("Add", &[to, "one"], &["w"], &[])].concat();
    assert!(beyond(7, &[looped(add("v"))]).expect("a reason").contains("'w'"));
    assert_eq!(beyond(7, &[looped(add("i"))]), None, "the turns are no more than were asked for");
}

#[test]
fn casts_that_lose_are_found() {
    let beyond = |parts: &[Vec<u8>]| read(&typed(1, parts)).expect("a graph").beyond_32_bits;
    let cast = |from: &str, to: &str, element: i64| named("n", "Cast", &[from], &[to], &[setting("to", element)]);
    assert!(beyond(&[cast("x", "y", 7)]).expect("a reason").contains("node 'n' (Cast) casts FLOAT to INT64"));
    assert!(beyond(&[cast("x", "y", 9)]).expect("a reason").contains("casts FLOAT to BOOL"));
    assert_eq!(beyond(&[cast("x", "y", 6)]), None, "out of range, that is not defined");
    assert_eq!(beyond(&[cast("x", "i", 6), cast("i", "y", 7)]), None);
    assert_eq!(beyond(&[node("Sigmoid", &["x"], &["s"], &[]), cast("s", "y", 7)]), None);
    let seen = |value: f32| weight(5, "k", &[number(2, 1), bytes(9, value.to_le_bytes())]);
    let clipped = |most: f32| [seen(most), node("Clip", &["x", "k", "k"], &["s"], &[]), cast("s", "y", 7)].concat();
    assert_eq!(beyond(&[clipped(255.0)]), None);
    assert!(beyond(&[clipped(2147483647.0)]).is_some(), "one more, as a float");
    let size = [node("Shape", &["x"], &["l"], &[]), cast("l", "f", 1)].concat();
    let scaled = |by: f32| [size.clone(), seen(by), node("Mul", &["f", "k"], &["s"], &[]), cast("s", "y", 7)].concat();
    assert_eq!(beyond(&[scaled(0.25)]), None, "how sizes are scaled");
    assert!(beyond(&[scaled(1e9)]).is_some());
    // An output without a name is not what a later node leaves out.
    let unnamed =
        [seen(255.0), node("Identity", &["k"], &[""], &[]), node("Clip", &["x", "", ""], &["s"], &[])].concat();
    assert!(beyond(&[unnamed, cast("s", "y", 7)]).is_some());
    // Floats that were integers have no fraction.
    let flags = [cast("x", "i", 6), cast("i", "f", 1), seen(1.0), node("Sub", &["k", "f"], &["s"], &[])].concat();
    assert_eq!(beyond(&[flags, cast("s", "y", 9)]), None);
    assert!(beyond(&[size, seen(0.5), node("Mul", &["f", "k"], &["s"], &[]), cast("s", "y", 9)]).is_some());
}

#[test]
fn numbers_that_were_cast_to_bool_are_followed() {
    let beyond = |parts: &[Vec<u8>]| read(&typed(7, parts)).expect("a graph").beyond_32_bits;
    let to_bool = |from: &str| node("Cast", &[from], &["b"], &[setting("to", 9)]);
    let to_float = |from: &str| named("n", "Cast", &[from], &["y"], &[setting("to", 1)]);
    let n = |op: &str, inputs: &[&str]| named("n", op, inputs, &["m"], &[]);
    let inside = |inner: Vec<u8>| node("If", &["b"], &["w"], &[message(5, &[message(6, &[inner])])]);
    let why = beyond(&[to_bool("x"), to_float("b")]).expect("a reason");
    assert!(why.starts_with("node 'n' (Cast) takes for numbers what was cast to BOOL"), "{why}");
    let moved = [n("Concat", &["b", "b"]), to_float("m")].concat();
    for more in [n("Equal", &["b", "b"]), n("ReduceMax", &["b"]), moved, inside(to_float("b"))] {
        assert!(beyond(&[to_bool("x"), more]).is_some(), "as a number");
    }
    assert!(beyond(&[to_float("b"), to_bool("x")]).is_some(), "before it is made");
    let moved = [n("Reshape", &["b", "s"]), node("Where", &["m", "x", "z"], &["y"], &[])].concat();
    for more in [n("And", &["b", "b"]), moved, inside(n("Identity", &["z"])), n("Concat", &["b", "b"])] {
        assert_eq!(beyond(&[to_bool("x"), more]), None, "whether it is 0");
    }
    assert_eq!(beyond(&[to_bool("x"), n("Not", &["b"]), to_float("m")]), None, "a truth again");
    assert_eq!(beyond(&[n("Equal", &["x", "z"]), to_bool("m"), to_float("b")]), None, "one before");
}

#[test]
fn what_a_loop_counts_is_followed() {
    let beyond = |parts: &[Vec<u8>]| read(&typed(7, parts)).expect("a graph").beyond_32_bits;
    let long = |name: &str, value: i64| weight(5, name, &[number(2, 7), bytes(9, value.to_le_bytes())]);
    // Carries `v`, which starts as `start`; what comes out of a turn is made by `inner`.
    let looped = |turns: &str, start: &str, inner: Vec<u8>| {
        let head = [declared(11, "i", 7, None), declared(11, "c", 9, None), declared(11, "v", 7, None)].concat();
        let body = [head, inner, declared(12, "c", 9, None), declared(12, "w", 7, None)].concat();
        node("Loop", &[turns, "", start], &["y"], &[message(5, &[bytes(1, "body"), message(6, &[body])])])
    };
    let given = [long("zero", 0), long("ever", i64::MAX), long("ten", 10), long("many", 1 << 20)].concat();
    let add = |a: &str, b: &str| node("Add", &[a, b], &["w"], &[]);
    let one = |name: &str| node("Constant", &[], &[name], &[setting("value_int", 1)]);
    let within =
        |turns: &str, start: &str, inner: Vec<u8>| beyond(&[given.clone(), looped(turns, start, inner)]).is_none();
    for counter in [add("v", "one"), add("one", "v"), node("Sub", &["v", "one"], &["w"], &[])] {
        assert!(within("ever", "zero", [one("one"), counter.clone()].concat()));
        assert!(within("", "zero", [one("one"), counter].concat()), "no number of turns");
    }
    assert!(within("ten", "zero", add("v", "many")), "ten steps of a constant outside");
    assert!(within("ten", "zero", [long("inner", 7), add("v", "inner")].concat()));
    assert!(within("ever", "zero", [one("one"), add("i", "one")].concat()), "the turns themselves");
    for (turns, start, inner, why) in [
        ("ever", "zero", add("v", "ten"), "steps of ten, for ever"),
        ("many", "zero", add("v", "many"), "as far as 2^40"),
        ("ten", "x", [one("one"), add("v", "one")].concat(), "from anywhere"),
        ("ten", "zero", add("v", "v"), "doubled"),
        ("ten", "zero", add("v", "i"), "another step in each turn"),
        ("ten", "zero", add("v", "x"), "by what is sent"),
        ("ten", "zero", node("Sub", &["one", "v"], &["w"], &[]), "the other way round"),
        ("ten", "zero", node("Mul", &["v", "ten"], &["w"], &[]), "a product"),
        ("ten", "zero", [one("k"), node("Identity", &["x"], &["k"], &[]), add("v", "k")].concat(), "one name for two"),
        ("ten", "zero", [node("Identity", &["x"], &["ten"], &[]), add("v", "ten")].concat(), "hidden inside"),
    ] {
        assert!(!within(turns, start, inner), "{why}");
    }
    assert!(beyond(&[given, node("Add", &["x", "ever"], &["y"], &[])]).is_some());
}

#[test]
fn halves_that_are_only_widened_weights_are_told_from_others() {
    let half = |name: &str| weight(5, name, &[number(1, 1), number(2, 10), bytes(9, [0; 2])]);
    let given = [half("h"), half("g")].concat();
    let made = |parts: &[Vec<u8>]| read(&plain(&[given.clone(), parts.concat()])).expect("a graph").half;
    let cast = |from: &str, to: &str, element: i64| named("n", "Cast", &[from], &[to], &[setting("to", element)]);
    let n = |op: &str, inputs: &[&str], outputs: &[&str]| named("n", op, inputs, outputs, &[]);
    let value = message(5, &[bytes(1, "value"), message(5, &[number(2, 10), bytes(9, [0; 2])])]);
    let inside = |inner: &[Vec<u8>]| node("If", &["x"], &["y"], &[message(5, &[message(6, inner)])]);
    assert_eq!(made(&[]), None);
    assert_eq!(made(&[cast("h", "y", 1)]), None);
    assert_eq!(made(&[n("Transpose", &["h"], &["t"]), n("Gather", &["t", "x"], &["r"]), cast("r", "y", 1)]), None);
    assert_eq!(made(&[n("Concat", &["h", "g"], &["t"]), cast("t", "y", 1)]), None);
    assert_eq!(made(&[node("Constant", &[], &["k"], std::slice::from_ref(&value)), cast("k", "y", 1)]), None);
    assert_eq!(made(&[inside(&[cast("h", "z", 1), declared(12, "z", 1, None)])]), None, "captured");
    for (parts, why) in [
        (vec![n("MatMul", &["h", "g"], &["y"])], "computed with"),
        (vec![n("Transpose", &["h"], &["t"]), n("Add", &["t", "g"], &["y"])], "moved, and computed with"),
        (vec![cast("h", "y", 6)], "cast to integers"),
        (vec![cast("h", "f", 1), cast("f", "y", 10)], "floats that become halves"),
        (vec![n("Identity", &["h"], &["y"])], "handed out"),
        (vec![n("Add", &["late", "x"], &["y"]), n("Identity", &["h"], &["late"])], "before it is moved"),
        (vec![node("ConstantOfShape", &["x"], &["y"], std::slice::from_ref(&value))], "repeated"),
        (vec![inside(&[n("Add", &["h", "h"], &["z"])])], "inside"),
        (vec![inside(&[n("Identity", &["h"], &["z"]), declared(12, "z", 10, None)])], "handed out of a branch"),
    ] {
        assert!(made(&parts).is_some(), "{why}");
    }
    let wrong_order = plain(&[n("Add", &["late", "x"], &["y"]), n("Identity", &["x"], &["late"])]);
    assert_eq!(read(&wrong_order).expect("a graph").half, None, "nothing is a half");
}

/// Each of all halves is the same float under each engine here.
#[test]
fn widened_halves_are_the_same_floats() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let to_float = message(5, &[bytes(1, "to"), number(3, 1), number(20, 2)]);
    let parts = [
        weight(5, "h", &[number(1, 1 << 16), number(2, 10), bytes(9, all)]),
        node("Identity", &["h"], &["i"], &[]),
        node("Cast", &["i"], &["w"], &[to_float]),
        node("Identity", &["x"], &["y"], &[]),
    ];
    let long = declared(12, "w", 1, Some(&[number(1, 1 << 16)]));
    let signature = [declared(11, "x", 1, Some(&[number(1, 1)])), declared(12, "y", 1, Some(&[number(1, 1)])), long];
    let opset = message(8, &[number(2, 17)]);
    let onnx = [model(&[parts.concat(), signature.concat()]), opset].concat();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/onnxruntime");
    let config = crate::EnginesConfig { search: vec![root], ..crate::EnginesConfig::default() };
    let engines = crate::Engines::new(config).expect("engines");
    for engine in [crate::EngineChoice::Rten, crate::EngineChoice::Onnxruntime] {
        let options = crate::GraphOptions { engine, sessions: Some(1), ..crate::GraphOptions::default() };
        let graph = match engines.load(onnx.clone().into(), &options) {
            Err(EngineError::Unavailable(_)) if engine == crate::EngineChoice::Onnxruntime => continue,
            loaded => loaded.expect("a graph"),
        };
        let x = crate::Tensor::from_vec([1], vec![1f32]).expect("x");
        let job = crate::Job { inputs: vec![("x".into(), x)], ..crate::Job::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let outputs = runtime.block_on(graph.compute(job)).expect("an answer");
        let widened = outputs.iter().find(|(name, _)| name == "w").expect("w").1.values::<f32>().expect("floats");
        for (bits, float) in (0..=u16::MAX).zip(widened.iter()) {
            let expected = half::f16::from_bits(bits).to_f32();
            let same = float.to_bits() == expected.to_bits() || float.is_nan() && expected.is_nan();
            assert!(same, "{engine:?} makes {float} of {bits:#x}, and not {expected}");
        }
    }
}

#[test]
fn types_inside_are_told_with_their_place() {
    let half = named("n", "Cast", &["x"], &["h"], &[setting("to", 10)]);
    let read = read(&typed(1, &[half, node("Identity", &["h"], &["y"], &[])])).expect("a graph");
    let told: Vec<_> = read.elements.iter().map(|(e, place)| (e.name(), place.as_str())).collect();
    assert_eq!(told, [("FLOAT", "input 'x'"), ("FLOAT16", "node 'n' (Cast)")]);
    let cast = node("Cast", &["x"], &["b"], &[setting("to", 2)]);
    let read = super::read(&typed(1, &[cast, named("n", "Add", &["b", "b"], &["y"], &[])])).expect("a graph");
    let told: Vec<_> = read.on_bytes.iter().map(|(op, (e, place))| (op.as_str(), e.name(), place.as_str())).collect();
    assert_eq!(told, [("Add", "UINT8", "node 'n' (Add)"), ("Cast", "UINT8", "the Cast that makes 'b'")]);
}

// === Properties ===

/// ONNX's numbers of the types that a signature may have.
const NUMBERS: [(DataType, i64); 14] = [
    (DataType::Bool, 9),
    (DataType::Uint8, 2),
    (DataType::Uint16, 4),
    (DataType::Uint32, 12),
    (DataType::Uint64, 13),
    (DataType::Int8, 3),
    (DataType::Int16, 5),
    (DataType::Int32, 6),
    (DataType::Int64, 7),
    (DataType::Fp16, 10),
    (DataType::Bf16, 16),
    (DataType::Fp32, 1),
    (DataType::Fp64, 11),
    (DataType::Bytes, 8),
];

fn any_dim() -> impl Strategy<Value = Dim> {
    prop_oneof![(0..1_000u64).prop_map(Dim::Fixed), "[a-zA-Z_ ]{0,6}".prop_map(Dim::Symbol)]
}

fn any_signature(most: usize) -> impl Strategy<Value = Vec<TensorSpec>> {
    let one = (0..14usize, prop::option::of(prop::collection::vec(any_dim(), 0..4)));
    prop::collection::vec(one, 1..=most).prop_map(|specs| {
        let named = specs.into_iter().enumerate().map(|(i, (kind, shape))| TensorSpec {
            name: format!("t\u{e9}nsor {i}"),
            datatype: NUMBERS[kind].0,
            shape,
        });
        named.collect()
    })
}

fn written(field: u64, specs: &[TensorSpec]) -> Vec<u8> {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => number(1, *size as i64),
        Dim::Symbol(symbol) if symbol.is_empty() => Vec::new(),
        Dim::Symbol(symbol) => bytes(2, symbol),
    };
    let one = |spec: &TensorSpec| {
        let element = NUMBERS.iter().find(|(t, _)| *t == spec.datatype).expect("a number").1;
        let dims = spec.shape.as_ref().map(|dims| dims.iter().map(dim).collect::<Vec<_>>());
        declared(field, &spec.name, element, dims.as_deref())
    };
    specs.iter().flat_map(one).collect()
}

proptest! {
    #[test]
    fn any_signature_is_read_as_written(inputs in any_signature(6), outputs in any_signature(3)) {
        let onnx = model(&[written(12, &outputs), node("Relu", &["x"], &["y"], &[]), written(11, &inputs)]);
        prop_assert_eq!(inspect(&onnx), Ok(GraphSpec { inputs, outputs }));
    }

    #[test]
    fn any_bytes_are_a_graph_or_an_error(bytes: Vec<u8>) {
        let _ = read(&bytes);
    }

    #[test]
    fn mangled_models_are_a_graph_or_an_error(inputs in any_signature(3), at: prop::sample::Index, by: u8, cut: prop::sample::Index) {
        let weight = weight(5, "w", &[number(1, 4), number(2, 1), bytes(9, [0; 16])]);
        let mut onnx = model(&[written(11, &inputs), written(12, &inputs), weight, node("Add", &["x", "w"], &["y"], &[])]);
        let at = at.index(onnx.len());
        onnx[at] ^= by;
        if let Ok(model) = read(&onnx) {
            prop_assert!(!model.spec.outputs.is_empty());
        }
        onnx.truncate(cut.index(onnx.len() + 1));
        let _ = read(&onnx);
    }
}
