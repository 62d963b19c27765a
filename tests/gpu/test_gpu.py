"""Every example on the GPU against the CPU: `make test-gpu`. Says so where there is no GPU; where there is one, a library
that cannot use it is a failure.

The wheel `onnxruntime` is built for the CPU. Name a library of 1.24 or newer that has the CUDA provider with
WINDROSE_ENGINES_ONNXRUNTIME=/path/to/libonnxruntime.so (PyPI `onnxruntime-gpu` has one, beside its providers).
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, Gateway
from questions import PAGES, examples, inferences
from sending import infer

VARIABLE = "WINDROSE_ENGINES_ONNXRUNTIME"
LIBRARY = os.environ.get(VARIABLE)
# How far floats may be apart: the two add up in different orders.
RELATIVE, ABSOLUTE = 1e-3, 1e-4
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def gpu() -> str | None:
    """The name of the first GPU, where a driver shows one."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def lacking() -> str | None:
    """Why the library cannot use a GPU, where that can be told."""
    if not LIBRARY:
        return f"{VARIABLE} names no ONNX Runtime library with the CUDA provider"
    if not Path(LIBRARY).is_file():
        return f"{VARIABLE}: there is no file {LIBRARY}"
    if not Path(LIBRARY).with_name("libonnxruntime_providers_cuda.so").is_file():
        return f"{VARIABLE}: beside {LIBRARY} there is no libonnxruntime_providers_cuda.so"
    return None


def missing() -> str:
    """Everything that is missing where there is no GPU."""
    return "; ".join(filter(None, ["no GPU here (nvidia-smi shows none): nothing was compared", lacking()]))


GPU = gpu()
pytestmark = pytest.mark.skipif(GPU is None, reason=missing())


def on_device(example: str, device: str, folder):
    """A copy of an example with all of its graphs on a device; its self-test, which is the CPU's, is left out."""
    made = folder / f"{example}-{device}"
    shutil.copytree(ROOT / "examples" / example, made)
    manifest = (made / "windrose.toml").read_text().partition("\n[test]")[0].replace('"../../', f'"{ROOT}/')
    manifest = re.sub(r"^name = .*", f'name = "{made.name}"', manifest, flags=re.MULTILINE)
    manifest = re.sub(r'^module = "', f'module = "{ROOT}/target/guests/', manifest, flags=re.MULTILINE)
    there = f'\\1\nengine = "onnxruntime"\ndevice = "{device}"'
    manifest = re.sub(r"^(\[graphs\.[^].]+\])$", there, manifest, flags=re.MULTILINE)
    (made / "windrose.toml").write_text(manifest)
    return made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    assert lacking() is None, f"there is a GPU ({GPU}), but {lacking()}"
    folder = tmp_path_factory.mktemp("gpu")
    gateway = Gateway(folder, "onnxruntime", {"engines.onnxruntime": LIBRARY}).start()
    yield gateway
    gateway.stop()


def ask(gateway, example: str, model: str) -> dict:
    """What a model says: its outputs, or the text of a page and the numbers in it."""
    if example not in PAGES:
        return infer(gateway, model, **{name: value for name, _, value in inferences()[example]})
    page = PAGES[example]
    answer = gateway.call(page.method, f"/models/{model}{page.path}", page.body)
    assert answer.status == 200, answer
    numbers = np.array([float(number) for number in NUMBER.findall(answer.body)])
    return {"text": np.array(NUMBER.sub(b"#", answer.body), object), "numbers": numbers}


def assert_runs_on(gateway, model: str, device: str) -> None:
    """What the gateway says of each graph's provider and nodes, to the operator and to clients."""
    told = json.loads(gateway.cli("inspect", model, "--json").stdout)["loaded"]["graphs"]
    assert told
    for name, graph in told.items():
        if device == "cpu":
            assert graph["provider"] == "CPU" and "nodes" not in graph, (name, graph)
        else:
            assert graph["provider"] == "CUDA" and graph["nodes"]["CUDA"] >= 1, (name, graph)
            assert set(graph["nodes"]) <= {"CUDA", "CPU"}, (name, graph)
    metadata = json.loads(gateway.get(f"/v2/models/{model}").body)["windrose"]["graphs"]
    assert {g["name"]: (g["provider"], g.get("nodes")) for g in metadata} == {
        name: (graph["provider"], graph.get("nodes")) for name, graph in told.items()
    }


def assert_same(cpu: dict, cuda: dict) -> None:
    assert cpu and cpu.keys() == cuda.keys()
    for name, expected in cpu.items():
        assert (cuda[name].dtype, cuda[name].shape) == (expected.dtype, expected.shape), name
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(cuda[name], expected, RELATIVE, ABSOLUTE, err_msg=name)
        else:
            assert (cuda[name] == expected).all(), name


@pytest.mark.parametrize("example", examples(part="[graphs."))
def test_the_gpu_answers_what_the_cpu_answers(gateway, tmp_path, example):
    for device in ("cpu", "cuda"):
        gateway.deploy(on_device(example, device, tmp_path))
        assert_runs_on(gateway, f"{example}-{device}", device)
    assert_same(ask(gateway, example, f"{example}-cpu"), ask(gateway, example, f"{example}-cuda"))


def test_a_graph_without_a_module(gateway):
    """The sixth example: each file that is served as it is, through the pass-through module."""
    rows = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    answers = []
    for device in ("cpu", "cuda"):
        folder = gateway.folder / f"bare-{device}"
        folder.mkdir()
        (folder / "windrose.toml").write_text(
            f'name = "bare-{device}"\n[graphs.model]\nfile = "{ROOT}/models/tiny/model.onnx"\n'
            f'engine = "onnxruntime"\ndevice = "{device}"\n'
        )
        gateway.deploy(folder)
        assert_runs_on(gateway, folder.name, device)
        answers.append(infer(gateway, f"bare-{device}", x=rows))
    assert_same(*answers)


def test_a_graph_that_would_run_on_the_cpu_is_refused(gateway, tmp_path):
    """No CUDA kernel takes strings: the library gives all of this graph to the CPU, and loads it."""
    (tmp_path / "windrose.toml").write_text(
        f'name = "strings"\n[graphs.model]\nfile = "{ROOT}/models/test/strings_upper.onnx"\n'
        'engine = "onnxruntime"\ndevice = "cuda"\n'
    )
    refused = gateway.cli("deploy", tmp_path, check=False)
    assert refused.returncode != 0
    assert "takes none of this graph's nodes" in refused.stdout + refused.stderr
    assert gateway.get("/v2/models/strings").status == 404
