"""Starting, deploying under load, stopping and dying."""

import hashlib
import json
import os
import signal
import socket
import stat
import threading
import time

import numpy as np
import pytest
from fleet import metric
from harness import ROOT, STOP_SECONDS, wait_until
from sending import infer

GRAPHS = ROOT / "models" / "test"
TINY = GRAPHS.parent / "tiny" / "model.onnx"
X = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]


def loop(gateway, times: int):
    """A request that keeps the engine busy: so many rounds of a Loop."""
    inputs = [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [times]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
    return gateway.infer("loop", inputs, seconds=120)


def rounds_for(gateway, seconds: float) -> int:
    """How many rounds of the Loop take about so long here."""
    times = 1000
    while True:
        began = time.monotonic()
        assert loop(gateway, times).status == 200
        took = time.monotonic() - began
        if took > 0.2:
            return round(times * seconds / took)
        times *= 4


class Load(threading.Thread):
    """Sends requests one after the other until it is told to stop, and keeps every outcome."""

    def __init__(self, gateway, model: str):
        super().__init__(daemon=True)
        self.gateway, self.model = gateway, model
        self.stopping = threading.Event()
        self.outcomes = []

    def run(self):
        while not self.stopping.is_set():
            try:
                answer = self.gateway.infer(self.model, X)
                self.outcomes.append((answer.status, answer.body))
            except OSError as error:
                self.outcomes.append((0, repr(error).encode()))

    def finish(self) -> list[tuple[int, bytes]]:
        self.stopping.set()
        self.join(60)
        return self.outcomes


def test_sigterm_lets_requests_in_flight_finish(make_gateway):
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "loop.onnx", "--name", "loop")
    times, answers = rounds_for(gateway, 2.0), []
    slow = threading.Thread(target=lambda: answers.append(loop(gateway, times)), daemon=True)
    slow.start()
    time.sleep(0.5)
    process = gateway.process
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None, "the gateway ended with a request in flight"
    with pytest.raises(OSError):
        gateway.get("/v2/health/live", seconds=2)
    slow.join(STOP_SECONDS)
    assert [answer.status for answer in answers] == [200]
    assert process.wait(STOP_SECONDS) == 0


def test_what_is_deployed_survives_a_restart_and_kill_9(make_gateway):
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "kept")
    gateway.deploy(GRAPHS / "add_fp32.onnx", "--name", "gone")
    gateway.cli("delete", "gone", "--yes")
    before = gateway.infer("kept", X).json()
    for how in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        gateway.stop(how)
        gateway.start()
        assert gateway.infer("kept", X).json() == before
        assert gateway.infer("gone", X).status == 404


def prepared_again(gateway) -> int:
    """How often the gateway has prepared something for other engines, over all its starts."""
    return gateway.log.read_text(errors="replace").count("prepared again, for the engines that are here now")


def preparation(gateway, model: str) -> tuple[dict, list]:
    """What holds of how a model was prepared, and the curve of its one graph."""
    about = json.loads(gateway.cli("inspect", model, "--json").stdout)["preparation"]
    (calibration,) = about["batching"].values()
    return about, [(point["rows"], round(point["micros"], 3)) for point in calibration.pop("curve")]


def restart(gateway, engine: str, how: int = signal.SIGTERM):
    gateway.stop(how)
    gateway.engine = engine
    gateway.start()


def test_what_another_engine_is_to_run_is_tried_with_it_first(make_gateway, tmp_path):
    """Two models, deployed with rten: the answer that one of them expects is not what ONNX Runtime gives."""
    folder = tmp_path / "exact"
    folder.mkdir()
    (folder / "windrose.toml").write_text(
        f'name = "exact"\n[graphs.model]\nfile = "{TINY}"\n[test]\ninput = "in.json"\noutput = "out.json"\ntolerance = 0.0\n'
    )
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.37 * n - 1.3 for n in range(16)]}]}
    (folder / "in.json").write_text(json.dumps(body))
    gateway = make_gateway("rten")
    gateway.deploy(TINY, "--name", "any")
    answers = gateway.call("POST", "/v2/models/any/infer", json.dumps(body).encode(), {"content-type": "application/json"}).json()
    (folder / "out.json").write_text(json.dumps({"outputs": answers["outputs"]}))
    gateway.deploy(folder)
    log = gateway.folder / "data" / "store" / "log"
    revisions, before = {file.name: file.read_bytes() for file in log.iterdir()}, preparation(gateway, "any")
    restart(gateway, "onnxruntime")
    assert gateway.infer("any", body["inputs"]).status == 200
    assert gateway.get("/v2/models/any").json()["platform"].startswith("onnxruntime"), gateway.get("/v2/models/any").json()
    exact = gateway.infer("exact", body["inputs"])
    assert (exact.status, exact.headers["windrose-error"]) == (503, "not_ready"), exact
    assert "golden" in gateway.tail(200)
    # That was done once: what came of it outlives the process, and is the new engine's own.
    assert prepared_again(gateway) == 1
    now = preparation(gateway, "any")
    assert now[0]["engines"]["model"].startswith("onnxruntime ")
    assert now[0]["batching"]["model"]["engine"] == "onnxruntime"
    restart(gateway, "onnxruntime", signal.SIGKILL)
    assert gateway.infer("any", body["inputs"]).status == 200
    assert (prepared_again(gateway), preparation(gateway, "any")) == (1, now)
    assert gateway.infer("exact", body["inputs"]).status == 503, "what failed is tried at each start"
    # With the engine that it was prepared with it is loaded as it is, and what was found of each stays its own.
    restart(gateway, "rten")
    assert gateway.infer("exact", body["inputs"]).json()["outputs"] == answers["outputs"]
    assert (prepared_again(gateway), preparation(gateway, "any")) == (1, before)
    restart(gateway, "onnxruntime")
    assert (prepared_again(gateway), preparation(gateway, "any")) == (1, now)
    # Nobody has deployed anything, and to deploy the same again changes nothing.
    assert "was live already" in gateway.deploy(TINY, "--name", "any").stdout
    assert {file.name: file.read_bytes() for file in log.iterdir()} == revisions


def test_what_another_version_of_an_engine_is_to_run_is_measured_anew_once(make_gateway):
    """The record is made to say that an earlier rten was there, and how it ran."""
    gateway = make_gateway("rten")
    gateway.deploy(TINY, "--name", "old")
    gateway.stop()
    store = gateway.folder / "data" / "store"
    (revision,) = (store / "log").iterdir()
    state = json.loads(revision.read_text())
    ((version, digest),) = state["models"]["old"].items()
    record = json.loads((store / "blobs" / "sha256" / digest).read_text())
    record["preparation"]["engines"]["model"] = "rten 0.0.1"
    record["preparation"]["batching"]["model"]["curve"] = [{"rows": 1, "micros": 123456789.0}]
    content = json.dumps(record).encode()
    state["models"]["old"][version] = hashlib.sha256(content).hexdigest()
    (store / "blobs" / "sha256" / state["models"]["old"][version]).write_bytes(content)
    revision.write_text(json.dumps(state))
    gateway.start()
    assert prepared_again(gateway) == 1
    now = preparation(gateway, "old")
    assert now[0]["engines"]["model"] != "rten 0.0.1" and len(now[1]) > 1, now
    restart(gateway, "rten", signal.SIGKILL)
    assert (prepared_again(gateway), preparation(gateway, "old")) == (1, now)
    # What is damaged on the disk counts no more than a damaged record would: it is made once more.
    (kept,) = (store / "prepared").iterdir()
    gateway.stop()
    kept.write_bytes(kept.read_bytes().replace(b"rows", b"rews", 1))
    for _ in range(2):
        restart(gateway, "rten")
        assert prepared_again(gateway) == 2
        x = [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]
        assert gateway.infer("old", x).status == 200


def test_the_files_of_a_version_stay_for_the_calls_that_run_on_it(make_gateway):
    """A command reads its assets once its whole input is there: by then its model is gone, and so is what nobody names."""
    gateway = make_gateway(storage__keep="1s")
    gateway.deploy(ROOT / "examples" / "cli-iris")
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "other")
    assets = gateway.folder / "data" / "assets"
    body = b"5.1,3.5,1.4,0.2\n" * 2
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as stream:
        head = f"POST /models/cli-iris HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        stream.sendall(head.encode() + body[:20])
        wait_until(lambda: metric(gateway, "windrose_requests_in_flight", model="cli-iris") >= 1, 20, "the call to begin")
        gateway.cli("delete", "cli-iris", "--yes")
        before = gateway.tail(400).count("removed files")
        # Two looks for what nobody names, each of which finds something.
        for name in ("one", "two"):
            gateway.deploy(GRAPHS / "add_fp32.onnx", "--name", name)
            gateway.cli("delete", name, "--yes")
            wait_until(lambda: gateway.tail(400).count("removed files") > before, 30, "a sweep", 0.1)
            before = gateway.tail(400).count("removed files")
        assert len(list(assets.iterdir())) == 1
        stream.sendall(body[20:])
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"setosa") == 2, answer
    wait_until(lambda: not list(assets.iterdir()), 30, "the files to go with the call", 0.1)


def test_kill_9_in_the_middle_of_a_deployment(make_gateway):
    """Whenever it dies, it comes back with all that was acknowledged, and either all or nothing of the rest."""
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "kept")
    acknowledged = []

    def deploy(number: int):
        try:
            done = gateway.cli("deploy", GRAPHS / "identity_fp32.onnx", "--name", f"extra{number}", check=False)
            if done.returncode == 0:
                acknowledged.append(number)
        except Exception:
            pass

    for number, delay in enumerate((0.02, 0.05, 0.1, 0.2, 0.4, 0.8)):
        deploying = threading.Thread(target=deploy, args=(number,))
        deploying.start()
        time.sleep(delay)
        gateway.stop(signal.SIGKILL)
        deploying.join(60)
        gateway.start()
        assert gateway.infer("kept", X).status == 200
        for done in acknowledged:
            assert gateway.infer(f"extra{done}", X).status == 200
        assert gateway.infer(f"extra{number}", X).status in (200, 404)


def test_replacing_and_removing_under_load_fails_no_request(make_gateway):
    gateway = make_gateway()
    for version in ("1", "2"):
        gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "busy", "--version", version)
    loads = [Load(gateway, "busy") for _ in range(4)]
    for load in loads:
        load.start()

    def go_on():
        """Waits until every client was answered on both sides of this moment, so that each change has load around it."""
        marks = [len(load.outcomes) + 8 for load in loads]
        wait_until(lambda: all(len(load.outcomes) >= mark for load, mark in zip(loads, marks)), 60, "answers")

    go_on()
    for version in ("3", "2", "3"):
        gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "busy", "--version", version)
        go_on()
    for version in ("3", "2"):
        gateway.cli("delete", "busy", "--version", version, "--yes")
        go_on()
    outcomes = [outcome for load in loads for outcome in load.finish()]
    assert {status for status, _ in outcomes} == {200}, [body for status, body in outcomes if status != 200][:3]


def test_a_bad_graph_leaves_the_old_version(make_gateway, tmp_path):
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "good", "--version", "1")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"this is no graph")
    refused = [(bad, "1"), *((GRAPHS / f"{name}.onnx", "1") for name in
                             ("refused_domain", "refused_external_data", "refused_deep", "refused_short_weight"))]
    for path, version in refused:
        done = gateway.cli("deploy", path, "--name", "good", "--version", version, check=False)
        assert done.returncode != 0 and (done.stderr + done.stdout).strip(), path
    assert gateway.infer("good", X).status == 200


def test_the_token_is_private_and_needed(make_gateway):
    gateway = make_gateway()
    private = [path for path in (gateway.folder / "data").rglob("*") if "token" in path.name or "key" in path.name]
    assert private
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for path in ("/v1/models", "/metrics", "/", "/v1/blobs/" + "0" * 64):
        for method in ("GET", "PUT", "DELETE"):
            for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Bearer "}):
                answer = gateway.call(method, gateway.control_url + path, headers=headers)
                assert answer.status == 401, (method, path, answer)


def test_a_second_gateway_on_the_same_folder_is_refused(make_gateway):
    gateway = make_gateway()
    other = gateway.cli("serve", check=False, seconds=30)
    assert other.returncode != 0


def test_memory_does_not_grow_with_requests(make_gateway):
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "identity")
    large = np.zeros((512, 512), np.float32)

    def many(count):
        for _ in range(count):
            infer(gateway, "identity", x=large)
        return gateway.resident()

    many(60)
    before = many(60)
    after = many(240)
    assert after - before < 24 << 20, (before, after)


def test_open_files_do_not_grow_with_connections(make_gateway):
    gateway = make_gateway()
    gateway.deploy(GRAPHS / "identity_fp32.onnx", "--name", "identity")
    count = lambda: len(os.listdir(f"/proc/{gateway.process.pid}/fd"))  # noqa: E731
    for _ in range(20):
        gateway.infer("identity", X)
    before = count()
    for _ in range(200):
        gateway.infer("identity", X)
    wait_until(lambda: count() <= before + 4, 10, "connections to be closed")
