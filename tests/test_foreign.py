"""Servers of the Open Inference Protocol that are no gateways, as their packages have them, each as one site of a fleet beside
a gateway that serves the same model."""

import json
import os
import signal
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet import Fleet, answers, explained, metric, until_site
from harness import ROOT, Answer, Gateway, free_ports, wait_until

sys.path.insert(0, str(ROOT / "benches" / "peers"))
from peers import MlServer, Peer, PeerError, PyTriton, python  # noqa: E402

MODEL, SITE, FOREIGN = "tiny", "one", "lab/foreign"
SCORES = [0.25 * number - 2 for number in range(16)]
BODY = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": SCORES}]}
# Both answer as long as both are well, whichever of them is quicker.
SHARES = f'[model.{MODEL}]\npolicy = "weights"\n'


class KServe(Peer):
    """KServe's own Python server; its package is among the tests' own, for its client."""

    name = "kserve"
    binary = True

    def command(self):
        return [sys.executable, ROOT / "tests" / "kserve_server.py", self.model, str(self.port)]


@pytest.fixture(scope="module", params=[MlServer, KServe, PyTriton], ids=lambda kind: kind.name)
def server(request, tmp_path_factory):
    """The server, with a model that makes probabilities of a graph's scores."""
    server = request.param(MODEL)
    server.folder = tmp_path_factory.mktemp(server.name)
    if isinstance(server, PyTriton):
        server.program = python(server.name)
        if not server.environment():
            assert not os.environ.get("CI"), "CI has an interpreter with a library"
            pytest.skip("Triton's Python backend needs an interpreter that is a library (libpython)")
    try:
        server.start(json.dumps(BODY).encode())
        yield server
    finally:
        # Nothing is to be kept, and some take seconds to leave.
        for pid in server.pids():
            os.kill(pid, signal.SIGKILL)
        server.stop()


def foreign(port: int, more: str) -> str:
    at = f'addresses = ["127.0.0.1:{port}"]\ndistance = "1ms"\nmodels = ["{MODEL}"]\n'
    return f'[[site]]\nname = "{FOREIGN}"\nkind = "oip"\n{at}{more}\n'


@pytest.fixture
def make_fleet(tmp_path):
    made = []

    def make(*names: str, more: str) -> Fleet:
        fleet = Fleet(tmp_path / "fleet", list(names))
        made.append(fleet)
        fleet.write(more)
        return fleet

    yield make
    for fleet in made:
        fleet.stop()


def numbers(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    return answer.json()["outputs"][0]["data"]


def ask(entry: Gateway, count: int, **headers) -> list[Answer]:
    """So many answers, a few at a time."""
    with ThreadPoolExecutor(4) as together:
        return list(together.map(lambda _: answers(entry, MODEL, BODY, **headers), range(count)))


def folder_of(path, server: Peer, entry: Gateway, module: str = ""):
    """A model folder whose test wants what this server answers."""
    path.mkdir()
    text = f'name = "{MODEL}"\n{module}[graphs.model]\nfile = "{ROOT / "models" / "tiny" / "model.onnx"}"\n'
    (path / "windrose.toml").write_text(f'{text}[test]\ninput = "input.json"\noutput = "output.json"\n')
    (path / "input.json").write_text(json.dumps(BODY))
    output = directly(server, entry, json.dumps(BODY).encode(), {"content-type": "application/json"}).json()["outputs"][0]
    kept = {key: output[key] for key in ("name", "shape", "datatype", "data")}
    (path / "output.json").write_text(json.dumps({"outputs": [kept]}))
    return path


def directly(server: Peer, by: Gateway, body: bytes, headers: dict[str, str]) -> Answer:
    """The answer of the server itself."""
    return by.call("POST", f"http://127.0.0.1:{server.port}/v2/models/{MODEL}/infer", body, headers)


def test_a_fleet_can_begin_with_a_server_that_is_no_gateway(server, make_fleet):
    entry = make_fleet("entry", more=foreign(server.port, "plain = true")).start("entry")
    answer = answers(entry, MODEL, BODY)
    assert sum(numbers(answer)) == pytest.approx(1, abs=1e-5)
    assert answer.headers["windrose-site"] == FOREIGN
    assert answer.headers["windrose-digest"] == "unverified"
    assert "windrose-module" not in answer.headers and "windrose-graphs" not in answer.headers
    # Who wants a verified answer gets none from there.
    refused = answers(entry, MODEL, BODY, windrose_verified="true")
    assert refused.status == 503, refused.body
    metadata = entry.get(f"/v2/models/{MODEL}")
    assert metadata.json()["name"] == MODEL and metadata.headers["windrose-site"] == FOREIGN
    ready = entry.get(f"/v2/models/{MODEL}/ready")
    assert ready.status == 200 and ready.headers["windrose-site"] == FOREIGN
    assert not explained(entry, MODEL)["repeatable"]


def test_what_is_wrong_with_a_request_is_said_as_that_server_says_it(server, make_fleet):
    entry = make_fleet("entry", more=foreign(server.port, "plain = true\nrepeatable = true")).start("entry")
    for body in (b'{"inputs": [{"name": "x", "shape": [1, 16]}]}', b"{"):
        itself = directly(server, entry, body, {"content-type": "application/json"})
        answer = entry.call("POST", f"/v2/models/{MODEL}/infer", body, {"content-type": "application/json"})
        assert (answer.status, answer.body) == (itself.status, itself.body)
        # Triton calls it a failure of its own that a body is no JSON; any other server's word is final.
        if server.name == "pytriton" and body == b"{":
            assert answer.status == 500 and answer.headers["windrose-attempts"] != "1"
        else:
            assert 400 <= answer.status < 500 and answer.headers["windrose-attempts"] == "1", answer
    assert metric(entry, "windrose_site_ejections", site=FOREIGN) == 0


def test_binary_tensors_pass_as_they_are(server, make_fleet):
    entry = make_fleet("entry", more=foreign(server.port, "plain = true")).start("entry")
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    body = head + struct.pack("<16f", *SCORES)
    itself = directly(server, entry, body, headers)
    answer = entry.call("POST", f"/v2/models/{MODEL}/infer", body, headers)
    # MLServer does not know them, and is not spoken for.
    assert (answer.status, answer.headers["windrose-site"]) == (itself.status, FOREIGN), answer
    assert (answer.status == 200) == server.binary, answer
    if server.binary:
        split = int(answer.headers["inference-header-content-length"])
        output = json.loads(answer.body[:split])["outputs"][0]
        assert output["parameters"]["binary_data_size"] == len(answer.body) - split == 16
        wanted = numbers(answers(entry, MODEL, BODY))
        assert struct.unpack("<4f", answer.body[split:]) == pytest.approx(wanted, abs=1e-6)


def test_plain_text_needs_its_word(make_fleet):
    fleet = make_fleet("entry", more=foreign(free_ports(1)[0], ""))
    with pytest.raises(RuntimeError, match="or say `plain = true`"):
        fleet.start("entry")


def restart(server: Peer):
    """On a busy machine Triton may end again by itself while it starts, without a word; whoever keeps it running starts it
    once more."""
    for last in (False, False, True):
        try:
            return server.start(json.dumps(BODY).encode())
        except PeerError:
            if last or server.process.poll() is None:
                raise


def test_what_either_loses_the_other_answers(server, make_fleet, tmp_path):
    fleet = make_fleet("entry", SITE, more=foreign(server.port, f"plain = true\nrepeatable = true\n{SHARES}"))
    site = fleet.start(SITE)
    # The same work in a module, whose test each server has to pass: it is deployed only if the gateway does.
    module = f'module = "{ROOT / "target" / "guests" / "scores.wasm"}"\n'
    site.deploy(folder_of(tmp_path / "model", server, site, module))
    entry = fleet.start("entry")
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)
    both = {answer.headers["windrose-site"]: answer for answer in ask(entry, 60)}
    assert both[FOREIGN].headers["windrose-digest"] == "unverified"
    assert len(both[SITE].headers["windrose-digest"]) == 64
    assert numbers(both[SITE]) == pytest.approx(numbers(both[FOREIGN]), abs=1e-5)
    wait_until(lambda: metric(entry, "windrose_site_probes", site=FOREIGN) >= 2, 30, "golden tests to have been sent")
    assert metric(entry, "windrose_site_ejections", why="wrong") == 0

    # Where the server fails at what is no request, as Triton does, the gateway says so, and nobody is blamed.
    def failed_at_it() -> bool:
        wrong = entry.call("POST", f"/v2/models/{MODEL}/infer", b"{", {"content-type": "application/json"})
        assert 400 <= wrong.status < 500, wrong
        return metric(entry, "windrose_site_attempts", site=FOREIGN, ended="failed") >= 6

    if isinstance(server, PyTriton):
        # So that the budget allows what the others are then asked for.
        ask(entry, 200)
        before = metric(entry, "windrose_site_ejections", site=FOREIGN)
        wait_until(failed_at_it, 20, "requests at which the server fails")
        assert metric(entry, "windrose_site_ejections", site=FOREIGN) == before

    fleet.gateways[SITE].stop(signal.SIGKILL)
    after = ask(entry, 60)
    assert {(answer.status, answer.headers["windrose-site"]) for answer in after} == {(200, FOREIGN)}
    fleet.start(SITE)
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)

    killed = server.pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    after = ask(entry, 60)
    assert {(answer.status, answer.headers["windrose-site"]) for answer in after} == {(200, SITE)}
    # What they had is free when they have ended, which they need the processor for.
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), 30, "the server to have ended")
    restart(server)
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)


def test_a_second_try_beside_a_late_one_goes_there_only_where_asked(server, make_fleet):
    """What such a server has begun it goes on with, whoever no longer wants it."""
    entry_of = lambda hedge: foreign(server.port, f"plain = true\nrepeatable = true\n{SHARES}{hedge}")  # noqa: E731
    fleet = make_fleet("entry", SITE, more=entry_of(""))
    site = fleet.start(SITE)
    site.deploy(ROOT / "models" / "tiny" / "model.onnx", "--name", MODEL)
    entry = fleet.start("entry")

    def late() -> set[str]:
        """Why requests came to the foreign server while the gateway was silent."""
        until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)
        ask(entry, 40)
        site.process.send_signal(signal.SIGSTOP)
        try:
            ids = [answer.headers["x-request-id"] for answer in ask(entry, 12)]
        finally:
            site.process.send_signal(signal.SIGCONT)
        decisions = explained(entry, MODEL)["decisions"]
        return {one["purpose"] for one in decisions if one["request"] in ids and one.get("chosen") == FOREIGN}

    # Those that the gateway left without an answer were given up, and sent again.
    assert late() == {"first", "retry"}
    fleet.write(entry_of('hedge = "anywhere"\n'))
    wait_until(lambda: "hedge" in late(), 20, "a second try at the foreign server", 0.5)


def test_a_server_that_answers_otherwise_than_the_models_test_is_left(server, tmp_path, make_fleet):
    """The gateway serves the bare graph, whose scores are no probabilities."""
    fleet = make_fleet("entry", SITE, more=foreign(server.port, f"plain = true\nrepeatable = true\n{SHARES}"))
    site = fleet.start(SITE)
    graph = ROOT / "models" / "tiny" / "model.onnx"
    site.deploy(graph, "--name", MODEL)
    folder = folder_of(tmp_path / "model", server, site)
    # Its own answer, and not the other's.
    (folder / "output.json").write_bytes(answers(site, MODEL, BODY, windrose_verified="true").body)
    site.deploy(folder)
    entry = fleet.start("entry")
    found = lambda: metric(entry, "windrose_site_ejections", site=FOREIGN, why="wrong") >= 1  # noqa: E731
    wait_until(found, 30, "the other answers to be found")
    assert {answer.headers["windrose-site"] for answer in ask(entry, 40)} == {SITE}
