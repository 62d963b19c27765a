"""Graphs in processes of their own, behind a real gateway: what one of them does, no other notices."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fleet import metric
from harness import ROOT, children, wait_until
from sending import infer

GRAPHS = ROOT / "models" / "test"
X = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]


def loop(gateway, times: int, **more):
    inputs = [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [times]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
    return gateway.infer("loop", inputs, **more)


def quotient(a: int, b: int):
    return [{"name": n, "datatype": "INT32", "shape": [1], "data": [v]} for n, v in (("a", a), ("b", b))]


class Callers:
    """Two threads that call a model one request after the other, and keep every outcome."""

    def __init__(self, gateway, model: str, inputs=X):
        self.outcomes, self.stopping = [], threading.Event()

        def call():
            while not self.stopping.is_set():
                answer = gateway.infer(model, inputs)
                self.outcomes.append((answer.status, answer.headers.get("windrose-error")))

        self.threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def count(self) -> int:
        return len(self.outcomes)

    def finish(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
        return self.outcomes


@pytest.fixture
def gateway(make_gateway, engine):
    return make_gateway(engine, engines__isolation="child", engines__child_run="2s")


def test_answers_are_the_same_from_a_child(gateway):
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "same")
    assert "a process of its own" in gateway.cli("inspect", "same").stdout
    assert len(children(gateway.process.pid)) == 1
    for shape in ((1, 2), (3, 50_000), (0, 4)):
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(infer(gateway, "same", x=x)["y"], x)
    gateway.cli("delete", "same", "--yes")
    wait_until(lambda: not children(gateway.process.pid), 20, "the child to end with its graph")


def test_a_quotient_that_kills_its_process_fails_alone_whatever_is_configured(make_gateway, engine):
    gateway = make_gateway(engine, engines__isolation="process")
    gateway.deploy(GRAPHS / "divide.onnx", "--name", "divide")
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "other")
    native = engine == "onnxruntime"
    assert ("a process of its own" in gateway.cli("inspect", "divide").stdout) == native
    assert "a process of its own" not in gateway.cli("inspect", "other").stdout
    assert len(children(gateway.process.pid)) == native

    process = gateway.process.pid
    callers = Callers(gateway, "other"), Callers(gateway, "divide", quotient(7, 2))
    for _ in range(8):
        answer = gateway.infer("divide", quotient(-(2**31), -1))
        assert answer.headers["windrose-error"] == ("graph_crashed" if native else "graph_failed"), answer.body
        assert answer.status == 502
        seen = [each.count() for each in callers]
        wait_until(lambda: all(each.count() > count + 20 for each, count in zip(callers, seen)),  # noqa: B023
                   30, "requests after it")
    for each in callers:
        assert set(each.finish()) == {(200, None)}
    assert gateway.process.pid == process and gateway.process.poll() is None


def test_an_endless_run_and_a_kill_fail_their_own_requests_alone(gateway):
    gateway.deploy(GRAPHS / "loop.onnx", "--name", "loop")
    before = set(children(gateway.process.pid))
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "other")
    (other,) = set(children(gateway.process.pid)) - before
    callers = Callers(gateway, "other")
    began = time.monotonic()
    endless = loop(gateway, 2**31 - 1, parameters={"timeout": 60_000_000})
    assert (endless.status, endless.headers["windrose-error"]) == (504, "graph_time_limit")
    assert time.monotonic() - began >= 1.9
    assert loop(gateway, 3).status == 200
    assert {status for status, _ in callers.finish()} == {200}
    callers = Callers(gateway, "other")
    wait_until(lambda: len(callers.outcomes) > 20, 30, "requests")
    os.kill(other, signal.SIGKILL)
    assert loop(gateway, 3).status == 200
    seen = len(callers.outcomes)
    wait_until(lambda: len(callers.outcomes) > seen + 20, 30, "requests after the kill")
    outcomes = callers.finish()
    assert set(outcomes) <= {(200, None), (502, "graph_crashed")}
    # A run that was alone in its child when it was killed may have done it.
    assert sum(status != 200 for status, _ in outcomes) <= 1
    assert outcomes[-1][0] == 200


def test_a_row_that_does_not_end_fails_none_of_its_batch(gateway, tmp_path):
    manifest = f"""
name = "turns"
[graphs.model]
file = "{GRAPHS / 'turns_of_rows.onnx'}"
batching = {{ max_size = 4, max_delay_us = 10000000 }}
"""
    (tmp_path / "windrose.toml").write_text(manifest)
    gateway.deploy(tmp_path)

    def ask(times: int, x: float):
        inputs = [
            {"name": "times", "datatype": "INT64", "shape": [1], "data": [times]},
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [x]},
        ]
        return gateway.infer("turns", inputs)

    for bad in (0, 3):
        with ThreadPoolExecutor(4) as pool:
            times = [2**31 - 1 if at == bad else 3 for at in range(4)]
            answers = list(pool.map(ask, times, map(float, range(4))))
        for at, answer in enumerate(answers):
            if at == bad:
                assert (answer.status, answer.headers["windrose-error"]) == (504, "graph_time_limit")
            else:
                assert answer.status == 200, answer.body
                assert answer.json()["outputs"][0]["data"] == [at]
    assert metric(gateway, "windrose_graph_separated", model="turns") == 2


def test_no_child_outlives_a_killed_gateway(gateway):
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "kept")
    orphans = children(gateway.process.pid)
    assert orphans
    gateway.stop(signal.SIGKILL)

    def alive(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            return False

    wait_until(lambda: not any(map(alive, orphans)), 20, "the children to end")
    gateway.start()
    assert gateway.infer("kept", X).status == 200
