"""What leaves memory beyond a budget, and comes back with the next request."""

import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT, Gateway, wait_until

sys.path.insert(0, str(ROOT / "benches"))

from contents import another_module  # noqa: E402
from many_models import IDLE, WIDTH, graph  # noqa: E402

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
        digest = control.upload(another_module(module, number))
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


def largest(gateway: Gateway, model: str):
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [0.5] * WIDTH}]
    return gateway.infer(model, inputs)


def test_two_hundred_models_of_one_graph_hold_its_weights_once(make_gateway, tmp_path):
    gateway = make_gateway()
    control = Control(gateway)
    graph(tmp_path / "wide.onnx", 32)
    content = (tmp_path / "wide.onnx").read_bytes()
    digest = control.upload(content)
    # How jobs wait and run together is each model's own.
    batches = {"batching": {"max_size": 4, "max_delay_us": 100}}
    ways = [{}, {"queue": 7}, {"queue_wait_ms": 50}, {"batching": "off"}, batches]
    manifests = [{"version": "1", "graphs": {"model": {"digest": digest} | way}} for way in ways]
    control.deploy("m0", manifests[0])
    expected = largest(gateway, "m0").json()["outputs"]
    before = gateway.resident()
    for number in range(1, 200):
        control.deploy(f"m{number}", manifests[number % len(ways)])
    for number in range(0, 200, 9):
        assert largest(gateway, f"m{number}").json()["outputs"] == expected
    assert control.metric("windrose_memory_bytes", "weights") == len(content)
    # What each may add, and 2 MiB for the product that each of some sessions has made; the weights again would be more.
    assert gateway.resident() - before < 199 * IDLE + (8 << 20) < len(content)
    counted = {model["name"]: model for model in gateway.get("/v2/models/stats").json()["model_stats"]}
    for number in range(200):
        own = counted[f"m{number}"]
        calls = (number % 9 == 0) + (number == 0)
        assert (own["inference_count"], own["execution_count"]) == (calls, calls), own
        assert sum(size["compute_infer"]["count"] for size in own["batch_stats"]) == calls
    for number, in_force in ((3, [1, 0]), (4, [4, 100])):
        batching = control.version(f"m{number}")["loaded"]["graphs"]["model"]["batching"]
        assert [batching["max_rows"], batching["max_delay_us"]] == in_force, batching


def test_who_names_the_engine_that_auto_means_shares_its_weights(make_gateway, tmp_path):
    gateway = make_gateway(engines__default="auto")
    control = Control(gateway)
    graph(tmp_path / "wide.onnx", 1)
    content = (tmp_path / "wide.onnx").read_bytes()
    digest = control.upload(content)
    control.deploy("m0", {"version": "1", "graphs": {"model": {"digest": digest}}})
    engine = control.version("m0")["loaded"]["graphs"]["model"]["engine"]
    control.deploy("m1", {"version": "1", "graphs": {"model": {"digest": digest, "engine": engine}}})
    assert control.metric("windrose_memory_bytes", "weights") == len(content)
    assert largest(gateway, "m0").json()["outputs"] == largest(gateway, "m1").json()["outputs"]


def test_weights_that_left_memory_answer_the_next_request_and_not_from_a_file_that_has_changed(make_gateway, tmp_path):
    gateway = make_gateway(memory__weights="1")
    control = Control(gateway)
    graph(tmp_path / "wide.onnx", 4)
    digest = control.upload((tmp_path / "wide.onnx").read_bytes())
    manifest = {"version": "1", "graphs": {"model": {"digest": digest}}}
    for name in ("m0", "m1"):
        control.deploy(name, manifest)
    away = lambda: control.metric("windrose_memory_bytes", "weights") == 0
    expected = largest(gateway, "m0").json()["outputs"]
    wait_until(away, 30, "idle weights to leave")
    assert not control.version("m1")["loaded"]["graphs"]["model"]["resident"]
    assert "weights evicted" in gateway.cli("inspect", "m1").stdout
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda turn: largest(gateway, f"m{turn % 2}"), range(40)):
            assert answer.json()["outputs"] == expected
    wait_until(away, 30, "idle weights to leave")
    (file,) = [path for path in (gateway.folder / "data").rglob(f"*{digest[-16:]}*") if path.is_file()]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    answer = largest(gateway, "m0")
    assert (answer.status, answer.headers["windrose-error"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    file.write_bytes(whole)
    assert largest(gateway, "m1").json()["outputs"] == expected
