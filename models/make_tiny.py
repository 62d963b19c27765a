#!/usr/bin/env python3
"""Writes the smallest net worth timing: make_tiny.py [OUTPUT]

`x`, FP32 [batch, 16], times a matrix, plus a bias, through a ReLU, gives `y`, FP32 [batch, 4]. Committed as
models/tiny/model.onnx for benches and tests, where the engine itself should cost next to nothing.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

DEFAULT = Path(__file__).resolve().parent / "tiny" / "model.onnx"


def main() -> None:
    weights = ((np.arange(64, dtype=np.float32) * 7 % 13) - 6).reshape(16, 4) / 8
    bias = np.array([0.5, -0.25, 0.125, 0], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weights", "bias"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    (Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
