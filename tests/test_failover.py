"""No client notices: four sites as one fleet, a load of 500 requests a second, and every fault of the lab in turn.

Only outcomes are judged here; `make bench-failover` reports times.
"""

import json
import time

import pytest
from harness import Answer, wait_until
from lab import needs_network
from lab.capture import Capture
from lab.faults import FAULTS, through
from lab.scene import JURISDICTIONS, NAMES, Fleet

pytestmark = needs_network


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        serving(fleet, "near")
        yield fleet


def serving(fleet, site: str, seconds: float = 30) -> None:
    """Waits until both entries have their answers from a site, again and again."""

    def asked(entry) -> bool:
        answers = [entry.infer("add", question()) for _ in range(10)]
        return all(answer.headers.get("windrose-site") == site for answer in answers)

    for entry in fleet.entries:
        wait_until(lambda entry=entry: asked(entry), seconds, f"{site} to serve", 0.1)


def question(values: int = 2) -> list[dict]:
    return [{"name": name, "datatype": "FP32", "shape": [1, values], "data": [1.5] * values} for name in ("a", "b")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}-{fault.name.replace(' ', '-')}")
def test_no_client_notices(fleet, fault):
    serving(fleet, "near")
    run = through(fleet, fault, 1, 3, 1.5)
    assert run.before.sites.get("near", 0) > 0, run.before
    assert run.whole.failed == 0, (str(run.whole), run.record.problems())
    if fault.number == 8:
        assert run.wrong_for() <= 2000, (str(run.whole), run.record.problems())
    else:
        assert run.whole.wrong == 0, (str(run.whole), run.record.problems())


def test_clients_of_a_dead_entry_lose_only_what_was_in_flight_there(fleet):
    serving(fleet, "near")
    dead = fleet.entries[0]
    load = fleet.load(4, "entry")
    try:
        load.until(1.5)
        dead.kill()
        killed = time.monotonic()
        record = load.finish()
    finally:
        dead.start()
    lost = record.verdict != "right"
    assert set(record.entry[lost].tolist()) <= {f"{dead.address}:8000"}, record.problems()
    # What left after the end of the process went to the other one; the clocks are the same.
    assert not (record.sent[lost] > killed + 0.05).any(), record.problems()
    assert record.between(killed + 0.05).wrong == 0


def test_no_byte_of_a_bound_request_reaches_a_forbidden_site(fleet, tmp_path):
    """Sites that the law forbids get nothing, whatever is sick; the kernel's own capture of their links says so."""
    serving(fleet, "near")
    captures = {name: Capture(fleet.network.spaces[name], tmp_path / f"{name}.pcap") for name in NAMES}
    body = json.dumps({"inputs": question(20_000)}).encode()
    headers = {"windrose-allow": "eu,ch", "content-type": "application/json"}

    def ask(entry) -> Answer:
        return entry.call("POST", "/v2/models/add/infer", body, headers)

    sites = set()
    try:
        for near_is_up in (1, 0):
            fleet.network.set_site("near", up=near_is_up)
            for _ in range(5):
                answers = [ask(entry) for entry in fleet.entries]
                assert [answer.status for answer in answers] == [200, 200], answers[0].body[:200]
                sites.update(answer.headers["windrose-site"] for answer in answers)
        fleet.network.set_site("mid", up=0)
        refused = ask(fleet.entries[0])
        assert refused.status >= 500, refused.body[:200]
    finally:
        for name in ("near", "mid"):
            fleet.network.set_site(name, up=1)
    assert sites == {"near", "mid"}
    for name, capture in captures.items():
        bytes_sent = sum(capture.finish().payload.values())
        if JURISDICTIONS[name] == "us":
            # What sites tell each other is small: all of it is less than one of these bodies.
            assert bytes_sent < len(body), f"{bytes_sent} bytes to and from {name}"
        else:
            assert bytes_sent > len(body), f"{name} answered, and the capture saw {bytes_sent} bytes"
