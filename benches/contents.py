"""Modules and graphs that do the same under other digests, so that many can be made of one."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def another_module(module: bytes, number: int) -> bytes:
    """The same component with another digest: a custom section behind it says a number."""
    section = b"\x06number" + number.to_bytes(4, "little")
    return module + b"\x00" + bytes([len(section)]) + section


def another_graph(graph: bytes, number: int) -> bytes:
    """The same graph with another digest, as long as every other one: the last number of its last weights is larger by
    so many of the smallest steps that a float can take, which no answer shows."""
    model = onnx.load_from_string(graph)
    weights = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT][-1]
    values = numpy_helper.to_array(weights).copy()
    last = values.reshape(-1)[-1:]
    for _ in range(number):
        last[0] = np.nextafter(last[0], np.float32(np.inf))
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    return model.SerializeToString()
