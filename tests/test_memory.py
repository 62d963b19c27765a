"""What leaves memory beyond a budget, and comes back with the next request."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT, Gateway, wait_until

IRIS = ROOT / "examples" / "iris"
INPUT = (IRIS / "test-input.json").read_bytes()


class Control:
    """A gateway's control API, as the CLI uses it."""

    def __init__(self, gateway: Gateway):
        self.gateway = gateway
        token = (gateway.folder / "data" / "token").read_text().strip()
        self.headers = {"authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
        headers = self.headers | {"content-type": kind}
        answer = self.gateway.call(method, self.gateway.control_url + path, body, headers, seconds=300)
        assert answer.status < 300, (method, path, answer)
        return answer

    def upload(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.call("PUT", f"/v1/blobs/{digest}", content, "application/octet-stream")
        return digest

    def deploy(self, name: str, manifest: dict):
        self.call("PUT", f"/v1/models/{name}/versions/1", json.dumps(manifest | {"name": name}).encode())

    def version(self, name: str) -> dict:
        return self.call("GET", f"/v1/models/{name}/versions/1").json()

    def metric(self, name: str, kind: str) -> int:
        text = self.call("GET", "/metrics").body.decode()
        return int(re.search(rf'^{name}{{kind="{kind}"}} (\d+)$', text, re.MULTILINE)[1])


def other(module: bytes, number: int) -> bytes:
    """The same component with another digest: a custom section behind it says a number."""
    section = b"\x06number" + number.to_bytes(4, "little")
    return module + b"\x00" + bytes([len(section)]) + section


def answers(gateway: Gateway, model: str) -> list:
    answer = gateway.call("POST", f"/v2/models/{model}/infer", INPUT, {"content-type": "application/json"})
    assert answer.status == 200, answer
    return answer.json()["outputs"]


@pytest.fixture
def many(make_gateway):
    """Three models with a module each and one graph, on a gateway where no idle module stays in memory."""
    gateway = make_gateway(memory__modules="1")
    control = Control(gateway)
    module = (ROOT / "target" / "guests" / "iris.wasm").read_bytes()
    graph = control.upload((ROOT / "models" / "iris" / "model.onnx").read_bytes())
    names = [f"iris{number}" for number in range(3)]
    for number, name in enumerate(names):
        digest = control.upload(other(module, number))
        control.deploy(name, {"version": "1", "module": digest, "graphs": {"model": {"digest": graph}}})
    return gateway, control, names


def idle(control: Control):
    wait_until(lambda: control.metric("windrose_memory_bytes", "modules") == 0, 30, "every idle module to leave")


def test_a_module_that_left_memory_answers_its_next_request(many):
    gateway, control, names = many
    idle(control)
    assert not any(control.version(name)["loaded"]["module_resident"] for name in names)
    assert "evicted: the next call brings it back" in gateway.cli("inspect", names[0]).stdout
    expected = answers(gateway, names[0])
    with ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda turn: answers(gateway, names[turn % 3]), range(60)):
            assert outputs == expected
    idle(control)
    evictions, reloads = (control.metric(f"windrose_memory_{what}_total", "modules") for what in ("evictions", "reloads"))
    assert evictions > reloads >= 3


def test_a_module_that_the_cache_has_lost_is_not_ready_until_it_is_compiled_again(many):
    gateway, control, names = many
    idle(control)
    for entry in (gateway.folder / "data" / "cache").iterdir():
        entry.unlink()
    headers = {"content-type": "application/json"}
    answer = gateway.call("POST", f"/v2/models/{names[0]}/infer", INPUT, headers)
    assert (answer.status, answer.headers["windrose-error"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "1" and "cache" not in answer.json()["error"]
    again = lambda: gateway.call("POST", f"/v2/models/{names[0]}/infer", INPUT, headers).status
    wait_until(lambda: again() == 200, 120, "the module to be compiled again", pause=0.1)
    assert len(list((gateway.folder / "data" / "cache").iterdir())) == 1
