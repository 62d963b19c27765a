"""What every Python peer does in the path of a request, the same as the guest `scores`: it refuses numbers that are not
finite, has ONNX Runtime compute the graph on one thread, and turns each row of scores into probabilities."""

import json
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
    """The engine alone, one thread, through Python's own binding: runs a second, CPU of one run, memory, and the time from
    the start of the process to the first answer."""
    model, seconds, began = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    engine = session(model)
    _, given, wanted, shape = MODELS[model]
    array = np.linspace(-1, 1, num=int(np.prod(shape)), dtype=np.float32).reshape(shape)
    engine.run([wanted], {given: array})
    first = time.time() - began
    times, used = [], time.process_time()
    ends = time.perf_counter() + seconds
    while not times or times[-1][1] < ends:
        start = time.perf_counter()
        engine.run([wanted], {given: array})
        times.append((start, time.perf_counter()))
    used = time.process_time() - used
    took = sorted(end - start for start, end in times)
    at = lambda share: took[int((len(took) - 1) * share)] * 1e6  # noqa: E731
    memory = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    seen = {"rate": len(times) / (times[-1][1] - times[0][0]), "p50": at(0.5), "p99": at(0.99)}
    seen |= {"cpu": used / len(times) * 1e6, "mb": int(memory.split()[1]) * 1024 / 1e6, "first_ms": first * 1e3}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
