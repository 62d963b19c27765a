"""A model that is asked for more than it can do: what it admits is what it answers soon."""

import threading
import time
from contextlib import contextmanager

from fleet import ADD, Fleet, metric
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


@contextmanager
def flooded(gateway, seen: list):
    """Has the clients ask, and notes each answer's status and when it says to come back."""
    stopping = threading.Event()

    def ask():
        while not stopping.is_set():
            answer = gateway.infer("loop", INPUTS)
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


def test_a_queue_that_stands_is_kept_short_until_the_pressure_is_gone(make_gateway, tmp_path):
    (tmp_path / "windrose.toml").write_text(MANIFEST)
    gateway = make_gateway("rten")
    gateway.deploy(tmp_path)
    seen = []

    def pressed() -> bool:
        return metric(gateway, "windrose_model_pressed", model="loop") == 1

    def free() -> float:
        return metric(gateway, "windrose_permits_available", model="loop")

    with flooded(gateway, seen):
        wait_until(pressed, 30, "the model to be under pressure")
        wait_until(lambda: free() >= 5, 30, "the queue to become short")
    assert {status for status, _ in seen} == {200, 429}
    assert all((again is not None) == (status == 429) for status, again in seen)

    def rested() -> bool:
        time.sleep(0.2)
        return gateway.infer("loop", INPUTS).status == 200 and not pressed()

    wait_until(rested, 30, "the pressure to be gone")


# Of what clients asked for: tries at sites, and runs of engines beyond what was answered. A refusal is tried once more at
# most, and a client of a busy machine is answered by whichever of two is quicker.
TRIES, EXTRA = 1.5, 0.1


def test_a_fleet_that_is_asked_for_too_much_refuses_at_the_entry(tmp_path):
    """It does not send around what no site has room for."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "windrose.toml").write_text(MANIFEST)
    fleet = Fleet(tmp_path / "fleet", ["entry", "one", "two"])
    try:
        sites = [fleet.start(name) for name in ("one", "two")]
        for site in sites:
            site.deploy(folder)
        entry = fleet.start("entry")
        wait_until(lambda: entry.infer("loop", INPUTS).status == 200, 30, "an answer")
        seen = []

        def counted() -> tuple[float, float, int]:
            jobs = sum(metric(site, "windrose_graph_inferences", model="loop") for site in sites)
            return jobs, metric(entry, "windrose_site_attempts"), len(seen)

        with flooded(entry, seen):
            wait_until(lambda: sum(status != 200 for status, _ in seen) > 50, 30, "refusals")
            time.sleep(1)
            before = counted()
            time.sleep(4)
            jobs, attempts, asked = (late - early for late, early in zip(counted(), before, strict=True))
            answered = sum(status == 200 for status, _ in seen[before[2] : before[2] + asked])
        assert {status for status, _ in seen} <= {200, 429, 503}
        assert all((again is not None) == (status != 200) for status, again in seen)
        assert answered > 0 and asked > answered
        assert attempts < TRIES * asked, f"{attempts} tries for {asked} requests"
        # What is on its way when it is counted is in one of the counts only.
        assert jobs < (1 + EXTRA) * answered + CLIENTS, f"{jobs} jobs for {answered} answers"
        wait_until(lambda: all(entry.infer("loop", INPUTS).status == 200 for _ in range(5)), 30, "the flood to be over")
    finally:
        fleet.stop()
