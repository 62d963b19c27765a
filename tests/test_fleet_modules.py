"""Modules in a fleet: what one does itself is no site's fault, and what it was granted decides whether a request may run
twice."""

import http.client
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet import Fleet, answers, explained, metric
from granting import deploy, secret_page
from harness import wait_until

X = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]
# Longer than a hedge would wait, by far.
SLOW_S = 1.5
# Where tries are counted: a busy machine makes any site late.
UNHEDGED = {"windrose-hedge": "never"}


@pytest.fixture
def make_fleet(tmp_path):
    fleets = []

    def make(*names: str) -> Fleet:
        fleets.append(Fleet(tmp_path / "fleet", list(names)))
        return fleets[0]

    yield make
    for fleet in fleets:
        fleet.stop()


def granted_less(entry, model: str, sites: int) -> set[str]:
    """The sites that may not answer for a model since they grant it less than others, once so many are known."""

    def known():
        try:
            candidates = explained(entry, model)["candidates"]
        except AssertionError:
            return None
        return candidates if len(candidates) == sites else None

    candidates = wait_until(known, 30, f"{model} at {sites} sites", 0.1)
    return {candidate["site"] for candidate in candidates if "granted less" in candidate.get("refused", "")}


def test_what_a_module_does_itself_is_passed_on_and_is_no_sites_fault(make_fleet, tmp_path):
    fleet = make_fleet("entry", "one", "two")
    sites = [fleet.start(name) for name in ("one", "two")]
    for site in sites:
        deploy(site, tmp_path, "hostile", "hostile", [])
    entry = fleet.start("entry")
    granted_less(entry, "hostile", 2)
    for act, kind in (("trap", "guest_trapped"), ("fail", "guest_failed"), ("nothing", "guest_contract")):
        for _ in range(6):
            body = {"inputs": X, "parameters": {"act": act}}
            answer = answers(entry, "hostile", body, **UNHEDGED)
            assert (answer.status, answer.headers["windrose-error"]) == (502, kind), answer.body
            assert answer.headers["windrose-attempts"] == "1" and "windrose-origin" not in answer.headers
        arrived = sum(metric(site, "windrose_requests", model="hostile", kind=kind) for site in sites)
        assert arrived == 6, f"{kind} was tried again"
    assert metric(entry, "windrose_site_ejections") == 0 == metric(entry, "windrose_site_attempts", ended="failed")
    assert entry.infer("hostile", X, parameters={"act": "none"}).status == 200


def test_nor_is_what_it_does_after_the_head_of_its_answer(make_fleet, tmp_path):
    fleet = make_fleet("entry", "one", "two")
    sites = [fleet.start(name) for name in ("one", "two")]
    for site in sites:
        deploy(site, tmp_path, "hostile", "hostile-http", [])
    entry = fleet.start("entry")
    granted_less(entry, "hostile", 2)
    for _ in range(6):
        # The entry holds what is small: its client sees an error, and not the beginning of an answer.
        answer = entry.get("/models/hostile/trap-after-head", headers=UNHEDGED)
        assert (answer.status, answer.headers["windrose-error"]) == (502, "guest_failed"), answer.body
        assert answer.headers["windrose-attempts"] == "1"
        # What is large has begun at the client, and breaks off there.
        with pytest.raises(http.client.HTTPException):
            entry.get("/models/hostile/flood", headers=UNHEDGED)
    arrived = [metric(site, "windrose_requests", model="hostile", kind="guest_trapped") for site in sites]
    assert sum(arrived) == 6, arrived
    assert metric(entry, "windrose_site_ejections") == 0 == metric(entry, "windrose_site_attempts", ended="cut")
    assert entry.get("/models/hostile/").body == b"well"


@pytest.fixture
def page():
    """The address of a slow server that a module may be allowed to reach, and when requests came to it."""
    with secret_page(SLOW_S) as (port, arrived):
        yield f"127.0.0.1:{port}", arrived


def test_what_was_granted_the_network_is_sent_once(make_fleet, tmp_path, page):
    address, arrived = page
    fleet = make_fleet("entry", "one", "two", "bare")
    sites = {name: fleet.start(name, **{"ceiling.network": address}) for name in ("one", "two")}
    sites["bare"] = fleet.start("bare")
    for site in sites.values():
        deploy(site, tmp_path, "acts", "hostile-http", [address])
        deploy(site, tmp_path, "asks", "hostile-http", ["elsewhere.example"])
    entry = fleet.start("entry")
    # What it asks for and nobody grants takes nothing from it: it runs everywhere, and may run twice.
    assert granted_less(entry, "asks", 3) == set() and explained(entry, "asks")["repeatable"]
    assert entry.get("/models/asks/").body == b"well"
    # What it was granted at two sites it does there, and once.
    assert granted_less(entry, "acts", 3) == {"bare"}
    assert not explained(entry, "acts")["repeatable"]
    fetch = lambda: entry.get(f"/models/acts/fetch?{address}")  # noqa: E731
    answer = fetch()
    assert (answer.status, answer.body) == (200, b"secret") and answer.headers["windrose-site"] != "bare"
    assert len(arrived) == 1
    with ThreadPoolExecutor(1) as aside:
        answer = aside.submit(fetch)
        wait_until(lambda: len(arrived) == 2, 10, "the request to arrive")
        running = [name for name in ("one", "two") if metric(sites[name], "windrose_requests_in_flight", model="acts")]
        assert len(running) == 1
        sites[running[0]].stop(9)
        assert answer.result().status >= 500
    time.sleep(SLOW_S)
    assert len(arrived) == 2, "a request that had acted was sent again"
