"""Every fault of the lab does what its name says, to clients that speak to the sick site itself."""

import numpy as np
import pytest
from lab import needs_network
from lab.faults import FAULTS, through
from lab.scene import FRONT_PORT, Sites

pytestmark = needs_network

# What clients of the sick site see while it is, as verdicts of the record; the faults that are not here come below.
SEEN = {1: {"connect", "reset"}, 2: {"patience", "connect"}, 4: {"status"}, 5: {"patience"}, 6: {"cut"}, 8: {"wrong"}}
# Longer than any pause of a busy machine, seconds.
PATIENCE = 1
BY_NUMBER = {fault.number: fault for fault in FAULTS}


class Direct(Sites):
    """The sites, and clients that know one of them only."""

    def target(self) -> str:
        return f"{self.network.address('near')}:{FRONT_PORT}"


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    with Direct(tmp_path_factory.mktemp("sites")) as sites:
        yield sites


def verdicts(run) -> tuple[set, set]:
    """What the requests got whose patience ended within the fault, and those that left a while after its end."""
    record = run.record
    during = (record.sent > run.began + 0.1) & (record.sent < run.ended - PATIENCE - 0.1)
    after = record.sent > run.ended + 0.5
    assert during.sum() > 10 and after.sum() > 10
    return set(record.verdict[during].tolist()), set(record.verdict[after].tolist())


@pytest.mark.parametrize("number", SEEN)
def test_a_sick_site_is_sick_and_well_again(sites, number):
    run = through(sites, BY_NUMBER[number], 0.3, PATIENCE + 0.7, 1.2, rate=50, patience_ms=PATIENCE * 1000)
    during, after = verdicts(run)
    expected = SEEN[number] | ({"right"} if number == 4 else set())
    assert during & SEEN[number] and during <= expected, run.record.problems()
    assert after == {"right"}, run.record.problems()
    if number == 4:
        failed = run.record.verdict == "status"
        assert set(run.record.status[failed].tolist()) == {500}
        sent = ((run.record.sent > run.began) & (run.record.sent < run.ended)).sum()
        assert sent * 0.35 < failed.sum() < sent * 0.65, "every second answer"


def test_late_answers_are_late_by_as_much_as_was_said(sites):
    run = through(sites, BY_NUMBER[3], 0.3, PATIENCE + 0.7, 1.2, rate=50, patience_ms=5000)
    assert verdicts(run) == ({"right"}, {"right"}), run.record.problems()
    during = (run.record.sent > run.began + 0.1) & (run.record.sent < run.ended - 0.6)
    assert run.record.ms[during].min() > 500
    assert np.median(run.record.ms[run.record.sent > run.ended + 0.5]) < 500


def test_an_overloaded_site_answers_late_and_rightly(sites):
    run = through(sites, BY_NUMBER[12], 0.3, 1.2, 1.2, rate=50, patience_ms=10_000)
    assert set(run.record.verdict.tolist()) == {"right"}, run.record.problems()
    during = (run.record.sent > run.began) & (run.record.sent < run.ended)
    assert run.record.ms[during].max() > 50, "it has a tenth of its time, in slices of ten milliseconds"


def test_a_rolling_restart_leaves_every_site_running(sites):
    before = {name: gateway.process.pid for name, gateway in sites.gateways.items()}
    through(sites, BY_NUMBER[13], 0.1, 0.5, 0.3, rate=50, patience_ms=1000)
    assert all(gateway.process.pid != before[name] for name, gateway in sites.gateways.items())
    assert all(gateway.is_ready() for gateway in sites.gateways.values())
