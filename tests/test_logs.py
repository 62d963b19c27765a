"""The log as programs read it: a JSON object a line, and the id of the request that it is about."""

import json

from harness import ROOT

MANIFEST = """
name = "hostile"
module = "{module}"
[graphs.model]
file = "{graph}"
[limits]
log = "1KiB"
"""

X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}

# The request's id -> what the guest does, the status, the word for what went wrong.
ASKED = {
    "asked-1": ("count", 200, None),
    "asked-2": ("refuse", 400, "invalid_input"),
    "asked-3": ("trap", 502, "guest_trapped"),
    "asked-4": ("log", 502, "log_limit"),
}


def test_each_line_is_an_object_and_those_of_a_request_have_its_id(make_gateway, tmp_path):
    gateway = make_gateway(log__format="json", log__filter="info,windrose=debug")
    module = ROOT / "target" / "guests" / "hostile.wasm"
    graph = ROOT / "models" / "test" / "identity_fp32.onnx"
    (tmp_path / "windrose.toml").write_text(MANIFEST.format(module=module, graph=graph))
    gateway.deploy(tmp_path)
    for request, (act, status, kind) in ASKED.items():
        body = json.dumps({"inputs": [X], "parameters": {"act": act}}).encode()
        answer = gateway.call("POST", "/v2/models/hostile/infer", body, {"x-request-id": request})
        assert (answer.status, answer.headers.get("windrose-error")) == (status, kind), answer
        assert answer.headers["x-request-id"] == request
    # One that names itself by nothing gets an id.
    unnamed = gateway.call("POST", "/v2/models/nosuch/infer", b"{}")
    assert unnamed.status == 404
    assert gateway.stop() == 0, gateway.tail()

    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    assert lines
    for line in lines:
        assert line["timestamp"] and line["level"] and line["target"] and isinstance(line["fields"], dict), line

    def about(request: str, target: str = "") -> list[dict]:
        """The fields of a request's lines; with `target`, of those from there."""
        own = [line for line in lines if line["fields"].get("request_id") == request]
        return [line["fields"] for line in own if target in ("", line["target"])]

    for request, (_, status, kind) in ASKED.items():
        (access,) = about(request, "windrose::access")
        assert (access["method"], access["status"]) == ("POST", status), access
        kinds = [fields["kind"] for fields in about(request) if "kind" in fields]
        assert kinds == ([] if kind is None else [kind]), about(request)
    assert [fields["message"] for fields in about("asked-1", "windrose::guest")] == ["call 1"]
    assert all(fields["model"] == "hostile/1" for fields in about("asked-4", "windrose::guest"))
    assert len(about("asked-4", "windrose::guest")) > 5
    kinds = [fields.get("kind") for fields in about(unnamed.headers["x-request-id"])]
    assert sorted(kinds, key=str) == [None, "not_found"]
