"""Modules that are no `windrose:model`: `wasi:http` components under their model's path, `wasi:cli` commands."""

import contextlib
import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from fleet import metric
from harness import ROOT, Gateway, wait_until
from sending import close
from sklearn.datasets import load_iris

from test_reference_iris import reference  # noqa: F401

FORM = "sepal_length={}&sepal_width={}&petal_length={}&petal_width={}"


def test_a_component_answers_with_a_page_under_its_path(deployed):
    name = deployed.example("http-iris")
    for path in (f"/models/{name}/", f"/models/{name}", f"/models/{name}/versions/1/"):
        answer = deployed.gateway.get(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/html"), (path, answer)
        assert b"<form" in answer.body
        assert answer.headers["x-request-id"]


def test_a_component_classifies_as_the_reference_does(deployed, reference):  # noqa: F811
    (rows, species, probabilities), name = reference, deployed.example("http-iris")
    for index in range(0, 150, 6):
        answer = deployed.gateway.get(f"/models/{name}/classify?" + FORM.format(*rows[index]))
        assert answer.status == 200 and answer.json()["species"] == species[index]
        close(np.array(answer.json()["probability"]), np.array(probabilities[index].max()))


def test_a_component_makes_its_own_errors(deployed):
    name = deployed.example("http-iris")
    assert deployed.gateway.get(f"/models/{name}/nosuch").status == 404
    wrong = deployed.gateway.get(f"/models/{name}/classify?sepal_length=a")
    assert wrong.status == 400 and "sepal_length" in wrong.json()["error"]


def test_a_component_has_no_inference_path(deployed):
    name = deployed.example("http-iris")
    answer = deployed.gateway.infer(name, [])
    assert 400 <= answer.status < 500 and answer.json()["error"]


def csv(rows) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode()


def test_a_command_answers_from_its_standard_output(deployed, reference):  # noqa: F811
    (rows, species, probabilities), name = reference, deployed.example("cli-iris")
    answer = deployed.gateway.call("POST", f"/models/{name}", csv(rows))
    assert answer.status == 200 and answer.headers["content-type"] == "text/csv"
    lines = [line.split(",") for line in answer.body.decode().splitlines()]
    assert [line[0] for line in lines] == species.tolist()
    close(np.array([float(line[1]) for line in lines]), probabilities.max(axis=1))


def test_a_command_that_fails(deployed):
    name = deployed.example("cli-iris")
    answer = deployed.gateway.call("POST", f"/models/{name}", b"1,2,3\n")
    assert answer.status >= 400 and answer.json()["error"]
    assert deployed.gateway.call("POST", f"/models/{name}", b"5.1,3.5,1.4,0.2\n").status == 200


def test_commands_at_the_same_time_do_not_mix(deployed):
    name, rows = deployed.example("cli-iris"), load_iris().data
    answers = {}

    def ask(index):
        answers[index] = deployed.gateway.call("POST", f"/models/{name}", csv(rows[index : index + 3])).body

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(0, 147, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, body in answers.items():
        assert body == deployed.gateway.call("POST", f"/models/{name}", csv(rows[index : index + 3])).body


def test_an_asynchronous_component(deployed, reference):  # noqa: F811
    """wasi:http 0.3."""
    (rows, species, probabilities), name = reference, deployed.example("http-async-iris")
    for index in range(0, 150, 30):
        body = csv(rows[index : index + 2])
        answer = deployed.gateway.call("POST", f"/models/{name}/", body, {"content-type": "text/csv"})
        assert answer.status == 200, answer
        assert species[index] in answer.body.decode()


# Bytes of a body that the gateway of the next tests takes.
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A gateway that takes small bodies only, with components that read them."""
    gateway = Gateway(tmp_path_factory.mktemp("narrow"), "rten", {"data.max_body": "1MiB"}).start()
    try:
        folder = tmp_path_factory.mktemp("reader")
        module = ROOT / "target" / "guests" / "hostile-http.wasm"
        (folder / "windrose.toml").write_text(f'name = "reader"\nmodule = "{module}"\n')
        gateway.deploy(folder)
        gateway.deploy(ROOT / "examples" / "http-async-iris")
        yield gateway
    finally:
        assert gateway.stop() == 0, gateway.tail()


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("what", ["fail", "trap"])
def test_a_body_over_the_limit_is_the_callers_fault(narrow, what, announced):
    """Whatever the component makes of a body that breaks off: an error of its own, or a trap."""

    def post(size: int):
        # What is given in pieces goes without a Content-Length.
        body = bytes(size) if announced else iter([bytes(size // 2), bytes(size - size // 2)])
        return narrow.call("POST", f"/models/reader/length?{what}", body)

    taken = post(LIMIT)
    assert (taken.status, taken.body) == (200, str(LIMIT).encode()), taken
    counted = metric(narrow, "windrose_requests", model="reader", kind="too_large")
    refused = post(LIMIT + 1)
    assert (refused.status, refused.headers.get("windrose-error")) == (413, "too_large"), refused
    assert refused.json()["error"] == f"body: is over {LIMIT} bytes"
    assert metric(narrow, "windrose_requests", model="reader", kind="too_large") == counted + 1
    assert metric(narrow, "windrose_requests", model="reader", kind="guest_trapped") == 0


def test_an_answer_breaks_off_where_its_requests_body_turns_out_too_large(narrow):
    """Its head has gone: only so does the client learn that this is no answer to all that it sent."""

    def chunk(content: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(content), content)

    head = b"POST /models/http-async-iris/ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    last = b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=30) as connection:
        connection.sendall(head + chunk(b"5.1,3.5,1.4,0.2\n"))
        received = b""
        while b"setosa" not in received:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
        assert received.startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError):
            connection.sendall(chunk(bytes(LIMIT)) + last)
            while piece := connection.recv(65536):
                received += piece
    assert not received.endswith(last), received
    kind = {"model": "http-async-iris", "kind": "too_large"}
    wait_until(lambda: metric(narrow, "windrose_requests", **kind) == 1, 10, "the request to be counted")


ASKED = """
name = "asked"
module = "{module}"
[graphs.model]
file = "{graph}"
[test]
method = "GET"
path = "{path}"
input = "body"
output = "answer.json"
"""


def test_a_component_is_tested_by_a_request_of_its_own(narrow, tmp_path):
    module, graph = ROOT / "target" / "guests" / "http-iris.wasm", ROOT / "models" / "iris" / "model.onnx"
    question = "/classify?" + FORM.format(6.0, 2.9, 4.5, 1.5)
    golden = {"species": "versicolor", "probability": 0.778965}
    (tmp_path / "body").write_bytes(b"")

    def deploy(path: str, answer: dict):
        (tmp_path / "windrose.toml").write_text(ASKED.format(module=module, graph=graph, path=path))
        (tmp_path / "answer.json").write_text(json.dumps(answer))
        return narrow.cli("deploy", tmp_path, check=False)

    for path, answer, why in (
        ("/nosuch", golden, "the component answered 404"),
        (question, golden | {"probability": 0.77}, "JSON path `/probability`"),
        (question, golden | {"species": "setosa"}, "JSON path `/species`"),
        ("classify", golden, "test.path"),
    ):
        refused = deploy(path, answer)
        assert refused.returncode != 0 and why in refused.stderr + refused.stdout, refused
        assert narrow.get("/models/asked/").status == 404
    done = deploy(question, golden)
    assert done.returncode == 0, done
    assert narrow.get("/models/asked" + question).json()["species"] == "versicolor"
    # No other kind of model has paths.
    text = ASKED.format(module=ROOT / "target" / "guests" / "cli-iris.wasm", graph=graph, path="/")
    (tmp_path / "windrose.toml").write_text(text)
    refused = narrow.cli("deploy", tmp_path, check=False)
    assert refused.returncode != 0 and "http component" in refused.stderr + refused.stdout, refused


def test_they_import_nothing_but_standard_interfaces(deployed):
    """They would run under `wasmtime serve -S nn` and `wasmtime run -S nn` as they are."""
    for example in ("http-iris", "http-async-iris", "cli-iris"):
        name = deployed.example(example)
        loaded = json.loads(deployed.gateway.cli("inspect", name, "--json").stdout)["loaded"]
        imports = [entry["name"] for entry in loaded["imports"]]
        assert "wasi:nn/graph@0.2.0-rc-2024-10-28" in imports
        assert all(one.startswith("wasi:") for one in imports), imports


FOREIGN = """
name = "{name}"
module = "{module}"
[graphs.iris]
file = "{graph}"
[assets]
"iris.onnx" = "{own}"
[command]
args = ["{argument}"]
[grants]
load = true
"""


@pytest.fixture(scope="module")
def foreign(engine, tmp_path_factory):
    """A gateway whose operator lets modules load graphs of their own, and how to deploy components of somebody else."""
    gateway = Gateway(tmp_path_factory.mktemp("foreign"), engine, {"ceiling.load": "true"}).start()

    def deploy(component: str, name: str, argument: str, own: Path | None = None) -> str:
        module = ROOT / "target" / "guests" / f"{component}.wasm"
        # It was built without our SDK and without our contract, by plain bindings of public interfaces.
        assert b"windrose" not in module.read_bytes()
        folder = tmp_path_factory.mktemp(name)
        graph = ROOT / "models" / "iris" / "model.onnx"
        text = FOREIGN.format(name=name, module=module, graph=graph, own=own or graph, argument=argument)
        (folder / "windrose.toml").write_text(text)
        gateway.deploy(folder)
        return name

    try:
        yield gateway, deploy
    finally:
        assert gateway.stop() == 0, gateway.tail()


def test_a_component_of_somebody_else_serves_under_its_path(foreign, reference):  # noqa: F811
    (gateway, deploy), (rows, _, probabilities) = foreign, reference
    name = deploy("foreign-http", "theirs", "")
    for index in range(0, 150, 15):
        answer = gateway.get(f"/models/{name}/deep/path?" + ",".join(map(str, rows[index])))
        path, _, told = answer.body.decode().partition(" ")
        assert (answer.status, path) == (200, "/deep/path"), answer
        assert int(told.split(",")[0]) == probabilities[index].argmax()
        close(np.array(float(told.split(",")[1])), np.array(probabilities[index].max()))
    wrong = gateway.get(f"/models/{name}/?1,2")
    assert wrong.status == 500 and b"ErrorCode" in wrong.body, wrong


@pytest.mark.parametrize("argument", ["iris", "iris.onnx"])
def test_a_command_of_somebody_else(foreign, reference, argument):  # noqa: F811
    """It takes a graph of the host by name, or reads a file and loads that, as most published examples do."""
    (gateway, deploy), (rows, _, probabilities) = foreign, reference
    name = deploy("foreign-command", f"theirs-{argument.replace('.', '-')}", argument)
    answer = gateway.call("POST", f"/models/{name}", csv(rows[::10]))
    assert answer.status == 200, answer
    lines = [line.split(",") for line in answer.body.decode().splitlines()]
    assert [int(line[0]) for line in lines] == probabilities[::10].argmax(axis=1).tolist()
    close(np.array([float(line[1]) for line in lines]), probabilities[::10].max(axis=1))


def test_a_graph_of_a_modules_own_runs_in_the_engine_that_the_operator_chose(foreign):
    """One that rten refuses, whatever other engine is here."""
    gateway, deploy = foreign
    name = deploy("foreign-command", "theirs-wide", "iris.onnx", ROOT / "models" / "test" / "square_int64.onnx")
    answer = gateway.call("POST", f"/models/{name}", b"")
    if gateway.engine == "rten":
        assert answer.status == 502, answer
        assert "needs ONNX Runtime" in gateway.log.read_text(errors="replace")
    else:
        assert (answer.status, answer.body) == (200, b""), answer
