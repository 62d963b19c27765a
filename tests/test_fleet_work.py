"""What the engines of a fleet are spared: the loser of a race leaves its queue before it runs."""

import threading
import time

import pytest
from fleet import ADD, Fleet, answers, explained, metric
from harness import wait_until

# One job at a time, so that what comes behind a long one waits.
MANIFEST = """
name = "loop"
[graphs.model]
file = "{graph}"
sessions = 1
"""
# Seconds that the engine is kept busy at first; longer where the machine was too slow to race meanwhile.
BUSY = 2.0
LONGEST = 20.0


def body(times: int) -> dict:
    return {
        "inputs": [
            {"name": "times", "datatype": "INT64", "shape": [], "data": [times]},
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
        ]
    }


@pytest.fixture
def fleet(tmp_path):
    """An entry, and two sites of which the second answers only what the first does not."""
    fleet = Fleet(tmp_path / "fleet", ["entry", "first", "second"], {"first": "eu", "second": "us", "entry": "eu"})
    try:
        fleet.write('[model.loop]\npolicy = "weights"\n')
        text = fleet.file.read_text()
        fleet.file.write_text(text.replace('name = "second"\n', 'name = "second"\nweight = 0\n'))
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "windrose.toml").write_text(MANIFEST.format(graph=ADD / "loop.onnx"))
        for name in ("first", "second"):
            fleet.start(name).deploy(folder)
        entry = fleet.start("entry")
        wait_until(lambda: len(sites(entry)) == 2, 30, "both sites at the entry")
        yield fleet
    finally:
        fleet.stop()


def sites(entry) -> set[str]:
    try:
        return {candidate["site"] for candidate in explained(entry, "loop")["candidates"]}
    except AssertionError:
        return set()


def runs(gateway) -> int:
    (statistics,) = gateway.get("/v2/models/loop/stats").json()["model_stats"]
    return statistics["execution_count"]


def withdrawn(gateway) -> float:
    return metric(gateway, "windrose_graph_withdrawn", model="loop")


def ask_itself(first, times: int):
    """A request that the first site answers itself; the entry learns nothing of how long that takes."""
    return answers(first, "loop", body(times), windrose_allow="eu", windrose_hedge="never")


def times_per_second(first) -> float:
    """How fast this machine loops, by an answer that took long enough to tell."""
    times = 10_000
    while True:
        began = time.monotonic()
        assert ask_itself(first, times).status == 200
        took = time.monotonic() - began
        if took > 0.2:
            return times / took
        times *= 4


def race(fleet, times: int, quick: int) -> bool:
    """Keeps the first site busy and asks for something short so many times; false if it was not busy for long enough."""
    entry, first, second = (fleet.gateways[name] for name in ("entry", "first", "second"))
    before = runs(first), withdrawn(first), runs(second)
    long = []

    def keep_busy():
        long.append(ask_itself(first, times))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        wait_until(lambda: metric(first, "windrose_requests_in_flight", model="loop") == 1, 10, "the long request")
        short = [answers(entry, "loop", body(1)) for _ in range(quick)]
        in_time = thread.is_alive()
    finally:
        thread.join(60)
    assert [answer.status for answer in [*long, *short]] == [200] * (1 + quick)
    if not in_time:
        return False
    assert {(answer.headers["windrose-site"], answer.headers["windrose-attempts"]) for answer in short} == {
        ("second", "2")
    }
    # One more behind them: what had stayed in the queue would have run before it.
    assert ask_itself(first, 1).status == 200
    assert runs(first) - before[0] == 2, "a loser ran"
    assert withdrawn(first) - before[1] == quick
    assert runs(second) - before[2] == quick
    return True


def test_the_loser_of_a_race_leaves_the_remote_queue_before_it_runs(fleet):
    speed, seconds = times_per_second(fleet.gateways["first"]), BUSY
    # Two lost races do not eject.
    while not race(fleet, int(speed * seconds), 2):
        seconds *= 2
        assert seconds <= LONGEST, "two short requests were never answered while the first site was busy"
