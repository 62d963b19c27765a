"""Batches that only show themselves from outside: texts of different lengths, and who waits for whom."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fleet import metric
from harness import ROOT, wait_until

TEXTS = [
    "wind",
    "the wind rose shows where the wind comes from",
    "a compass",
    "sailors of the Mediterranean gave each of the winds a name, and drew them as a rose upon their charts",
    "north",
    "a rose is a rose",
    "the sea is calm tonight, the tide is full, the moon lies fair upon the straits",
    "what is the capital of France?",
]


def embedding(gateway, text: str) -> np.ndarray:
    answer = gateway.infer("embed", [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}])
    assert answer.status == 200, answer.body
    return np.array(answer.json()["outputs"][0]["data"], np.float32)


@pytest.mark.parametrize("engine", ["rten", "onnxruntime"])
def test_texts_of_different_lengths_share_a_run(make_gateway, tmp_path, engine):
    """Each text gives within 1e-4 what it gave alone, and the engine ran less often than it was asked."""
    gateway = make_gateway(engine)
    manifest = (ROOT / "examples" / "embed" / "windrose.toml").read_text()
    # Wait long enough for company on any machine, whatever pays on this one.
    settings = "batching = { max_size = 8, max_delay_us = 300000 }\n\n# Texts"
    assert manifest.count("# Texts") == 1
    manifest = manifest.replace("# Texts", settings).replace("../../target", str(ROOT / "target"))
    (tmp_path / "windrose.toml").write_text(manifest)
    for name in ("test-input.json", "test-output.json"):
        (tmp_path / name).write_bytes((ROOT / "examples" / "embed" / name).read_bytes())
    (tmp_path / "embed.wasm").write_bytes((ROOT / "target" / "guests" / "embed.wasm").read_bytes())
    gateway.deploy(tmp_path)
    batching = gateway.cli("inspect", "embed", "--json")
    assert '"padded": true' in batching.stdout, batching.stdout

    def counts():
        (statistics,) = gateway.get("/v2/models/embed/stats").json()["model_stats"]
        return statistics["inference_count"], statistics["execution_count"]

    alone = [embedding(gateway, text) for text in TEXTS]
    before = counts()
    assert before[1] >= len(TEXTS)
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        together = list(pool.map(lambda text: embedding(gateway, text), TEXTS))
    after = counts()
    assert after[0] - before[0] == len(TEXTS)
    assert after[1] - before[1] < len(TEXTS), "no two of them ran together"
    for text, own, other in zip(TEXTS, alone, together, strict=True):
        assert np.abs(own - other).max() < 1e-4, text


def test_guests_that_wait_for_the_engine_hold_no_thread(make_gateway, tmp_path):
    """A hundred guests wait in `compute` of a gateway with fewer threads, and then share one run with those that fill it."""
    gateway = make_gateway()
    waiting, most = 100, 128
    manifest = f"""
name = "rows"
[graphs.model]
file = "{ROOT / 'models' / 'test' / 'rows.onnx'}"
queue = {most}
batching = {{ max_size = {most}, max_delay_us = 10000000 }}
[limits]
concurrency = {most}
"""
    (tmp_path / "windrose.toml").write_text(manifest)
    gateway.deploy(tmp_path)

    def permits() -> float:
        return metric(gateway, "windrose_permits_available", model="rows")

    def ask(number: int):
        inputs = [
            {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4},
            {"name": "ids", "shape": [1], "datatype": "INT64", "data": [0]},
        ]
        return gateway.infer("rows", inputs).json()["outputs"][0]["data"]

    with ThreadPoolExecutor(most) as pool:
        asked = [pool.submit(ask, number) for number in range(waiting)]
        wait_until(lambda: permits() == most - waiting, 30, "a hundred guests")
        threads = len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir()))
        asked += [pool.submit(ask, number) for number in range(waiting, most)]
        answers = [answer.result() for answer in asked]
    assert answers == [[number, number + 10, number + 20, number + 30] for number in range(most)]
    (counted,) = gateway.get("/v2/models/rows/stats").json()["model_stats"]
    assert [size["batch_size"] for size in counted["batch_stats"]] == [most], "not all of them waited"
    assert threads < waiting
