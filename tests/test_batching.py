"""Batches that only show themselves from outside: texts of different lengths, and who waits for whom."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from harness import ROOT

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
