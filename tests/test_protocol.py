"""The Open Inference Protocol by hand: HTTP/2, identities, deadlines, and a clear 4xx for everything that is wrong."""

import gzip
import json
import socket
import struct
import subprocess
import shutil

import httpx
import pytest
from harness import ROOT

GRAPHS = ROOT / "models" / "test"
GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}


@pytest.fixture(scope="module")
def model(deployed) -> str:
    return deployed.graph(GRAPHS / "identity_fp32.onnx")


@pytest.fixture(scope="module")
def adder(deployed) -> str:
    return deployed.graph(GRAPHS / "add_fp32.onnx")


def path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def test_http2_without_tls(deployed, model):
    with httpx.Client(http1=False, http2=True, base_url=deployed.gateway.url, timeout=60) as client:
        live = client.get("/v2/health/live")
        assert live.http_version == "HTTP/2" and live.status_code == 200
        answers = [client.post(path(model), json={"inputs": [GOOD]}) for _ in range(20)]
        assert all(a.http_version == "HTTP/2" and a.json()["outputs"][0]["data"] == [1.5, 2.5] for a in answers)


def test_http2_with_curl(deployed, model):
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    command = ["curl", "-sS", "--http2-prior-knowledge", "-w", "\n%{http_version}", deployed.gateway.url + path(model)]
    body = json.dumps({"inputs": [GOOD]})
    done = subprocess.run([*command, "-d", body], capture_output=True, text=True, timeout=60)
    if "option --http2-prior-knowledge" in done.stderr or "Unsupported protocol" in done.stderr:
        pytest.skip("this curl has no HTTP/2")
    answer, version = done.stdout.rsplit("\n", 1)
    assert json.loads(answer)["outputs"][0]["data"] == [1.5, 2.5] and version == "2", done


def test_health_bodies(deployed, model):
    for what in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{model}/ready"):
        answer = deployed.gateway.get(what)
        assert answer.status == 200 and isinstance(answer.json(), dict)
    assert deployed.gateway.get("/v2/models/nosuch/ready").status == 404
    assert deployed.gateway.get("/v2").json()["name"] == "windrose"


def test_the_engine_is_in_the_metadata(deployed, model):
    text = deployed.gateway.get(f"/v2/models/{model}").body.decode()
    assert deployed.gateway.engine in text


def test_ids_are_echoed(deployed, model):
    answer = deployed.gateway.infer(model, [GOOD], id="my id: 7")
    assert answer.json()["id"] == "my id: 7"
    assert answer.json()["model_name"] == model and answer.json()["model_version"] == "1"


def test_request_ids_and_trace_context(deployed, model):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for status, name in ((200, model), (404, "nosuch")):
        headers = {"content-type": "application/json", "traceparent": trace, "x-request-id": "abc-123"}
        body = json.dumps({"inputs": [GOOD]}).encode()
        answer = deployed.gateway.call("POST", path(name), body, headers)
        assert answer.status == status
        assert answer.headers["x-request-id"] == "abc-123"
        assert answer.headers["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    answer = deployed.gateway.infer(model, [GOOD])
    assert answer.headers["x-request-id"] and answer.headers["traceparent"].startswith("00-")


def tensor(**other):
    return {"inputs": [GOOD | other]}


# What is wrong -> (body, a word of the message that says where)
WRONG = {
    "not JSON": (b"{", "request: malformed json"),
    "not an object": (b"[]", "request"),
    "nothing": (b"", "request: malformed json"),
    "no inputs": (b"{}", "inputs"),
    "inputs is no list": (b'{"inputs": 3}', "inputs"),
    "no name": ({"inputs": [{"datatype": "FP32", "shape": [1], "data": [1]}]}, "inputs[0].name"),
    "no shape": ({"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, "inputs[0].shape"),
    "no data type": ({"inputs": [{"name": "x", "shape": [1], "data": [1]}]}, "inputs[0].datatype"),
    "no data": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, "inputs[0].data"),
    "too few values": (tensor(data=[1]), "inputs[0].data: \"x\""),
    "too many values": (tensor(data=[1, 2, 3]), "inputs[0].data: \"x\""),
    "wrong type": (tensor(datatype="FP64"), "input \"x\": datatype"),
    "no such type": (tensor(datatype="FP128"), "inputs[0].datatype"),
    "a text among numbers": (tensor(data=[1, "2"]), "inputs[0].data: \"x\""),
    "a boolean among numbers": (tensor(data=[1, True]), "inputs[0].data: \"x\""),
    "null": (tensor(data=[1, None]), "inputs[0].data: \"x\""),
    "negative dimension": (tensor(shape=[-1, 2]), "inputs[0].shape"),
    "fractional dimension": (tensor(shape=[1.5, 2]), "inputs[0].shape"),
    "dimensions that overflow": (tensor(shape=[2**40, 2**40, 2]), "inputs[0].shape"),
    "dimensions that overflow to fit": (tensor(shape=[2**33, 2**31, 2]), "inputs[0].shape"),
    "huge and empty": (tensor(shape=[2**62, 4, 0], data=[]), "inputs[0].shape"),
    "a dimension over 32 bits, and empty": (tensor(shape=[2**33, 0], data=[]), "inputs[0].shape"),
    "byte strings of such a shape": (tensor(datatype="BYTES", shape=[2**33, 0], data=[]), "inputs[0].shape"),
    "unknown name": (tensor(name="y"), "input \"y\""),
    "the same twice": ({"inputs": [GOOD, GOOD]}, "inputs[1].name: \"x\""),
    "one too many": ({"inputs": [GOOD, GOOD | {"name": "more"}]}, "more"),
    "unknown output": ({"inputs": [GOOD], "outputs": [{"name": "nosuch"}]}, "nosuch"),
    "NaN": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "inputs[0].data: \"x\" element 0"),
    "infinity": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1e999]}]}', "inputs[0].data: \"x\" element 0"),
    "deeply nested data": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 5000 + b"1" + b"]" * 5000 + b"}]}", "inputs[0].data"),
    "deeply nested parameters": (b'{"parameters":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b',"inputs":[]}', "parameters"),
    "rest behind the JSON": (json.dumps({"inputs": [GOOD]}).encode() + b"x", "request: malformed json"),
    "bad UTF-8": (b'{"id":"\xff","inputs":[]}', "id"),
    "binary size without data": (tensor(parameters={"binary_data_size": 8}), "inputs[0]."),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_bodies(deployed, model, what):
    body, word = WRONG[what]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = deployed.gateway.call("POST", path(model), body, {"content-type": "application/json"})
    assert answer.status == 400, answer
    message = answer.json()["error"]
    assert word in message.lower(), message
    assert deployed.gateway.infer(model, [GOOD]).status == 200


def test_wrong_count_names_what_is_missing(deployed, adder):
    pair = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    answer = deployed.gateway.infer(adder, [pair])
    assert answer.status == 400 and "b" in answer.json()["error"]


def test_wrong_rank(deployed, adder):
    one = {"name": "a", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    answer = deployed.gateway.infer(adder, [one, one | {"name": "b"}])
    assert answer.status == 400 and "a" in answer.json()["error"]


def binary(deployed, model, head, rest: bytes, length: int | str | None = None):
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(head) if length is None else length)}
    return deployed.gateway.call("POST", path(model), head + rest, headers)


def sized(size, **other):
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    return {"inputs": [item | other]}


def test_binary_data_that_is_right(deployed, model):
    answer = binary(deployed, model, sized(8), struct.pack("<2f", 1.5, 2.5))
    assert answer.status == 200 and answer.json()["outputs"][0]["data"] == [1.5, 2.5]


SIZE, LENGTH = "inputs[0].parameters.binary_data_size", "inference-header-content-length"


@pytest.mark.parametrize(
    "head, rest, length, word",
    [
        (sized(8), b"1234567", None, SIZE),
        (sized(8), b"123456789", None, "1 bytes of binary data"),
        (sized(7), b"1234567", None, 'inputs[0].data: "x"'),
        (sized(12), b"123456789012", None, 'inputs[0].data: "x"'),
        (sized(-8), b"12345678", None, SIZE),
        (sized(2**64), b"12345678", None, SIZE),
        (sized("8"), b"12345678", None, SIZE),
        (sized(8, data=[1, 2]), b"12345678", None, "inputs[0]."),
        (sized(8), b"12345678", 10, "inputs"),
        (sized(8), b"12345678", 10**9, LENGTH),
        (sized(8), b"12345678", -1, LENGTH),
        (sized(8), b"12345678", "many", LENGTH),
        (sized(8), b"12345678", 2**70, LENGTH),
    ],
)
def test_wrong_binary_data(deployed, model, head, rest, length, word):
    answer = binary(deployed, model, head, rest, length)
    assert answer.status == 400 and word in answer.json()["error"].lower(), answer


@pytest.mark.parametrize("rest", [b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xffabc", b"\x01\x00\x00", b"\x01\x00\x00\x00ab", b""])
def test_wrong_byte_strings(deployed, rest):
    echo = deployed.example("echo")
    head = {
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(rest)}},
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]},
        ]
    }
    answer = binary(deployed, echo, head, rest)
    assert answer.status == 400 and "text" in answer.json()["error"]


def test_unknown_models_versions_and_paths(deployed, model):
    get, post = deployed.gateway.get, deployed.gateway.post_json
    for answer in (
        get("/v2/models/nosuch"),
        get(f"/v2/models/{model}/versions/99"),
        post("/v2/models/nosuch/infer", {"inputs": []}),
        post(f"/v2/models/{model}/versions/99/infer", {"inputs": []}),
        get("/nosuch"),
        get("/v2/models/..%2f..%2fetc/ready"),
    ):
        assert answer.status == 404 and answer.json()["error"], answer
    assert deployed.gateway.get(path(model)).status == 405
    assert deployed.gateway.call("DELETE", "/v2/health/live").status == 405


def test_compressed_bombs_are_refused(deployed, model):
    bomb = gzip.compress(b" " * (200 << 20))
    assert len(bomb) < 1 << 20
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    answer = deployed.gateway.call("POST", path(model), bomb, headers)
    assert answer.status == 413 and answer.json()["error"]
    truncated = gzip.compress(json.dumps({"inputs": [GOOD]}).encode())[:-9]
    assert deployed.gateway.call("POST", path(model), truncated, headers).status == 400
    answer = deployed.gateway.call("POST", path(model), b"x", {"content-encoding": "br"})
    assert answer.status == 415


def test_bodies_over_the_limit(deployed, model):
    """Announced or not, a body of more than the 64 MiB of the configuration's default ends early."""
    with socket.create_connection(("127.0.0.1", deployed.gateway.port), timeout=30) as connection:
        head = f"POST {path(model)} HTTP/1.1\r\nhost: x\r\ncontent-length: {10**12}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_client_of_http2_that_still_sends_gets_the_answer(deployed, model, tmp_path):
    """curl throws an answer away when its stream is reset, and that with 64 MiB on their way."""
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    body = tmp_path / "body"
    with open(body, "wb") as file:
        file.truncate((64 << 20) + 1)
    command = ["curl", "-sS", "--http2-prior-knowledge", "--data-binary", f"@{body}", "-w", "\n%{http_version} %{http_code}"]
    done = subprocess.run([*command, deployed.gateway.url + path(model)], capture_output=True, text=True, timeout=60)
    if "option --http2-prior-knowledge" in done.stderr or "Unsupported protocol" in done.stderr:
        pytest.skip("this curl has no HTTP/2")
    answer, status = done.stdout.rsplit("\n", 1)
    assert status == "2 413" and "body" in json.loads(answer)["error"], done


def test_a_deadline_that_is_over(deployed):
    name = deployed.graph(GRAPHS / "loop.onnx")
    inputs = [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [100_000_000]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
    # The protocol's own parameter, in microseconds.
    answer = deployed.gateway.infer(name, inputs, parameters={"timeout": 300_000}, seconds=30)
    assert answer.status == 504 and answer.json()["error"]


def test_slow_clients_do_not_hold_others(deployed, model):
    sockets = [socket.create_connection(("127.0.0.1", deployed.gateway.port)) for _ in range(100)]
    try:
        for one in sockets:
            one.sendall(b"POST /v2/models/x/infer HTTP/1.1\r\n")
        assert deployed.gateway.infer(model, [GOOD]).status == 200
    finally:
        for one in sockets:
            one.close()
