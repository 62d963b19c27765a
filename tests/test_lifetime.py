"""A short life of many deployments under load. The long one is benches/lifetime.py."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT

sys.path.insert(0, str(ROOT / "benches"))

from lifetime import FP32, Result, Subject, run  # noqa: E402


@pytest.fixture
def module(tmp_path) -> Path:
    """A module that compiles soon, with its graph: each of its contents is compiled whenever it is deployed again."""
    folder = tmp_path / "module"
    folder.mkdir()
    file = ROOT / "gateway" / "sandbox" / "passthrough" / "passthrough.wasm"
    lines = ['name = "module"', f'module = "{file}"', "[graphs.model]", f'file = "{ROOT / "models/tiny/model.onnx"}"']
    (folder / "windrose.toml").write_text("\n".join(lines))
    (folder / "test-input.json").write_text(json.dumps({"inputs": [FP32]}))
    return folder


@pytest.mark.parametrize(("isolation", "cycles", "every"), [("process", 64, 8), ("child", 24, 4)])
def test_cycles_fail_no_request_and_leave_nothing(make_gateway, module, isolation, cycles, every):
    settings = {"log__filter": "warn", "storage__keep": "0s", "storage__revisions": "30"}
    settings |= {"engines__isolation": isolation}
    gateway, still = make_gateway(**settings), make_gateway(**settings)
    result = run(gateway, still, module, cycles, every, say=lambda *_, **__: None)
    assert not result.failures, result.failures[:3]
    assert not result.stayed, result.stayed
    assert result.answered > 200
    # A process for each graph: those of two models that live on, and of two that go through the cycles.
    assert set(result.column("children")) == ({0} if isolation == "process" else {4})
    half = len(result.rows) // 2
    rooms = {"fds": 8, "threads": 8, "disk_kib": 96, "rss_mib": 24, "weights_kib": 0, "modules_kib": 0}
    for name, room in rooms.items():
        values = result.column(name)
        # Early samples have seen every content once; later ones can hold no more.
        assert values[half:].max() <= values[:half].max() + room, (name, values.tolist())
    # Calls that wait for changes take many times as long as beside a gateway that has none. Noise meets both in turn,
    # and half of the windows would have to suffer from it in one of them alone. A window's p99 is that of a few hundred
    # calls, one moment of some other process: benches/lifetime.py judges it over hundreds of windows.
    assert np.nanmedian(result.column("p50_ratio")) < 4, result.column("p50_ratio").tolist()


def test_a_cycle_that_loads_nothing_anew_is_seen(make_gateway, module, monkeypatch):
    """As it would be if both versions had the same content."""
    gateway, still = make_gateway(log__filter="warn"), make_gateway(log__filter="warn")
    put = Subject.put
    monkeypatch.setattr(Subject, "put", lambda subject, *_: put(subject, *subject.contents[0]))
    result = run(gateway, still, module, cycles=2, every=2, say=lambda *_, **__: None)
    assert not result.failures, result.failures[:3]
    assert len(result.stayed) == 2 and all("loaded nothing" in said for said in result.stayed), result.stayed


@pytest.mark.parametrize(("growth", "seen"), [(0.0, False), (5.0, True)])
def test_a_line_is_seen_in_noise_and_noise_is_no_line(growth, seen):
    random = np.random.default_rng(7)
    noise = random.normal(0, 3, 400)
    others = len(Result.columns) - 1
    rows = [(i * 25, *(100 + growth * i * 25 / 1000 + n for n in [noise[i]] * others)) for i in range(1, 400)]
    assert Result(rows=rows).grows("rss_mib", after=1_000) is seen
