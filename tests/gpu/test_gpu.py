"""Every example on the GPU against the CPU: `make test-gpu`. Says so where there is no GPU.

The wheel `onnxruntime` is built for the CPU. Name a library that has the CUDA provider with
WINDROSE_ENGINES_ONNXRUNTIME=/path/to/libonnxruntime.so (PyPI `onnxruntime-gpu` has one, beside its providers).
"""

import json
import os
import shutil
import subprocess
import tomllib

import numpy as np
import pytest
from harness import ROOT, Gateway

EXAMPLES = ["iris", "magika", "vad", "embed", "ocr"]
LIBRARY = os.environ.get("WINDROSE_ENGINES_ONNXRUNTIME")


def gpu() -> str | None:
    """The name of the first GPU, where a driver shows one."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


pytestmark = [
    pytest.mark.skipif(gpu() is None, reason="no GPU here: nothing was compared"),
    pytest.mark.skipif(LIBRARY is None, reason="WINDROSE_ENGINES_ONNXRUNTIME names no library with the CUDA provider"),
]


def on_device(example: str, device: str, folder):
    """A copy of an example's manifest with all of its graphs on a device; its self-test is left out."""
    source = ROOT / "examples" / example
    manifest = tomllib.loads((source / "windrose.toml").read_text())
    lines = [f"name = {json.dumps(f'{example}-{device}')}", 'version = "1"']
    lines.append(f"module = {json.dumps(str(ROOT / 'target' / 'guests' / manifest['module']))}")
    for name, graph in manifest["graphs"].items():
        path = json.dumps(str((source / graph["file"]).resolve()))
        lines += [f"[graphs.{name}]", f"file = {path}", 'engine = "onnxruntime"', f'device = "{device}"']
    if manifest.get("assets"):
        lines.append("[assets]")
        lines += [f"{json.dumps(k)} = {json.dumps(str((source / v).resolve()))}" for k, v in manifest["assets"].items()]
    made = folder / f"{example}-{device}"
    made.mkdir()
    (made / "windrose.toml").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    gateway = Gateway(folder, "onnxruntime", {"engines.onnxruntime": LIBRARY}).start()
    yield gateway
    gateway.stop()


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_gpu_answers_what_the_cpu_answers(gateway, tmp_path, example):
    body = json.loads((ROOT / "examples" / example / "test-input.json").read_text())
    answers = []
    for device in ("cpu", "cuda"):
        gateway.deploy(on_device(example, device, tmp_path))
        answers.append(gateway.post_json(f"/v2/models/{example}-{device}/infer", body).json()["outputs"])
    assert "CUDA" in gateway.get(f"/v2/models/{example}-cuda").body.decode()
    for cpu, cuda in zip(*answers):
        assert (cpu["name"], cpu["shape"]) == (cuda["name"], cuda["shape"])
        if cpu["datatype"].startswith("FP"):
            np.testing.assert_allclose(cuda["data"], cpu["data"], rtol=1e-3, atol=1e-4)
        else:
            assert cuda["data"] == cpu["data"]
