#!/usr/bin/env python3
"""Writes all-MiniLM-L6-v2 as an ONNX file from the weights in its package: make_minilm.py OUTPUT

Reads target/models/minilm/model.safetensors (models/fetch.py puts it there). A BERT encoder of six layers in plain
operators of opset 17: `input_ids` and `attention_mask`, INT64 [batch, sequence], give `last_hidden_state`,
FP32 [batch, sequence, 384]. The same weights give the same bytes.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

WEIGHTS = Path(__file__).resolve().parent.parent / "target" / "models" / "minilm" / "model.safetensors"
LAYERS, HEADS, HIDDEN = 6, 12, 384
HEAD = HIDDEN // HEADS
EPSILON = 1e-12


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Eight bytes of length, a JSON header with offsets, and the values."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            arrays[name] = np.frombuffer(data[begin:end], dtype="<f4").reshape(entry["shape"])
    return arrays


class Builder:
    """A graph under construction: every method adds what it names and returns the name of its result."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.nodes = []
        self.initializers = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def op(self, kind: str, name: str, *inputs: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(self, name: str, x: str, source: str) -> str:
        """x @ W.T + b, with the weight stored transposed."""
        weight = self.constant(f"{source}.weight_t", self.weights[f"{source}.weight"].T)
        bias = self.constant(f"{source}.bias", self.weights[f"{source}.bias"])
        return self.op("Add", name, self.op("MatMul", f"{name}/matmul", x, weight), bias)

    def norm(self, name: str, x: str, source: str) -> str:
        scale = self.constant(f"{source}.weight", self.weights[f"{source}.weight"])
        bias = self.constant(f"{source}.bias", self.weights[f"{source}.bias"])
        return self.op("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=EPSILON)

    def heads(self, name: str, x: str, order: list[int]) -> str:
        """[batch, sequence, hidden] with the hidden axis split into heads, then transposed."""
        shape = self.constant("shape/split", np.array([0, 0, HEADS, HEAD], dtype=np.int64))
        return self.op("Transpose", name, self.op("Reshape", f"{name}/split", x, shape), perm=order)

    def gelu(self, name: str, x: str) -> str:
        """The exact one, with the error function."""
        root = self.constant("sqrt2", np.array(np.sqrt(2.0), dtype=np.float32))
        one = self.constant("one", np.array(1.0, dtype=np.float32))
        half = self.constant("half", np.array(0.5, dtype=np.float32))
        erf = self.op("Erf", f"{name}/erf", self.op("Div", f"{name}/div", x, root))
        product = self.op("Mul", f"{name}/mul", x, self.op("Add", f"{name}/add", erf, one))
        return self.op("Mul", name, product, half)


def embed(b: Builder) -> str:
    """Words, positions and the one token type, normalised."""
    words = b.constant("words", b.weights["embeddings.word_embeddings.weight"])
    types = b.weights["embeddings.token_type_embeddings.weight"][0]
    positions = b.constant("positions", b.weights["embeddings.position_embeddings.weight"] + types)
    zero = b.constant("zero", np.array([0], dtype=np.int64))
    axis = b.constant("axis1", np.array([1], dtype=np.int64))
    length = b.op("Gather", "length", b.op("Shape", "shape", "input_ids"), axis, axis=0)
    position = b.op("Slice", "position", positions, zero, length, zero)
    summed = b.op("Add", "embedding", b.op("Gather", "word", words, "input_ids", axis=0), position)
    return b.norm("layer0/input", summed, "embeddings.LayerNorm")


def additive_mask(b: Builder) -> str:
    """0 where the mask is 1, and a large negative number where it is 0: [batch, 1, 1, sequence]."""
    axes = b.constant("axes12", np.array([1, 2], dtype=np.int64))
    one = b.constant("one", np.array(1.0, dtype=np.float32))
    low = b.constant("low", np.array(-10000.0, dtype=np.float32))
    kept = b.op("Cast", "mask/float", "attention_mask", to=TensorProto.FLOAT)
    hidden = b.op("Mul", "mask/low", b.op("Sub", "mask/inverted", one, kept), low)
    return b.op("Unsqueeze", "mask", hidden, axes)


def layer(b: Builder, index: int, x: str, mask: str) -> str:
    source, name = f"encoder.layer.{index}", f"layer{index}"
    scale = b.constant("scale", np.array(1 / np.sqrt(HEAD), dtype=np.float32))
    merged = b.constant("shape/merge", np.array([0, 0, HIDDEN], dtype=np.int64))
    attention = f"{source}.attention.self"
    query = b.heads(f"{name}/q", b.linear(f"{name}/query", x, f"{attention}.query"), [0, 2, 1, 3])
    key = b.heads(f"{name}/k", b.linear(f"{name}/key", x, f"{attention}.key"), [0, 2, 3, 1])
    value = b.heads(f"{name}/v", b.linear(f"{name}/value", x, f"{attention}.value"), [0, 2, 1, 3])
    scores = b.op("Mul", f"{name}/scaled", b.op("MatMul", f"{name}/scores", query, key), scale)
    weights = b.op("Softmax", f"{name}/softmax", b.op("Add", f"{name}/masked", scores, mask), axis=-1)
    context = b.op("Transpose", f"{name}/context", b.op("MatMul", f"{name}/mix", weights, value), perm=[0, 2, 1, 3])
    joined = b.op("Reshape", f"{name}/joined", context, merged)
    projected = b.linear(f"{name}/projected", joined, f"{source}.attention.output.dense")
    attended = b.norm(
        f"{name}/attended", b.op("Add", f"{name}/residual1", projected, x), f"{source}.attention.output.LayerNorm"
    )
    wide = b.gelu(f"{name}/gelu", b.linear(f"{name}/wide", attended, f"{source}.intermediate.dense"))
    narrow = b.linear(f"{name}/narrow", wide, f"{source}.output.dense")
    output = "last_hidden_state" if index == LAYERS - 1 else f"layer{index + 1}/input"
    return b.norm(output, b.op("Add", f"{name}/residual2", narrow, attended), f"{source}.output.LayerNorm")


def main() -> None:
    b = Builder(read_safetensors(WEIGHTS))
    x, mask = embed(b), additive_mask(b)
    for index in range(LAYERS):
        x = layer(b, index, x, mask)
    tokens = ["batch", "sequence"]
    graph = helper.make_graph(
        b.nodes,
        "all-MiniLM-L6-v2",
        [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [*tokens, HIDDEN])],
        list(b.initializers.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    Path(sys.argv[1]).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
