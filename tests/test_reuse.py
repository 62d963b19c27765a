"""Instances that answer more than one request, through the gateway: the manifest asks, the operator's ceiling holds, and
`inspect` says what is in force."""

import json

import pytest
from harness import ROOT, Gateway

MANIFEST = """
name = "{name}"
version = "{version}"
module = "{guests}/hostile.wasm"
[graphs.model]
file = "{graphs}/identity_fp32.onnx"
[limits]
{limits}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("reuse"), "rten", {"ceiling.reuse": "3"}).start()
    yield gateway
    gateway.stop()


def deploy(gateway, folder, name: str, limits: str, version: str = "1"):
    text = MANIFEST.format(name=name, version=version, guests=ROOT / "target" / "guests",
                           graphs=ROOT / "models" / "test", limits=limits)
    folder = folder / f"{name}-{version}"
    folder.mkdir()
    (folder / "windrose.toml").write_text(text)
    gateway.deploy(folder)


def answers(gateway, name: str, requests: int) -> list[float]:
    """How often the instance that answers was asked, for so many requests."""
    x = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    bodies = [gateway.infer(name, [x], parameters={"act": "count"}).json() for _ in range(requests)]
    return [body["outputs"][0]["data"][0] for body in bodies]


def test_an_instance_answers_as_often_as_manifest_and_ceiling_let_it(gateway, tmp_path):
    deploy(gateway, tmp_path, "fresh", "")
    deploy(gateway, tmp_path, "twice", "reuse = 2")
    deploy(gateway, tmp_path, "often", "reuse = 100")
    assert answers(gateway, "fresh", 3) == [1, 1, 1]
    assert answers(gateway, "twice", 5) == [1, 2, 1, 2, 1]
    assert answers(gateway, "often", 5) == [1, 2, 3, 1, 2]
    limits = json.loads(gateway.cli("inspect", "often", "--json").stdout)["loaded"]["limits"]
    assert (limits["asked"]["reuse"], limits["in_force"]["reuse"]) == (100, 3)
    assert "each answers up to 3 requests of one tenant" in gateway.cli("inspect", "often").stdout
    assert "a fresh one for each request" in gateway.cli("inspect", "fresh").stdout


def test_another_version_has_instances_of_its_own(gateway, tmp_path):
    deploy(gateway, tmp_path, "changing", "reuse = 3")
    assert answers(gateway, "changing", 2) == [1, 2]
    deploy(gateway, tmp_path, "changing", "reuse = 3", version="2")
    assert answers(gateway, "changing", 1) == [1]
    deploy(gateway, tmp_path, "steady", "reuse = 2")
    assert answers(gateway, "steady", 2) == [1, 2]
