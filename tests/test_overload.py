"""A model that is asked for more than it can do: what it admits is what it answers soon."""

import threading
import time

from fleet import ADD, metric
from harness import wait_until

# Its queue stands with eight calls in flight; three keep the one session busy.
MANIFEST = f"""
name = "loop"
[graphs.model]
file = "{ADD / "loop.onnx"}"
sessions = 1
[limits]
concurrency = 8
"""
# Clients that ask again at once, and how often each call runs the graph's loop: some milliseconds on any machine.
CLIENTS, TIMES = 24, 20_000
INPUTS = [
    {"name": "times", "datatype": "INT64", "shape": [], "data": [TIMES]},
    {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
]


def test_a_queue_that_stands_is_kept_short_until_the_pressure_is_gone(make_gateway, tmp_path):
    (tmp_path / "windrose.toml").write_text(MANIFEST)
    gateway = make_gateway("rten")
    gateway.deploy(tmp_path)
    stopping, seen = threading.Event(), []

    def ask():
        while not stopping.is_set():
            answer = gateway.infer("loop", INPUTS)
            seen.append((answer.status, answer.headers.get("retry-after")))

    def pressed() -> bool:
        return metric(gateway, "windrose_model_pressed", model="loop") == 1

    def free() -> float:
        return metric(gateway, "windrose_permits_available", model="loop")

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        wait_until(pressed, 30, "the model to be under pressure")
        wait_until(lambda: free() >= 5, 30, "the queue to become short")
    finally:
        stopping.set()
        for thread in threads:
            thread.join(30)
    assert {status for status, _ in seen} == {200, 429}
    assert all((again is not None) == (status == 429) for status, again in seen)

    def rested() -> bool:
        time.sleep(0.2)
        return gateway.infer("loop", INPUTS).status == 200 and not pressed()

    wait_until(rested, 30, "the pressure to be gone")
