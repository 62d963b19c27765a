"""A model that is asked for more than it can do: a graph that loops for some milliseconds, and clients that ask it."""

import threading
from contextlib import contextmanager
from pathlib import Path

from fleet import ADD, answers
from harness import Gateway

MODEL = "loop"
# Its queue stands with eight calls in flight; three keep the one session busy.
MANIFEST = f"""
name = "{MODEL}"
[graphs.model]
file = "{ADD / "loop.onnx"}"
sessions = 1
[limits]
concurrency = 8
"""
# Clients that ask again at once, and how often each call runs the graph's loop: some milliseconds on any machine.
CLIENTS, TIMES = 24, 20_000
BODY = {
    "inputs": [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [TIMES]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
}


def project(folder: Path) -> Path:
    """A folder to deploy the model from."""
    folder.mkdir(exist_ok=True)
    (folder / "windrose.toml").write_text(MANIFEST)
    return folder


@contextmanager
def flooded(gateway: Gateway, seen: list, **headers):
    """Has the clients ask, and notes each answer's status and when it says to come back."""
    stopping = threading.Event()

    def ask():
        while not stopping.is_set():
            answer = answers(gateway, MODEL, BODY, **headers)
            seen.append((answer.status, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(30)
