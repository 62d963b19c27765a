"""What every Python peer does in the path of a request, the same as the guest `scores`: it refuses numbers that are not
finite, has ONNX Runtime compute the graph on one thread, and turns each row of scores into probabilities."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[3]
# From the root of the checkout: file, input, output, shape of the input.
MODELS = {
    "tiny": ("models/tiny/model.onnx", "x", "y", (1, 16)),
    "mobilenet": ("target/models/mobilenet/model.onnx", "input", "output", (1, 3, 224, 224)),
}
# Instances of the model, each with one thread: as many as Windrose has sessions.
INSTANCES = int(os.environ.get("PEER_INSTANCES", "2"))


def session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(ROOT / MODELS[model][0], options, providers=["CPUExecutionProvider"])


def answer(engine: onnxruntime.InferenceSession, model: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    _, given, wanted, _ = MODELS[model]
    scores = engine.run([wanted], {given: array})[0]
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def decode(request: dict) -> np.ndarray:
    """The tensor of a request of the Open Inference Protocol."""
    tensor = request["inputs"][0]
    return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def encode(model: str, array: np.ndarray) -> dict:
    output = {"name": MODELS[model][2], "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return {"model_name": model, "outputs": [output]}


def main() -> None:
    """The engine alone, for the time of a load run: microseconds of CPU of one run, through Python's own binding."""
    model, seconds = sys.argv[1], float(sys.argv[2])
    engine = session(model)
    _, given, wanted, shape = MODELS[model]
    array = np.linspace(-1, 1, num=int(np.prod(shape)), dtype=np.float32).reshape(shape)
    runs, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        engine.run([wanted], {given: array})
        runs += 1
    print((time.process_time() - began) / runs * 1e6)


if __name__ == "__main__":
    main()
