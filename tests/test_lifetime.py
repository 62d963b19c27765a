"""A short life of many deployments under load. The long one is benches/lifetime.py."""

import sys

import numpy as np
import pytest
from harness import ROOT

sys.path.insert(0, str(ROOT / "benches"))

from lifetime import Result, run  # noqa: E402


def test_a_hundred_cycles_fail_no_request_and_leave_nothing(make_gateway):
    settings = {"log__filter": "warn", "storage__keep": "0s", "storage__revisions": "50"}
    gateway, still = make_gateway(**settings), make_gateway(**settings)
    result = run(gateway, still, ROOT / "examples" / "iris", cycles=96, every=8, say=lambda *_, **__: None)
    assert not result.failures, result.failures[:3]
    assert result.answered > 200
    half = len(result.rows) // 2
    for name, room in (("fds", 8), ("threads", 8), ("disk_kib", 64), ("rss_mib", 24)):
        values = result.column(name)
        # Early samples have seen every content once; later ones can hold no more.
        assert values[half:].max() <= values[:half].max() + room, (name, values.tolist())


@pytest.mark.parametrize(("growth", "seen"), [(0.0, False), (5.0, True)])
def test_a_line_is_seen_in_noise_and_noise_is_no_line(growth, seen):
    random = np.random.default_rng(7)
    noise = random.normal(0, 3, 400)
    rows = [(i * 25, *(100 + growth * i * 25 / 1000 + n for n in [noise[i]] * 8)) for i in range(1, 400)]
    assert Result(rows=rows).grows("rss_mib", after=1_000) is seen
