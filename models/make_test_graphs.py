#!/usr/bin/env python3
"""Makes the small ONNX graphs that the tests use, in `models/test/`.

Needs PyPI `onnx` and `numpy`. The files are committed, so that only who changes a graph needs to run this:

    python3 models/make_test_graphs.py [FOLDER]

Every graph is under 50 KB. They are deterministic: running this again changes nothing.
"""

import pathlib
import sys

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

# Open Inference Protocol name -> ONNX element type.
TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}

FP32 = TensorProto.FLOAT
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "test")


def value(name, elem, shape=None):
    """A declared input or output; `shape=None` declares no rank."""
    return helper.make_tensor_value_info(name, elem, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(name, nodes, inputs, outputs, initializers=(), opset=17, check=True):
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), list(initializers))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
        producer_name="windrose tests",
    )
    if check:
        checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    assert len(data) < 50_000, (name, len(data))
    (OUT / f"{name}.onnx").write_bytes(data)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def identities():
    """One graph for each type, of any rank: what goes in comes out."""
    for name, elem in TYPES.items():
        save(f"identity_{name}", [node("Identity", ["x"], ["y"])], [value("x", elem)], [value("y", elem)], check=False)


def arithmetic():
    for name in ("fp32", "fp64", "int32", "int64"):
        elem = TYPES[name]
        save(
            f"add_{name}",
            [node("Add", ["a", "b"], ["sum"])],
            [value("a", elem, ["N", "M"]), value("b", elem, ["N", "M"])],
            [value("sum", elem, ["N", "M"])],
        )
    save("not_bool", [node("Not", ["x"], ["y"])], [value("x", BOOL, ["N"])], [value("y", BOOL, ["N"])])
    save(
        "two_in_two_out",
        [
            node("Mul", ["pixels", "two"], ["doubled"]),
            # Within limits, so that an engine of 32 bits can add to them.
            node("Clip", ["labels", "least", "most"], ["within"]),
            node("Add", ["within", "one"], ["next"]),
        ],
        [value("pixels", FP32, ["N", 3]), value("labels", INT64, ["N"])],
        [value("doubled", FP32, ["N", 3]), value("next", INT64, ["N"])],
        [
            constant("two", np.float32(2)),
            constant("one", np.int64(1)),
            constant("least", np.int64(-(10**9))),
            constant("most", np.int64(10**9)),
        ],
    )
    save(
        "greater",
        [node("Greater", ["a", "b"], ["more"])],
        [value("a", FP32, ["N"]), value("b", FP32, ["N"])],
        [value("more", BOOL, ["N"])],
    )
    save(
        "nonzero",
        [node("NonZero", ["x"], ["where"])],
        [value("x", FP32, ["N", "M"])],
        [value("where", INT64, [2, "K"])],
    )


def tiny_net():
    """Two dense layers, 16 -> 32 -> 4 with softmax: for tests of speed and of rows."""
    rng = np.random.default_rng(7)
    save(
        "tiny",
        [
            node("Gemm", ["x", "w1", "b1"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "w2", "b2"], ["logits"]),
            node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        [value("x", FP32, ["batch", 16])],
        [value("scores", FP32, ["batch", 4])],
        [
            constant("w1", rng.standard_normal((16, 32), dtype=np.float32)),
            constant("b1", rng.standard_normal(32, dtype=np.float32)),
            constant("w2", rng.standard_normal((32, 4), dtype=np.float32)),
            constant("b2", rng.standard_normal(4, dtype=np.float32)),
        ],
    )


def control_flow():
    def branch(name, op, other):
        return helper.make_graph(
            [node(op, ["x", other], [f"{name}_out"])], name, [], [value(f"{name}_out", FP32, ["N"])]
        )

    save(
        "if",
        [node("If", ["double"], ["y"], then_branch=branch("then", "Mul", "two"), else_branch=branch("else", "Add", "two"))],
        [value("double", BOOL, []), value("x", FP32, ["N"])],
        [value("y", FP32, ["N"])],
        [constant("two", np.float32(2))],
    )
    save("loop", [counted_loop()], [value("times", INT64, []), value("x", FP32, ["N"])], [value("y", FP32, ["N"])],
         [constant("yes", np.bool_(True)), constant("two", np.float32(2))])


def counted_loop():
    body = helper.make_graph(
        [node("Identity", ["more"], ["more_out"]), node("Mul", ["carried", "two"], ["carried_out"])],
        "body",
        [value("i", INT64, []), value("more", BOOL, []), value("carried", FP32, ["N"])],
        [value("more_out", BOOL, []), value("carried_out", FP32, ["N"])],
    )
    return node("Loop", ["times", "yes", "x"], ["y"], body=body)


def strings():
    save(
        "strings_upper",
        [node("StringNormalizer", ["words"], ["upper"], case_change_action="UPPER", locale="C")],
        [value("words", TensorProto.STRING, ["N"])],
        [value("upper", TensorProto.STRING, ["N"])],
    )


def integers():
    """Graphs at the edge of 32 bits."""
    save(
        "slice_to_end",
        [node("Slice", ["x", "start", "end", "axis"], ["y"])],
        [value("x", FP32, ["N"])],
        [value("y", FP32, ["M"])],
        [
            constant("start", np.array([1], np.int64)),
            constant("end", np.array([np.iinfo(np.int64).max], np.int64)),
            constant("axis", np.array([0], np.int64)),
        ],
    )
    save(
        "wide_constant",
        [node("Add", ["x", "big"], ["y"])],
        [value("x", INT64, ["N"])],
        [value("y", INT64, ["N"])],
        [constant("big", np.int64(1 << 40))],
    )


def beyond_32_bits():
    """Graphs whose right answer an engine of 32 bits does not have, whatever it is asked."""

    def one(name, nodes, input_type, output_type, *constants):
        save(name, nodes, [value("x", input_type, ["N"])], [value("y", output_type, ["N"])], constants)

    cast = lambda x, y, elem: node("Cast", [x], [y], to=elem)
    one("square_int64", [node("Mul", ["x", "x"], ["y"], name="squared")], INT64, INT64)
    one("float_to_int64", [cast("x", "y", INT64)], FP32, INT64)
    one("float_to_bool", [cast("x", "y", BOOL)], FP32, BOOL)
    one("int64_through_bool", [cast("x", "known", BOOL), cast("known", "y", FP32)], INT64, FP32)
    one("half_inside", [cast("x", "half", TensorProto.FLOAT16), cast("half", "y", FP32)], FP32, FP32)
    one(
        "double_inside",
        [
            cast("x", "wide", TensorProto.DOUBLE),
            node("Add", ["wide", "little"], ["more"]),
            node("Sub", ["more", "wide"], ["rest"]),
            cast("rest", "y", FP32),
        ],
        FP32,
        FP32,
        constant("little", np.float64(1e-9)),
    )


def bytes_computed():
    """Operators on integers of 8 bits that an engine may lack."""
    byte = TYPES["uint8"]
    for name, made in (
        ("add_uint8", node("Add", ["a", "b"], ["y"])),
        ("concat_uint8", node("Concat", ["a", "b"], ["y"], axis=0)),
    ):
        save(name, [made], [value("a", byte, ["N"]), value("b", byte, ["N"])], [value("y", byte, ["M"])])


def halves():
    """Weights of half floats that the graph itself widens, before it computes with them."""
    save(
        "half_weights",
        [
            node("Cast", ["weights"], ["wide_weights"], to=FP32),
            node("MatMul", ["x", "wide_weights"], ["product"]),
            node("Gather", ["table", "rows"], ["picked"], axis=0),
            node("Cast", ["picked"], ["wide_picked"], to=FP32),
            node("Add", ["product", "wide_picked"], ["y"]),
        ],
        [value("x", FP32, ["N", 3]), value("rows", INT64, ["N"])],
        [value("y", FP32, ["N", 2])],
        [
            constant("weights", np.array([[0.1, 65504], [-6e-8, 1], [2, 1 / 3]], np.float16)),
            constant("table", np.array([[0.2, -0.7], [1024, 0]], np.float16)),
        ],
    )


def counted_turns():
    """How while loops are exported: no end of turns, an integer that counts them, and a condition on it."""
    body = helper.make_graph(
        [
            node("Constant", [], ["one"], value_int=1),
            node("Add", ["count", "one"], ["next"]),
            node("Add", ["sum", "step"], ["next_sum"]),
            node("Less", ["next", "limit"], ["goes_on"]),
        ],
        "turn",
        [value("turn_number", INT64, []), value("on", BOOL, []), value("count", INT64, []), value("sum", FP32, [])],
        [value("goes_on", BOOL, []), value("next", INT64, []), value("next_sum", FP32, [])],
    )
    save(
        "counted_turns",
        [node("Less", ["start", "limit"], ["begins"]), node("Loop", ["most", "begins", "start", "nought"], ["turns", "y"], body=body)],
        [value("limit", INT64, []), value("step", FP32, [])],
        [value("turns", INT64, []), value("y", FP32, [])],
        [
            constant("most", np.int64(np.iinfo(np.int64).max)),
            constant("start", np.int64(0)),
            constant("nought", np.float32(0)),
        ],
    )


def within_32_bits():
    """Graphs with 64-bit integers that stay within 32 bits, whatever they are asked."""
    save(
        "moved_int64",
        [
            node("Gather", ["x", "turned"], ["picked"], axis=0),
            node("Concat", ["picked", "x"], ["longer"], axis=0),
            node("Unsqueeze", ["longer", "zero"], ["y"]),
        ],
        [value("x", INT64, ["N"])],
        [value("y", INT64, [1, "M"])],
        [constant("turned", np.array([-1, 0], np.int64)), constant("zero", np.array([0], np.int64))],
    )
    # How masks are passed: whatever is not 0 is kept.
    save(
        "mask_int64",
        [
            node("Cast", ["mask"], ["kept"], to=BOOL),
            node("Not", ["kept"], ["left_out"]),
            node("Where", ["kept", "x", "nought"], ["masked"]),
        ],
        [value("mask", INT64, ["N"]), value("x", FP32, ["N"])],
        [value("kept", BOOL, ["N"]), value("left_out", BOOL, ["N"]), value("masked", FP32, ["N"])],
        [constant("nought", np.float32(0))],
    )
    save(
        "bounded_int64",
        [
            node("Shape", ["x"], ["shape"]),
            node("Mul", ["shape", "two"], ["twice"]),
            node("Add", ["twice", "one"], ["sizes"]),
            node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
            node("Add", ["best", "one"], ["places"]),
            node("Greater", ["x", "nought"], ["positive"]),
            node("Cast", ["positive"], ["flags"], to=INT64),
            node("ReduceSum", ["flags", "one_axis"], ["counts"], keepdims=0),
            node("Mod", ["labels", "seven"], ["rests"]),
            node("Div", ["labels", "two"], ["halves"]),
            node("Shape", ["labels"], ["length"]),
            node("Cast", ["length"], ["float_length"], to=FP32),
            node("Mul", ["float_length", "half"], ["float_half"]),
            node("Floor", ["float_half"], ["whole_half"]),
            node("Cast", ["whole_half"], ["half_length"], to=INT64),
            node("Cast", ["labels"], ["float_labels"], to=FP32),
            node("Sub", ["float_labels", "float_one"], ["lowered"]),
            node("Cast", ["lowered"], ["not_one"], to=BOOL),
        ],
        [value("x", FP32, ["N", "M"]), value("labels", INT64, ["N"])],
        [value("sizes", INT64, [2])]
        + [value(name, INT64, ["N"]) for name in ("places", "counts", "rests", "halves")]
        + [value("half_length", INT64, [1]), value("not_one", BOOL, ["N"])],
        [
            constant("one", np.int64(1)),
            constant("two", np.int64(2)),
            constant("seven", np.int64(7)),
            constant("one_axis", np.array([1], np.int64)),
            constant("nought", np.float32(0)),
            constant("half", np.float32(0.5)),
            constant("float_one", np.float32(1)),
        ],
    )


def divisions():
    """Divisions that cannot trap; `divide` can."""
    save(
        "divide_fp32",
        [node("Div", ["a", "b"], ["q"])],
        [value("a", FP32, ["N"]), value("b", FP32, ["N"])],
        [value("q", FP32, ["N"])],
    )
    save(
        "divide_by_constants",
        [node("Div", ["a", "two"], ["half"]), node("Mod", ["half", "three"], ["q"])],
        [value("a", INT32, ["N"])],
        [value("q", INT32, ["N"])],
        [constant("two", np.int32(2)), constant("three", np.array([3], np.int32))],
    )


def hostile():
    """What preparation must survive. None of them may run in a process that serves."""
    forever = helper.make_graph(
        [node("Identity", ["more"], ["more_out"]), node("Add", ["carried", "one"], ["carried_out"])],
        "body",
        [value("i", INT64, []), value("more", BOOL, []), value("carried", FP32, ["N"])],
        [value("more_out", BOOL, []), value("carried_out", FP32, ["N"])],
    )
    save(
        "endless_loop",
        [node("Loop", ["", "yes", "x"], ["y"], body=forever)],
        [value("x", FP32, ["N"])],
        [value("y", FP32, ["N"])],
        [constant("yes", np.bool_(True)), constant("one", np.float32(1))],
    )
    zero = helper.make_tensor("zero", FP32, [1], [0.5])
    # Four terabytes, asked for by constants: an engine that folds constants asks for them when it loads.
    save(
        "terabyte",
        [node("ConstantOfShape", ["shape"], ["huge"], value=zero), node("ReduceSum", ["huge"], ["total"], keepdims=0),
         node("Add", ["x", "total"], ["y"])],
        [value("x", FP32, ["N"])],
        [value("y", FP32, ["N"])],
        [constant("shape", np.array([1 << 20, 1 << 20], np.int64))],
    )
    # As large as the caller says.
    save(
        "as_large_as_asked",
        [node("ConstantOfShape", ["shape"], ["huge"], value=zero)],
        [value("shape", INT64, ["R"])],
        [value("huge", FP32)],
        check=False,
    )
    # The smallest integer divided by -1 does not fit: ONNX Runtime 1.32 dies of SIGFPE, rten panics. Here of constants
    # alone, which both engines fold when they load ...
    smallest = np.full(2, np.iinfo(np.int32).min, np.int32)
    save(
        "aborts_at_load",
        [node("Div", ["least", "minus"], ["q"]), node("Add", ["x", "q"], ["y"])],
        [value("x", INT32, ["N"])],
        [value("y", INT32, ["N"])],
        [constant("least", smallest), constant("minus", np.full(2, -1, np.int32))],
    )
    # ... and here of what the caller passes.
    save(
        "divide",
        [node("Div", ["a", "b"], ["q"])],
        [value("a", INT32, ["N"]), value("b", INT32, ["N"])],
        [value("q", INT32, ["N"])],
    )


def rows():
    """Graphs whose rows run together, or only seem to."""
    table = np.arange(32, dtype=np.float32).reshape(8, 4) * 10
    x, y = value("x", FP32, ["N", 4]), value("y", FP32, ["N", 4])
    # An id that is not in the table fails the whole run.
    save(
        "rows",
        [node("Gather", ["table", "ids"], ["picked"], axis=0), node("Add", ["x", "picked"], ["y"])],
        [x, value("ids", INT64, ["N"])],
        [y],
        [constant("table", table)],
    )
    # A run takes as many turns as the row that asks for most.
    body = helper.make_graph(
        [node("Identity", ["more"], ["more_out"]), node("Abs", ["carried"], ["carried_out"])],
        "body",
        [value("i", INT64, []), value("more", BOOL, []), value("carried", FP32, ["N"])],
        [value("more_out", BOOL, []), value("carried_out", FP32, ["N"])],
    )
    save(
        "turns_of_rows",
        [
            node("ReduceMax", ["times"], ["most"], keepdims=0),
            node("Abs", ["x"], ["whole"]),
            node("Loop", ["most", "yes", "whole"], ["y"], body=body),
        ],
        [value("times", INT64, ["N"]), value("x", FP32, ["N"])],
        [value("y", FP32, ["N"])],
        [constant("yes", np.bool_(True))],
    )
    save(
        "mean_of_rows",
        [node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1), node("Sub", ["x", "mean"], ["y"])],
        [x],
        [y],
    )
    # As Silero's net has it, but without the names and sizes that would tell: rows are on the state's second axis.
    save(
        "state_on_axis_1",
        [node("Gather", ["state", "first"], ["hidden"], axis=0), node("Add", ["x", "hidden"], ["y"])],
        [value("x", FP32, ["N", 4]), value("state", FP32, ["N", "M", 4])],
        [value("y", FP32, ["N", 4])],
        [constant("first", np.int64(0))],
    )
    rng = np.random.default_rng(11)
    save(
        "dynamic_quantization",
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
            node("Cast", ["sums"], ["floats"], to=FP32),
            node("Mul", ["floats", "scale"], ["y"]),
        ],
        [value("x", FP32, ["N", 8])],
        [value("y", FP32, ["N", 4])],
        [constant("w", rng.integers(-100, 100, (8, 4)).astype(np.int8))],
    )
    save(
        "quantised_numbers",
        [
            node("Cast", ["numbers"], ["x"], to=FP32),
            node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        [value("numbers", INT64, ["N", "T"])],
        [value("y", FP32, ["N", "T"])],
    )


def text_encoder():
    """Ids and their mask to one vector a token, each mixed with the mean of its text: rows may be padded."""
    rng = np.random.default_rng(13)
    save(
        "encoder",
        [
            node("Gather", ["words", "input_ids"], ["embedded"], axis=0),
            node("Cast", ["attention_mask"], ["flat"], to=FP32),
            node("Unsqueeze", ["flat", "last"], ["mask"]),
            node("Mul", ["embedded", "mask"], ["masked"]),
            node("ReduceSum", ["masked", "one"], ["sum"], keepdims=1),
            node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
            node("Div", ["sum", "count"], ["mean"]),
            node("Add", ["embedded", "mean"], ["hidden"]),
        ],
        [value("input_ids", INT64, ["N", "T"]), value("attention_mask", INT64, ["N", "T"])],
        [value("hidden", FP32, ["N", "T", 4])],
        [
            constant("words", rng.normal(size=(100, 4)).astype(np.float32)),
            constant("last", np.array([2], np.int64)),
            constant("one", np.array([1], np.int64)),
        ],
    )


def refused():
    """Graphs that the bounded reader refuses."""
    weight = constant("w", np.ones(4, np.float32))
    external = TensorProto()
    external.CopyFrom(weight)
    external.ClearField("raw_data")
    external.data_location = TensorProto.EXTERNAL
    entry = external.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    plain = ([value("x", FP32, ["N"])], [value("y", FP32, ["N"])])
    save("refused_external_data", [node("Add", ["x", "w"], ["y"])], *plain, [external], check=False)
    save("refused_domain", [node("Mystery", ["x"], ["y"], domain="com.example")], *plain, check=False)
    short = TensorProto()
    short.CopyFrom(weight)
    short.raw_data = b"\0" * 12
    save("refused_short_weight", [node("Add", ["x", "w"], ["y"])], *plain, [short], check=False)
    # No engine looks at this before it runs.
    twice, wrong = node("Concat", ["x", "x"], ["y"], axis=1), [value("y", FP32, ["N", 3])]
    save("misdeclared", [twice], [value("x", FP32, ["N", 2])], wrong, check=False)
    save("misdeclared_type", [node("Add", ["x", "x"], ["y"])], [value("x", FP32, ["N", 2])], [value("y", INT32, ["N", 2])],
         check=False)
    inner = [node("Identity", ["x"], ["deep0"])]
    out = "deep0"
    for depth in range(1, 12):
        outputs = [value(out, FP32, ["N"])]
        inner = [
            node(
                "If", ["c"], [f"deep{depth}"],
                then_branch=helper.make_graph(inner, "t", [], outputs),
                else_branch=helper.make_graph([node("Identity", ["x"], [out])], "e", [], outputs),
            )
        ]
        out = f"deep{depth}"
    save("refused_deep", inner, [value("c", BOOL, []), value("x", FP32, ["N"])], [value(out, FP32, ["N"])], check=False)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    identities()
    arithmetic()
    tiny_net()
    rows()
    text_encoder()
    control_flow()
    strings()
    integers()
    beyond_32_bits()
    bytes_computed()
    within_32_bits()
    halves()
    counted_turns()
    divisions()
    hostile()
    refused()
    print(f"{len(list(OUT.glob('*.onnx')))} graphs in {OUT}")


if __name__ == "__main__":
    main()
