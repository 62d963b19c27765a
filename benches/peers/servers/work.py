"""What every Python peer does in the path of a request, the same as the guest `scores`: it refuses numbers that are not
finite, has ONNX Runtime compute the graph on one thread, and turns each row of scores into probabilities."""

import json
import os
import sys
import time
from array import array
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


def turn(run, seconds: float) -> dict[str, float]:
    """Runs it again and again for so long, alone: how often, runs a second, and microseconds of one."""
    times, began = array("d"), time.perf_counter()
    now, ends = began, began + seconds
    while now < ends:
        run()
        after = time.perf_counter()
        times.append(after - now)
        now = after
    p50, p99 = np.percentile(np.frombuffer(times), (50, 99)) * 1e6
    return {"count": len(times), "rate": len(times) / (now - began), "p50": p50, "p99": p99}


def main() -> None:
    """The engine alone, one instance of one thread, through Python's own binding. It says when it has answered once;
    then each line that it reads is a number of seconds, and gets a line about a turn of so long."""
    model = sys.argv[1]
    engine = session(model)
    _, given, wanted, shape = MODELS[model]
    values = np.linspace(-1, 1, num=int(np.prod(shape)), dtype=np.float32).reshape(shape)
    run = lambda: engine.run([wanted], {given: values})  # noqa: E731
    run()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(run, float(line))), flush=True)


if __name__ == "__main__":
    main()
