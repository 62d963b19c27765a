"""A model that is asked for more than it can do: what it admits is what it answers soon."""

import time
from concurrent.futures import ThreadPoolExecutor

from fleet import Fleet, answers, metric
from flooding import BODY, CLIENTS, MODEL, flooded, project
from harness import wait_until


def is_well(gateway) -> bool:
    return answers(gateway, MODEL, BODY).status == 200


def test_a_queue_that_stands_is_kept_short_until_the_pressure_is_gone(make_gateway, tmp_path):
    gateway = make_gateway("rten")
    gateway.deploy(project(tmp_path / "model"))
    seen = []

    def pressed() -> bool:
        return metric(gateway, "windrose_model_pressed", model=MODEL) == 1

    def free() -> float:
        return metric(gateway, "windrose_permits_available", model=MODEL)

    with flooded(gateway, seen):
        wait_until(pressed, 30, "the model to be under pressure")
        wait_until(lambda: free() >= 5, 30, "the queue to become short")
    assert {status for status, _ in seen} == {200, 429}
    assert all((again is not None) == (status == 429) for status, again in seen)

    def rested() -> bool:
        time.sleep(0.2)
        return is_well(gateway) and not pressed()

    wait_until(rested, 30, "the pressure to be gone")


def test_a_call_waits_for_a_place_that_is_free_in_a_moment(make_gateway, tmp_path):
    """With room for one, and runs of a millisecond, two clients that ask again and again are answered."""
    gateway = make_gateway("rten")
    folder = project(tmp_path / "model")
    manifest = folder / "windrose.toml"
    manifest.write_text(manifest.read_text().replace("concurrency = 8", "concurrency = 1"))
    gateway.deploy(folder)
    [times, x] = BODY["inputs"]
    body = {"inputs": [times | {"data": [500]}, x]}

    def ask(_) -> list[int]:
        return [answers(gateway, MODEL, body).status for _ in range(40)]

    with ThreadPoolExecutor(2) as clients:
        statuses = sum(clients.map(ask, range(2)), [])
    # A machine that pauses for a tenth of a second may have one refused.
    assert statuses.count(200) >= 78, statuses
    assert metric(gateway, "windrose_calls_waiting", model=MODEL) == 0


# Of what clients asked for: tries at sites, and runs of engines beyond what was answered. A refusal is tried once more at
# most, and a client of a busy machine is answered by whichever of two is quicker.
TRIES, EXTRA = 1.5, 0.1


def test_a_fleet_that_is_asked_for_too_much_refuses_at_the_entry(tmp_path):
    """It does not send around what no site has room for."""
    folder = project(tmp_path / "model")
    fleet = Fleet(tmp_path / "fleet", ["entry", "one", "two"])
    try:
        sites = [fleet.start(name) for name in ("one", "two")]
        for site in sites:
            site.deploy(folder)
        entry = fleet.start("entry")
        wait_until(lambda: is_well(entry), 30, "an answer")
        seen = []

        def counted() -> tuple[float, float, int]:
            jobs = sum(metric(site, "windrose_graph_inferences", model=MODEL) for site in sites)
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
        wait_until(lambda: all(is_well(entry) for _ in range(5)), 30, "the flood to be over")
    finally:
        fleet.stop()
