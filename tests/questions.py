"""What each example is asked where every one of them is: its own golden input, where it has one."""

import json
from dataclasses import dataclass

import inputs
import numpy as np
from harness import ROOT
from sending import strings

NUMPY = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BYTES": object}
FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5], [5.9, 3.0, 4.2, 1.5]]
CSV = "".join(",".join(map(str, row)) + "\n" for row in FLOWERS).encode()

# An input: its name, its type, its values.
Input = tuple[str, str, np.ndarray]


@dataclass
class Page:
    """A request to a module that has a world of its own, below its model's path."""

    method: str
    path: str
    body: bytes | None = None


PAGES = {
    "cli-iris": Page("POST", "", CSV),
    "http-async-iris": Page("POST", "/", CSV),
    "http-iris": Page("GET", "/classify?sepal_length=5.9&sepal_width=3&petal_length=4.2&petal_width=1.5"),
}
# It answers inferences by a parameter, for benches, and has no graph.
NOT_ASKED = {"pictures"}


def array(tensor: dict) -> np.ndarray:
    data = tensor["data"]
    if tensor["datatype"] == "BYTES":
        data = [text.encode() for text in data]
    return np.array(data, NUMPY[tensor["datatype"]]).reshape(tensor["shape"])


def inferences() -> dict[str, list[Input]]:
    """Those that answer inferences of the protocol."""
    found = {
        "ocr": [("image", "BYTES", strings(inputs.pictures()["drawn01.png"]))],
        "passthrough": [("features", "FP32", np.array(FLOWERS, np.float32))],
        "scores": [("x", "FP32", np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16))],
    }
    for file in sorted((ROOT / "examples").glob("*/test-input.json")):
        asked = json.loads(file.read_text())["inputs"]
        found[file.parent.name] = [(i["name"], i["datatype"], array(i)) for i in asked]
    return found


def examples(part: str = "") -> list[str]:
    """All examples; with `part`, those whose manifest has it."""
    manifests = (ROOT / "examples").glob("*/windrose.toml")
    return sorted(file.parent.name for file in manifests if part in file.read_text())
