"""all-MiniLM-L6-v2 in NumPy, from the package's weights: written from the paper's equations, not from our ONNX export."""

import json
import struct
from pathlib import Path

import numpy as np
from scipy.special import erf
from tokenizers import Tokenizer


class MiniLM:
    """Texts to unit vectors of 384 numbers, in double precision, one text at a time (so nothing is padded)."""

    def __init__(self, folder: Path, max_tokens: int = 256):
        blob = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", blob[:8])[0]
        self.table = json.loads(blob[8 : 8 + size])
        self.values = memoryview(blob)[8 + size :]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.table[name]
        start, stop = entry["data_offsets"]
        return np.frombuffer(self.values[start:stop], np.float32).reshape(entry["shape"]).astype(np.float64)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / deviation * self[f"{name}.weight"] + self[f"{name}.bias"]

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.einsum("si,oi->so", x, self[f"{name}.weight"]) + self[f"{name}.bias"]

    def attend(self, x: np.ndarray, name: str) -> np.ndarray:
        query, key, value = (self.dense(x, f"{name}.{part}").reshape(len(x), 12, 32) for part in ("query", "key", "value"))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, value).reshape(len(x), 384)

    def hidden(self, ids: list[int]) -> np.ndarray:
        """The last hidden state of one sequence of token ids: [sequence, 384]."""
        x = self["embeddings.word_embeddings.weight"][ids]
        x = x + self["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x + self["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
        for index in range(6):
            name = f"encoder.layer.{index}"
            mixed = self.dense(self.attend(x, f"{name}.attention.self"), f"{name}.attention.output.dense")
            x = self.norm(mixed + x, f"{name}.attention.output.LayerNorm")
            wide = self.dense(x, f"{name}.intermediate.dense")
            wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
            x = self.norm(self.dense(wide, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
        return x

    def embed(self, text: str) -> np.ndarray:
        """The mean of the hidden states, at unit length."""
        mean = self.hidden(self.tokenizer.encode(text).ids).mean(0)
        return mean / np.linalg.norm(mean)
