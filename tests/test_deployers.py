"""Who deploys: keys for some models, how far what they deploy is trusted, and what they see of others."""

import hashlib
import json
import os
import socket
import subprocess
import threading
import time

import pytest
from fleet import ADD, answers
from harness import BINARY, ROOT, Gateway, wait_until

IDENTITY = ADD / "identity_fp32.onnx"
TINY = ROOT / "models" / "tiny" / "model.onnx"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}


class Deployers:
    """A file of deployers, and their keys."""

    def __init__(self, gateway: Gateway, file):
        self.gateway, self.file, self.keys, self.entries = gateway, file, {}, {}

    def add(self, name: str, *arguments: str):
        made = json.loads(self.gateway.cli("deployer", name, *arguments, "--json").stdout)
        self.keys[name] = made["key"]
        about = "".join(f"{key} = {json.dumps(made[key])}\n" for key in ("models", "isolation", "grants"))
        self.entries[name] = f'[[deployer]]\nname = "{name}"\nkeys = ["{made["sha256"]}"]\n{about}'
        self.write()
        wait_until(lambda: self.ask(name, "GET", "/v1/status").status == 200, 10, f"{name} to be let in")

    def write(self):
        self.file.write_text("".join(self.entries.values()))

    def ask(self, name: str, method: str, path: str, body: bytes | None = None):
        headers = {"authorization": f"Bearer {self.keys[name]}"}
        return self.gateway.call(method, self.gateway.control_url + path, body, headers)

    def cli(self, name: str, *arguments) -> subprocess.CompletedProcess:
        """What this deployer types."""
        environment = self.gateway.environment() | {"WINDROSE_TOKEN": self.keys[name]}
        environment["WINDROSE_CONTROL_URL"] = self.gateway.control_url
        command = [str(part) for part in (BINARY, *arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def gateway(make_gateway, tmp_path):
    (tmp_path / "deployers.toml").write_text("")
    return make_gateway(control__deployers=str(tmp_path / "deployers.toml"), ceiling__network='["example.org"]')


@pytest.fixture
def deployers(gateway, tmp_path):
    return Deployers(gateway, tmp_path / "deployers.toml")


def inspected(gateway, model: str) -> dict:
    return json.loads(gateway.cli("inspect", model, "--json").stdout)


def isolation(gateway, model: str) -> str:
    (graph,) = inspected(gateway, model)["loaded"]["graphs"].values()
    return graph["isolation"]


def test_a_deployer_deploys_its_own_models_and_nothing_else(gateway, deployers):
    gateway.cli("deploy", IDENTITY, "--name", "plain")
    deployers.add("acme")
    done = deployers.cli("acme", "deploy", IDENTITY, "--name", "acme-one")
    assert done.returncode == 0, done.stderr
    assert answers(gateway, "acme-one", BODY).status == 200
    about = inspected(gateway, "acme-one")
    assert about["deployer"] == "acme" and "deployer" not in inspected(gateway, "plain")
    assert ", by acme" in gateway.cli("inspect", "acme-one").stdout
    for arguments in (
        ("deploy", IDENTITY, "--name", "plain"),
        ("validate", IDENTITY, "--name", "plain"),
        ("inspect", "plain"),
        ("delete", "plain", "--yes"),
    ):
        refused = deployers.cli("acme", *arguments)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 1 and "model `plain` is not one of deployer `acme`: acme-*" in said, (arguments, said)
    assert answers(gateway, "plain", BODY).status == 200
    # It sees what is its own.
    models = json.loads(deployers.cli("acme", "models", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["acme-one"]
    assert deployers.ask("acme", "GET", "/v1/status").json()["models_ready"] == 1
    assert deployers.ask("acme", "GET", "/v1/explain/plain").status == 403
    # Nor does it find out who the tenants are, of its own models either.
    assert deployers.ask("acme", "GET", "/v1/explain/acme-one?tenant=somebody").status == 403
    assert deployers.ask("acme", "GET", "/v1/explain/acme-one").status == 404, "this gateway has no fleet"
    metrics = deployers.ask("acme", "GET", "/metrics")
    assert metrics.status == 403 and b"plain" not in metrics.body
    assert deployers.cli("acme", "delete", "acme-one", "--yes").returncode == 0
    assert answers(gateway, "acme-one", BODY).status == 404
    # Who did it is in the log of revisions.
    log = [json.loads(file.read_text()) for file in sorted((gateway.folder / "data/store/log").iterdir())]
    assert [revision["by"]["name"] for revision in log] == ["operator", "acme", "acme"]


def test_the_graphs_of_a_deployer_run_in_a_child(gateway, deployers):
    gateway.cli("deploy", IDENTITY, "--name", "plain")
    deployers.add("acme", "--models", "acme-*,shared")
    deployers.add("trusted", "--trusted-graphs", "--models", "*")
    for name, model in (("acme", "acme-one"), ("acme", "shared"), ("trusted", "other")):
        done = deployers.cli(name, "deploy", IDENTITY, "--name", model)
        assert done.returncode == 0, done.stderr
    expected = {"plain": "process", "acme-one": "child", "shared": "child", "other": "process"}
    assert {model: isolation(gateway, model) for model in expected} == expected
    # It is whose deployment it is, not whose content: the operator's of just the same runs in this process.
    gateway.cli("deploy", IDENTITY, "--name", "shared")
    assert isolation(gateway, "shared") == "process" and "deployer" not in inspected(gateway, "shared")
    # After a restart the file counts as it is then: nothing is known of who is not there.
    del deployers.entries["trusted"]
    deployers.write()
    gateway.stop()
    gateway.start()
    expected |= {"shared": "process", "other": "child"}
    assert {model: isolation(gateway, model) for model in expected} == expected
    assert all(answers(gateway, model, BODY).status == 200 for model in expected)


def test_nothing_is_granted_to_a_deployer_unless_the_file_says_so(gateway, deployers, tmp_path):
    def granted(name: str, model: str) -> list[str]:
        folder = tmp_path / model
        folder.mkdir()
        (folder / "windrose.toml").write_text(
            f'name = "{model}"\n[grants]\nnetwork = ["example.org"]\n[graphs.model]\nfile = "{IDENTITY}"\n'
        )
        done = deployers.cli(name, "deploy", folder)
        assert done.returncode == 0, done.stderr
        return inspected(gateway, model)["loaded"]["grants"]["in_force"]["network"]

    deployers.add("acme")
    deployers.add("bolt", "--grants")
    assert granted("acme", "acme-one") == []
    assert granted("bolt", "bolt-one") == ["example.org"]


def test_a_deployer_names_only_files_that_it_has_uploaded(gateway, deployers):
    """Answers to clients name digests: they are no secret, the files are."""
    gateway.cli("deploy", IDENTITY, "--name", "plain")
    content = IDENTITY.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    deployers.add("acme")
    deployers.add("bolt")
    manifest = inspected(gateway, "plain")["manifest"] | {"name": "acme-one"}

    def deploy():
        return deployers.ask("acme", "PUT", f"/v1/models/acme-one/versions/{manifest['version']}", json.dumps(manifest).encode())

    assert deployers.ask("acme", "HEAD", f"/v1/blobs/{digest}").status == 404
    refused = deploy()
    assert refused.status == 409 and digest in refused.json()["missing"][0]["digest"]
    # Somebody else's upload is not its own, and neither is one of other content.
    assert deployers.ask("bolt", "PUT", f"/v1/blobs/{digest}", content).status == 200
    assert deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", content[:-1] + b"?").status == 400
    assert deploy().status == 409
    assert deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", content).json()["new"]
    assert deployers.ask("acme", "HEAD", f"/v1/blobs/{digest}").status == 200
    assert not deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", content).json()["new"]
    assert deploy().status == 200


def test_a_key_that_is_nobodys_lets_nobody_in(gateway, deployers):
    deployers.add("acme")
    deployers.entries["acme"] = deployers.entries["acme"].replace("keys = [", "keys = [] # [")
    deployers.write()
    wait_until(lambda: deployers.ask("acme", "GET", "/v1/status").status == 401, 10, "the key to be void")
    # A file that is wrong changes nothing, and stops a start.
    deployers.file.write_text("[[deployer]]\nnome = 1\n")
    wait_until(lambda: "the file of deployers is wrong" in gateway.tail(), 10, "the log")
    assert deployers.ask("acme", "GET", "/v1/status").status == 401
    gateway.stop()
    done = gateway.cli("serve", check=False)
    assert done.returncode == 2 and "control.deployers" in done.stderr, done.stderr


def test_what_fails_here_is_told_without_saying_where(gateway, deployers):
    deployers.add("acme")
    data = gateway.folder / "data"

    def told(answer, reason: str):
        assert answer.status == 500 and reason in answer.json()["error"], answer
        assert str(gateway.folder) not in answer.body.decode()

    content = IDENTITY.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    # Where blobs are, there is a file.
    blobs = data / "store" / "blobs"
    blobs.write_text("")
    told(deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", content), "os error")
    blobs.unlink()
    assert str(blobs) in gateway.log.read_text()

    assert deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", content).status == 200
    manifest = {"name": "acme-one", "version": "1", "graphs": {"model": {"digest": digest}}}
    deploy = lambda: deployers.ask("acme", "PUT", "/v1/models/acme-one/versions/1", json.dumps(manifest).encode())  # noqa: E731
    # No sandbox uses a key that others can read.
    key = data / "cache.key"
    key.chmod(0o644)
    told(deploy(), "the sandbox failed")
    assert str(key) in gateway.log.read_text()
    key.chmod(0o600)
    assert deploy().status == 200


def test_a_deployer_has_four_uploads_at_a_time(gateway, deployers):
    deployers.add("acme")
    deployers.add("other")

    def begun(content: bytes) -> socket.socket:
        """An upload without its last byte."""
        stream = socket.create_connection(("127.0.0.1", gateway.control_port))
        path = f"/v1/blobs/{hashlib.sha256(content).hexdigest()}"
        head = f"PUT {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {deployers.keys['acme']}\r\n"
        stream.sendall(f"{head}content-length: {len(content)}\r\nexpect: 100-continue\r\n\r\n".encode())
        return stream

    def is_read(stream: socket.socket, seconds: float) -> bool:
        """Whether the gateway asks for the body."""
        stream.settimeout(seconds)
        try:
            return stream.recv(64).startswith(b"HTTP/1.1 100 ")
        except TimeoutError:
            return False

    def put(name: str) -> int:
        content = name.encode()
        return deployers.ask(name, "PUT", f"/v1/blobs/{hashlib.sha256(content).hexdigest()}", content).status

    uploads = [begun(b"upload %d" % number) for number in range(5)]
    read = [upload for upload in uploads if is_read(upload, 1)]
    assert len(read) == 4
    assert put("other") == 200, "who uploads beside them does not wait"
    for upload in read:
        upload.close()
    assert put("acme") == 200
    for upload in uploads:
        upload.close()


def test_what_nobody_names_goes_though_nobody_deletes_anything(make_gateway, tmp_path):
    (tmp_path / "deployers.toml").write_text("")
    gateway = make_gateway(control__deployers=str(tmp_path / "deployers.toml"), storage__keep="2s")
    deployers = Deployers(gateway, tmp_path / "deployers.toml")
    deployers.add("acme")
    digest = hashlib.sha256(b"nobody's").hexdigest()
    assert deployers.ask("acme", "PUT", f"/v1/blobs/{digest}", b"nobody's").status == 200
    blob = gateway.folder / "data" / "store" / "blobs" / "sha256" / digest
    assert blob.exists()
    wait_until(lambda: not blob.exists(), 30, "the file to go")


def test_what_nobody_names_goes_while_deployments_queue(make_gateway):
    """One preparation after the other, each for as long as it may be, keep nothing that they do not name."""
    gateway = make_gateway(storage__keep="1s", control__preparations="1", control__queue="8", ceiling__wall="6s")
    endless, stop, refused = ADD / "endless_loop.onnx", threading.Event(), []

    def flood(number: int):
        while not stop.is_set():
            done = gateway.cli("deploy", endless, "--name", f"endless{number}", check=False)
            refused.append(done.stdout + done.stderr)

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: refused, 60, "the first preparation to end")
        digest = hashlib.sha256(b"nobody's").hexdigest()
        token = {"authorization": f"Bearer {(gateway.folder / 'data' / 'token').read_text().strip()}"}
        url = f"{gateway.control_url}/v1/blobs/{digest}"
        assert gateway.call("PUT", url, b"nobody's", token).status == 200
        blob = gateway.folder / "data" / "store" / "blobs" / "sha256" / digest
        wait_until(lambda: not blob.exists(), 15, "the file to go")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all("did not end within 6s" in text for text in refused), refused


def test_compiled_modules_that_no_version_has_go(make_gateway, tmp_path):
    gateway = make_gateway(storage__keep="2s", prepare__wall="60s")
    manifest = 'name = "{name}"\nversion = "1"\nmodule = "{module}"\n[graphs.model]\nfile = "{graph}"\n'
    for name in ("echo", "passthrough"):
        folder = tmp_path / name
        folder.mkdir()
        module = ROOT / "target" / "guests" / f"{name}.wasm"
        (folder / "windrose.toml").write_text(manifest.format(name=name, module=module, graph=IDENTITY))
        gateway.deploy(folder)
    cache = gateway.folder / "data" / "cache"
    deployed = set(cache.iterdir())
    # Of an earlier version of the gateway; of a preparation that was killed, an hour ago and now.
    older, killed, running = cache / ("a" * 64), cache / f".{'b' * 64}.7.0", cache / f".{'b' * 64}.8.0"
    for path, age in ((older, 3600), (killed, 3600), (running, 0)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    wait_until(lambda: not older.exists() and not killed.exists(), 30, "what is left over to go")
    time.sleep(3)
    assert deployed <= set(cache.iterdir()) and running.exists()
    gateway.cli("delete", "echo", "--yes")
    wait_until(lambda: len(deployed & set(cache.iterdir())) == len(deployed) - 1, 30, "its module to go")
    assert gateway.infer("passthrough", BODY["inputs"]).status == 200
    gateway.stop()
    gateway.start()
    assert gateway.infer("passthrough", BODY["inputs"]).status == 200


def test_what_one_deployer_found_out_about_batching_is_not_believed_of_another(gateway, deployers, tmp_path):
    """The rows that are tried are made of a golden input of whoever deploys."""
    curves, memory = {}, 16
    for name in ("acme", "other"):
        deployers.add(name)
        for version in ("1", "2"):
            # What differs is prepared anew.
            memory += 1
            folder = tmp_path / f"{name}-{version}"
            folder.mkdir()
            manifest = f'name = "{name}-one"\nversion = "{version}"\n[limits]\nmemory = "{memory}MiB"\n'
            (folder / "windrose.toml").write_text(manifest + f'[graphs.model]\nfile = "{TINY}"\n')
            done = deployers.cli(name, "deploy", folder)
            assert done.returncode == 0, done.stderr
            about = json.loads(gateway.cli("inspect", f"{name}-one", "--version", version, "--json").stdout)
            (graph,) = about["loaded"]["graphs"].values()
            curves[name, version] = graph["batching"]["curve"]
    assert len(curves["acme", "1"]) > 1
    assert curves["acme", "1"] == curves["acme", "2"] and curves["other", "1"] == curves["other", "2"]
    assert curves["acme", "1"] != curves["other", "1"]
