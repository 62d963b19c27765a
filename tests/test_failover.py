"""No client notices: four sites as one fleet, a load of 500 requests a second, and every fault of the lab in turn.

Only outcomes are judged here; `make bench-failover` reports times.
"""

import json
import time

import pytest
from fleet import metric
from harness import Answer, wait_until
from lab import needs_network
from lab.capture import Capture
from lab.faults import FAULTS, WRONG_MS, through
from lab.scene import JURISDICTIONS, NAMES, Fleet, question

pytestmark = needs_network


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.until_served_by("near")
        yield fleet


# What engines may run beyond what clients asked for, and how often a run is repeated before it has to: a machine that
# stalls makes every answer late, so that each is raced. The processes of these faults end, and their counts with them.
EXTRA, TRIES = 0.05, 3
UNCOUNTED = {1, 13}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}-{fault.name.replace(' ', '-')}")
def test_no_client_notices(fleet, fault):
    extra_work_is_small(fleet, lambda: noticed_by_none(fleet, fault), fault.number not in UNCOUNTED)


def noticed_by_none(fleet, fault) -> int:
    """Goes through a fault once; returns how many requests there were."""
    found_wrong = [ejections(entry, "wrong") for entry in fleet.entries]
    run = through(fleet, fault, 1, 3, 1.5)
    assert run.before.sites.get("near", 0) > 0, run.before
    assert run.whole.failed == 0, fleet.story(run.record)
    if fault.number == 8:
        assert run.wrong_for() <= WRONG_MS, fleet.story(run.record)
        for entry, before in zip(fleet.entries, found_wrong, strict=True):
            assert ejections(entry, "wrong") > before, "an entry has not found out"
            assert "its answer to a golden input was wrong" in entry.log.read_text(), entry.tail()
    else:
        assert run.whole.wrong == 0, fleet.story(run.record)
    return len(run.record)


def test_a_quiet_fleet_runs_little_more_than_clients_ask_for(fleet):
    def quiet() -> int:
        record = fleet.load(2, "quiet").finish()
        assert (record.verdict == "right").all(), fleet.story(record)
        return len(record)

    extra_work_is_small(fleet, quiet, True)


def extra_work_is_small(fleet, load, counted: bool) -> None:
    """Runs a load, which returns how many requests were answered, and counts at the engines what it took."""
    shares = []
    while not shares or (shares[-1] >= EXTRA and len(shares) < TRIES):
        fleet.until_served_by("near")
        before = executed(fleet) if counted else 0
        requests = load()
        if not counted:
            return
        # What was on its way when its client had another answer has run by now, or never will.
        wait_until(lambda: in_flight(fleet) == 0, 10, "the sites to be idle")
        shares.append((executed(fleet) - before) / requests - 1)
        # A golden probe counts when it arrives, and its run a moment later.
        assert shares[-1] > -0.01, "engines ran fewer jobs than clients were answered"
    assert shares[-1] < EXTRA, f"engines ran more than clients asked for, by these shares: {shares}"


def ejections(entry, why: str) -> float:
    return metric(entry, "windrose_site_ejections", site="near", why=why)


def executed(fleet) -> float:
    """Jobs that the sites' engines have run for clients: golden probes are told apart by those who get them."""
    gateways = fleet.gateways.values()
    jobs = sum(metric(gateway, "windrose_graph_inferences", model="add") for gateway in gateways)
    return jobs - sum(metric(gateway, "windrose_site_probed", probe="golden") for gateway in gateways)


def in_flight(fleet) -> float:
    return sum(metric(gateway, "windrose_requests_in_flight", model="add") for gateway in fleet.gateways.values())


def test_clients_of_a_dead_entry_lose_only_what_was_in_flight_there(fleet):
    fleet.until_served_by("near")
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
    assert set(record.entry[lost].tolist()) <= {f"{dead.address}:8000"}, fleet.story(record)
    # What left after the end of the process went to the other one; the clocks are the same.
    assert not (record.sent[lost] > killed + 0.05).any(), fleet.story(record)
    assert record.between(killed + 0.05).wrong == 0


# The longest TLS record of what gateways tell each other is shorter, and the first piece of a large body is longer.
TOLD = 4096


def attempts(fleet, site: str) -> float:
    """Tries at a site, of both entries."""
    return sum(metric(entry, "windrose_site_attempts", site=site) for entry in fleet.entries)


def test_no_byte_of_a_bound_request_reaches_a_forbidden_site(fleet, tmp_path):
    """Sites that the law forbids get nothing, whatever is sick; the kernel's own capture of their links says so."""
    fleet.until_served_by("near")
    captures = {name: Capture(fleet.network.spaces[name], tmp_path / f"{name}.pcap") for name in NAMES}
    body = json.dumps({"inputs": question(20_000)}).encode()
    headers = {"windrose-allow": "eu,ch", "content-type": "application/json"}

    def ask(entry) -> Answer:
        return entry.call("POST", "/v2/models/add/infer", body, headers)

    forbidden = [name for name in NAMES if JURISDICTIONS[name] == "us"]
    before = {name: attempts(fleet, name) for name in forbidden}
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
    assert {name: attempts(fleet, name) for name in forbidden} == before
    for name, capture in captures.items():
        bytes_sent = sum(capture.finish().payload.values())
        longest = max(capture.records(fleet.network.spaces[name].addresses[0]))
        if name in forbidden:
            assert bytes_sent < len(body), f"{bytes_sent} bytes to and from {name}"
            assert longest < TOLD, f"a record of {longest} bytes to {name}"
        else:
            assert bytes_sent > len(body), f"{name} answered, and the capture saw {bytes_sent} bytes"
            assert longest > TOLD, f"{name} answered, and no record to it was longer than {longest} bytes"
