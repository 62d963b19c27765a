"""The SDKs for Python and JavaScript beside a host that is played here: what tensors are made of, and read as."""

import struct
import subprocess
import sys
from enum import Enum
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from harness import ROOT

TENSOR_TYPES = ["FP16", "FP32", "FP64", "BF16", "U8", "I32", "I64"]
DATA_TYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
              "FP64", "BYTES"]


class HostTensor:
    """A tensor of the host."""

    def __init__(self, shape, kind, data):
        self.dimensions, self.ty, self.data = lambda: shape, lambda: kind, lambda: data


@pytest.fixture(scope="module")
def python_sdk():
    """`windrose_guest`, with modules in the place of those that componentize-py makes."""
    host = MagicMock()
    host.tensor = SimpleNamespace(Tensor=HostTensor, TensorType=Enum("TensorType", TENSOR_TYPES))
    host.types.DataType = Enum("DataType", DATA_TYPES)
    modules = {"wit_world.imports": host, "wit_world.imports.tensor": host.tensor, "wit_world.imports.types": host.types}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"componentize_py_types": MagicMock(), "wit_world": MagicMock(), **modules}.items():
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(ROOT / "guest-sdk" / "python")
        import windrose_guest

        yield windrose_guest
        del sys.modules["windrose_guest"]


@pytest.mark.parametrize(
    "shape, lists",
    [
        ([0], []),
        ([0, 0], []),
        ([0, 3], []),
        ([2, 0], [[], []]),
        ([0, 2, 0], []),
        ([2, 0, 3], [[], []]),
        ([2, 2, 0], [[[], []], [[], []]]),
        ([3], [0, 1, 2]),
        ([2, 3], [[0, 1, 2], [3, 4, 5]]),
        ([2, 1, 2], [[[0, 1]], [[2, 3]]]),
    ],
)
def test_python_reads_lists_of_the_shape(python_sdk, shape, lists):
    count = 1
    for size in shape:
        count *= size
    tensor = python_sdk.Tensor.from_list(list(range(count)), python_sdk.DataType.INT32, shape)
    assert tensor.to_list() == lists


def test_python_refuses_what_an_element_does_not_hold(python_sdk):
    types = python_sdk.DataType
    for values, dtype in [([300], types.UINT8), ([-1], types.UINT64), ([1.5], types.INT32), ([None], types.FP32)]:
        with pytest.raises((OverflowError, TypeError)):
            python_sdk.Tensor.from_list(values, dtype)
    assert python_sdk.Tensor.from_list([255, 0], types.UINT8).to_bytes() == struct.pack("2B", 255, 0)


@pytest.mark.parametrize(
    "elements, shape", [(["north", ""], None), ([b"\xff\0", "west"], [2, 1]), (["one"], []), ([], None), ([], [0, 3])]
)
def test_python_byte_strings_survive_a_tensor(python_sdk, elements, shape):
    strings = python_sdk.Strings(elements, shape)
    tensor = python_sdk.Tensor.from_strings(strings)
    assert (tensor.type, tensor.shape) == (python_sdk.TensorType.U8, strings.shape)
    assert tensor.to_strings() == strings


@pytest.mark.parametrize(
    "kind, shape, data, said",
    [
        ("U8", [1], b"", "byte string 0 of 1 is truncated"),
        ("U8", [1], b"\1\0\0", "byte string 0 of 1 is truncated"),
        ("U8", [1], b"\2\0\0\0a", "byte string 0 of 1 is truncated"),
        ("U8", [2], b"\4\0\0\0abcd", "byte string 1 of 2 is truncated"),
        ("U8", [1], b"\1\0\0\0ab", "1 bytes are left"),
        ("U8", [0], b"\0\0\0\0", "4 bytes are left"),
        ("U8", [4], b"\0\0\0\0", "no byte strings"),
        ("FP32", [1], b"\0\0\0\0", "no byte strings"),
    ],
)
def test_python_refuses_what_are_no_byte_strings(python_sdk, kind, shape, data, said):
    tensor = python_sdk.Tensor(HostTensor(shape, python_sdk.TensorType[kind], data))
    with pytest.raises(ValueError, match=said):
        tensor.to_strings()


def test_python_byte_strings_are_no_numbers(python_sdk):
    tensor = python_sdk.Tensor.from_strings(python_sdk.Strings(["ab", ""]))
    assert tensor.to_bytes() == b"\2\0\0\0ab\0\0\0\0"
    for dtype in (None, python_sdk.DataType.BOOL, python_sdk.DataType.BYTES):
        with pytest.raises(ValueError, match="use to_strings"):
            tensor.to_list(dtype)


def test_python_byte_strings_run_through_a_graph(python_sdk):
    # A graph whose outputs are its inputs.
    context = SimpleNamespace(compute=lambda named: named)
    graph = python_sdk.Graph(SimpleNamespace(init_execution_context=lambda: context))
    words = python_sdk.Strings(["north", "west"], [2, 1])
    numbers = python_sdk.Tensor.from_list([1.5])
    answer = graph.run(python_sdk.Request({"words": words, "numbers": numbers}))
    assert answer["words"].to_strings() == words and answer["numbers"].to_list() == [1.5]
    assert graph.run(python_sdk.Request({"words": words, "numbers": numbers}, ["numbers"])).keys() == {"numbers"}
    with pytest.raises(TypeError, match="neither a Tensor nor Strings"):
        graph.compute({"words": ["north"]})


# What node takes for the interfaces of the host.
HOOKS = """
import { register } from "node:module";
const hooks = `
const host = "export const loadByName = () => {}; export class Tensor {"
  + " constructor(shape, kind, bytes) { this.dimensions = () => shape; this.ty = () => kind; this.data = () => bytes; } }";
export const resolve = (name, context, next) => name.startsWith("wasi:")
  ? { url: "data:text/javascript," + encodeURIComponent(host), shortCircuit: true } : next(name, context);
`;
register("data:text/javascript," + encodeURIComponent(hooks));
"""

JAVASCRIPT = """
import assert from "node:assert/strict";
const { Graph, InvalidInput, Request, Strings, Tensor } = await import(process.argv[2]);
const bytes = (...made) => Array.from(Tensor.from(...made).bytes());

// A typed array is taken as what it holds.
assert.deepEqual(bytes(Int32Array.of(-1)), [255, 255, 255, 255]);
assert.deepEqual(bytes(Uint8Array.of(1, 0), [2], "bool"), [1, 0]);
assert.deepEqual(bytes(Uint8ClampedArray.of(7), [1], "uint8"), [7]);
for (const type of ["fp16", "bf16", "uint16"]) assert.deepEqual(bytes(Uint16Array.of(0x3c00), [1], type), [0, 0x3c]);
for (const [array, type] of [
  [Float32Array.of(1), "int32"], [Int32Array.of(1), "fp32"], [Int32Array.of(-1), "uint32"], [Int8Array.of(-1), "bool"],
  [Int16Array.of(1), "fp16"], [BigInt64Array.of(1n), "fp64"],
]) {
  assert.throws(() => Tensor.from(array, [1], type), TypeError, `${array.constructor.name} as ${type}`);
}
assert.throws(() => Tensor.from(Uint8Array.of(1), [1], "nosuch"), TypeError);

// Other arrays hold numbers, which must fit.
assert.deepEqual(bytes([[0, 255], [1, 2]], undefined, "uint8"), [0, 255, 1, 2]);
assert.deepEqual(Tensor.from([[0, 255], [1, 2]], undefined, "uint8").shape, [2, 2]);
assert.deepEqual(bytes([-128, -0, true], undefined, "int8"), [128, 0, 1]);
assert.deepEqual(bytes([true, false, 2], undefined, "bool"), [1, 0, 1]);
assert.deepEqual(bytes([2 ** 32 - 1], undefined, "uint32"), [255, 255, 255, 255]);
assert.deepEqual(bytes([-1, 5n], undefined, "int64"), [...Array(8).fill(255), 5, 0, 0, 0, 0, 0, 0, 0]);
assert.deepEqual(Array.from(Tensor.from([0.5, NaN, 1n]).data()), [0.5, NaN, 1]);
for (const [value, type] of [
  [300, "uint8"], [-1, "uint8"], [128, "int8"], [1.5, "int32"], [NaN, "int32"], [2 ** 31, "int32"], [-1, "uint64"],
  [2n ** 63n, "int64"], [1.5, "int64"],
]) {
  assert.throws(() => Tensor.from([value], undefined, type), RangeError, `${value} as ${type}`);
}
for (const value of ["1", null, undefined, {}]) {
  assert.throws(() => Tensor.from([value]), TypeError);
  assert.throws(() => Tensor.from([value], undefined, "int64"), TypeError);
}

// A text is what its bytes say.
assert.deepEqual(new Strings(["\\ufeffa", "ü"]).texts(), ["\\ufeffa", "ü"]);
assert.throws(() => new Strings([Uint8Array.of(0xff)]).texts(), InvalidInput);

// Byte strings survive a tensor.
for (const [elements, shape] of [
  [["north", ""]], [[Uint8Array.of(0xff, 0), "west"], [2, 1]], [["one"], []], [[]], [[], [0, 3]],
]) {
  const strings = new Strings(elements, shape);
  const tensor = Tensor.fromStrings(strings);
  assert.deepEqual([tensor.type, tensor.shape], ["U8", strings.shape]);
  assert.deepEqual(tensor.toStrings(), strings);
}
const words = Tensor.fromStrings(new Strings(["ab", ""]));
assert.deepEqual(Array.from(words.bytes()), [2, 0, 0, 0, 97, 98, 0, 0, 0, 0]);
for (const type of [undefined, "bool"]) assert.throws(() => words.data(type), /read it with toStrings/);
for (const [kind, shape, data, said] of [
  ["U8", [1], [], /0 of 1 is truncated/], ["U8", [1], [1, 0, 0], /0 of 1 is truncated/],
  ["U8", [1], [2, 0, 0, 0, 97], /0 of 1 is truncated/], ["U8", [2], [4, 0, 0, 0, 97, 98, 99, 100], /1 of 2 is truncated/],
  ["U8", [1], [1, 0, 0, 0, 97, 98], /1 bytes are left/], ["U8", [0], [0, 0, 0, 0], /4 bytes are left/],
  ["U8", [4], [0, 0, 0, 0], /no byte strings/], ["FP32", [1], [0, 0, 0, 0], /no byte strings/],
]) {
  const handle = { dimensions: () => shape, ty: () => kind, data: () => Uint8Array.from(data) };
  assert.throws(() => new Tensor(handle).toStrings(), said);
}

// They run through a graph, here one whose outputs are its inputs.
const graph = new Graph({ initExecutionContext: () => ({ compute: (named) => named }) });
const named = [
  { name: "words", value: { tag: "strings", val: { shape: [2, 1], elements: [Uint8Array.of(0xff), new Uint8Array()] } } },
  { name: "numbers", value: { tag: "tensor", val: Tensor.from(Int32Array.of(7)).handle } },
];
const asked = (outputs) => new Request({ inputs: named, outputs, parameters: [] });
const answer = graph.run(asked([]));
assert.deepEqual(answer.words.toStrings(), asked([]).strings("words"));
assert.deepEqual(Array.from(answer.numbers.data()), [7]);
assert.deepEqual(Object.keys(graph.run(asked(["numbers"]))), ["numbers"]);
assert.throws(() => graph.compute({ words: ["north"] }), /neither a Tensor nor Strings/);
"""


def test_javascript(tmp_path):
    (tmp_path / "hooks.mjs").write_text(HOOKS)
    (tmp_path / "test.mjs").write_text(JAVASCRIPT)
    sdk = ROOT / "guest-sdk" / "js" / "windrose-guest.js"
    command = ["node", "--import", tmp_path / "hooks.mjs", tmp_path / "test.mjs", sdk]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
