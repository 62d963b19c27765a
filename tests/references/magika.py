"""Magika's net in NumPy and double precision, from the weights of its own file: what its answer is but for rounding."""

from pathlib import Path

import numpy as np
import onnx

NET = "jax2tf_get_logits_/"
PARTS = NET + "pjit_get_logits_/MagikaV2/"
# The net sees each byte as one of 257 (the last stands for none), and four bytes as one position.
BYTES, POSITIONS = 2048, 512


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Net:
    """Features of files, as the package makes them, to scores of all kinds of file."""

    def __init__(self, file: Path):
        self.weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[name].squeeze().astype(np.float64)

    def norm(self, x: np.ndarray, layer: str, shape: tuple[int, ...]) -> np.ndarray:
        """Over the first axis."""
        scale, bias = (self[f"{PARTS}{layer}/Reshape_{n}:0"].reshape(shape) for n in (2, 3))
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6) * scale + bias

    def scores(self, features: list[int]) -> np.ndarray:
        assert len(features) == BYTES
        x = gelu(self[NET + "Const:0"][features] + self[PARTS + "Dense_0/Reshape:0"])
        x = self.norm(x.reshape(POSITIONS, -1), "LayerNorm_0", (POSITIONS, 1))
        windows = np.lib.stride_tricks.sliding_window_view(x, 5, axis=0)
        x = np.einsum("pck,ock->po", windows, self[PARTS + "Conv_0/transpose_3:0"], optimize=True)
        x = gelu(x + self["const_fold_opt__209"]).max(0)
        x = self.norm(x, "LayerNorm_1", (POSITIONS,))
        x = x @ self[NET + "Const_24:0"] + self[PARTS + "Dense_1/Reshape:0"]
        x = np.exp(x - x.max())
        return x / x.sum()
