"""MLServer, as PyPI has it, as one site of a fleet beside a gateway that serves the same model."""

import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet import Fleet, answers, explained, metric, until_site
from harness import ROOT, wait_until

sys.path.insert(0, str(ROOT / "benches" / "peers"))
from peers import MlServer  # noqa: E402

MODEL, SITE, FOREIGN = "tiny", "one", "lab/mlserver"
SCORES = [0.25 * number - 2 for number in range(16)]
BODY = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": SCORES}]}
# Both answer as long as both are well, whichever of them is quicker.
SHARES = f'[model.{MODEL}]\npolicy = "weights"\n'


@pytest.fixture(scope="module")
def server():
    """The server, with a model that makes probabilities of a graph's scores."""
    server = MlServer(MODEL)
    server.start(json.dumps(BODY).encode())
    yield server
    server.stop()


def foreign(server: MlServer, more: str) -> str:
    at = f'addresses = ["127.0.0.1:{server.port}"]\ndistance = "1ms"\nmodels = ["{MODEL}"]\n'
    return f'[[site]]\nname = "{FOREIGN}"\nkind = "oip"\n{at}{more}\n'


@pytest.fixture
def make_fleet(tmp_path, server):
    made = []

    def make(*names: str, more: str) -> Fleet:
        fleet = Fleet(tmp_path / "fleet", list(names))
        made.append(fleet)
        fleet.write(foreign(server, more))
        return fleet

    yield make
    for fleet in made:
        fleet.stop()


def numbers(answer) -> list[float]:
    assert answer.status == 200, answer.body
    return answer.json()["outputs"][0]["data"]


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def ask(entry, count: int) -> list:
    """So many answers, a few at a time."""
    with ThreadPoolExecutor(4) as together:
        return list(together.map(lambda _: answers(entry, MODEL, BODY), range(count)))


def test_a_fleet_can_begin_with_a_server_that_is_no_gateway(server, make_fleet):
    entry = make_fleet("entry", more="plain = true").start("entry")
    answer = answers(entry, MODEL, BODY)
    assert sum(numbers(answer)) == pytest.approx(1, abs=1e-5)
    assert answer.headers["windrose-site"] == FOREIGN
    assert answer.headers["windrose-digest"] == "unverified"
    assert "windrose-module" not in answer.headers and "windrose-graphs" not in answer.headers
    # Who wants a verified answer gets none from there.
    refused = answers(entry, MODEL, BODY, windrose_verified="true")
    assert refused.status == 503, refused.body
    assert entry.get(f"/v2/models/{MODEL}").json()["name"] == MODEL
    # What is wrong with a request is said as that server says it, and is no reason to ask again.
    wrong = answers(entry, MODEL, {"inputs": [{"name": "x", "shape": [1, 16]}]})
    assert 400 <= wrong.status < 500 and wrong.headers["windrose-attempts"] == "1", (wrong.status, wrong.body)
    assert not explained(entry, MODEL)["repeatable"]


def test_plain_text_needs_its_word(make_fleet):
    fleet = make_fleet("entry", more="")
    with pytest.raises(RuntimeError, match="or say `plain = true`"):
        fleet.start("entry")


def test_what_either_loses_the_other_answers(server, make_fleet):
    fleet = make_fleet("entry", SITE, more=f"plain = true\nrepeatable = true\n{SHARES}")
    fleet.start(SITE).deploy(ROOT / "models" / "tiny" / "model.onnx", "--name", MODEL)
    entry = fleet.start("entry")
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)
    both = {answer.headers["windrose-site"]: answer for answer in ask(entry, 60)}
    assert both[FOREIGN].headers["windrose-digest"] == "unverified"
    assert len(both[SITE].headers["windrose-digest"]) == 64
    # The gateway serves the bare graph.
    assert softmax(numbers(both[SITE])) == pytest.approx(numbers(both[FOREIGN]), abs=1e-5)

    fleet.gateways[SITE].stop(signal.SIGKILL)
    after = ask(entry, 60)
    assert {(answer.status, answer.headers["windrose-site"]) for answer in after} == {(200, FOREIGN)}
    fleet.start(SITE)
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)

    for pid in server.pids():
        os.kill(pid, signal.SIGKILL)
    after = ask(entry, 60)
    assert {(answer.status, answer.headers["windrose-site"]) for answer in after} == {(200, SITE)}
    server.start(json.dumps(BODY).encode())
    until_site(entry, MODEL, BODY, {SITE, FOREIGN}, 30)


def test_a_server_that_answers_otherwise_than_the_models_test_is_left(tmp_path, make_fleet):
    """The gateway serves the bare graph, whose scores are no probabilities."""
    folder = tmp_path / "model"
    folder.mkdir()
    graph = ROOT / "models" / "tiny" / "model.onnx"
    (folder / "windrose.toml").write_text(
        f'name = "{MODEL}"\n[graphs.model]\nfile = "{graph}"\n[test]\ninput = "input.json"\noutput = "output.json"\n'
    )
    (folder / "input.json").write_text(json.dumps(BODY))
    fleet = make_fleet("entry", SITE, more=f"plain = true\nrepeatable = true\n{SHARES}")
    site = fleet.start(SITE)
    site.deploy(graph, "--name", MODEL)
    # Its own answer, and not the other's.
    (folder / "output.json").write_bytes(answers(site, MODEL, BODY, windrose_verified="true").body)
    site.deploy(folder)
    entry = fleet.start("entry")
    found = lambda: metric(entry, "windrose_site_ejections", site=FOREIGN, why="wrong") >= 1  # noqa: E731
    wait_until(found, 30, "the other answers to be found")
    assert {answer.headers["windrose-site"] for answer in ask(entry, 40)} == {SITE}
