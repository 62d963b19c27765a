#!/usr/bin/env python3
"""Writes MobileNetV2 with random weights from a fixed seed: make_mobilenet.py OUTPUT

For timing only: its layers are those of the paper (width 1.0, batch normalisation folded into the convolutions), its
answers mean nothing. `input`, FP32 [batch, 3, 224, 224], gives `output`, FP32 [batch, 1000]. The bytes do not depend on
the machine: the weights are drawn from integers.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

# expansion, channels, repeats, first stride: table 2 of the paper
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class Net:
    def __init__(self):
        self.random = np.random.Generator(np.random.PCG64(20241028))
        self.nodes = []
        self.weights = []

    def weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        """Even over plus and minus sqrt(6 / fan_in), which keeps the size of the activations."""
        steps = self.random.integers(-32768, 32768, size=shape).astype(np.float32)
        values = steps * np.float32(np.sqrt(6 / fan_in) / 32768)
        return self.constant(values)

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, shape: tuple[int, int], size: int, stride: int = 1, depthwise: bool = False) -> str:
        into, out = shape
        group = into if depthwise else 1
        fan_in = into // group * size * size
        weight = self.weight((out, into // group, size, size), fan_in)
        bias = self.constant(np.zeros(out, dtype=np.float32))
        pad = size // 2
        window = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [pad] * 4, "group": group}
        return self.op("Conv", x, weight, bias, **window)

    def relu6(self, x: str) -> str:
        bounds = [self.constant(np.array(v, dtype=np.float32)) for v in (0, 6)]
        return self.op("Clip", x, *bounds)

    def block(self, x: str, shape: tuple[int, int], expansion: int, stride: int) -> str:
        into, out = shape
        wide = into * expansion
        y = x if expansion == 1 else self.relu6(self.conv(x, (into, wide), 1))
        y = self.relu6(self.conv(y, (wide, wide), 3, stride, depthwise=True))
        y = self.conv(y, (wide, out), 1)
        return self.op("Add", x, y) if stride == 1 and into == out else y


def main() -> None:
    net = Net()
    x, channels = net.relu6(net.conv("input", (3, 32), 3, 2)), 32
    for expansion, out, repeats, first in BLOCKS:
        for repeat in range(repeats):
            x = net.block(x, (channels, out), expansion, first if repeat == 0 else 1)
            channels = out
    x = net.relu6(net.conv(x, (channels, 1280), 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    weight, bias = net.weight((1280, 1000), 1280), net.constant(np.zeros(1000, dtype=np.float32))
    net.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["output"], name="classifier"))
    graph = helper.make_graph(
        net.nodes,
        "mobilenet-v2",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1000])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    Path(sys.argv[1]).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
