"""Graphs of byte strings behind modules of each language: a request's strings reach the graph, and its strings come
back, passed on unread as well as read and made anew by the module."""

import subprocess
import sys

import pytest
from harness import ROOT

MANIFEST = """
name = "shout"
module = "shout.wasm"

[graphs.model]
file = "{test}/strings_upper.onnx"

[graphs.same]
file = "{test}/identity_bytes.onnx"
"""

RUST = """
use windrose_guest::prelude::*;

fn infer(mut request: Request) -> Result<Response> {
    if request.parameter("turn").is_none() {
        return Graph::by_name("model")?.run(request);
    }
    let words = Graph::by_name("same")?.compute([("x", request.strings("words")?)])?.strings("y")?;
    let turned = words.elements().iter().rev().cloned().collect();
    Ok(Response::new().with("upper", Strings::new(&words.shape(), turned)?))
}

windrose_guest::export!(fn infer);
"""

PYTHON = """
from windrose_guest import Graph, Strings, export

@export
def infer(request):
    if "turn" not in request.parameters:
        return Graph.by_name("model").run(request)
    words = Graph.by_name("same").compute({"x": request.strings("words")})["y"].to_strings()
    return {"upper": Strings(words.elements[::-1], words.shape)}
"""

JAVASCRIPT = """
import { Graph, Strings, model } from "windrose-guest";

export const handler = model({
  infer(request) {
    if (!request.parameters.has("turn")) return Graph.byName("model").run(request);
    const words = Graph.byName("same").compute({ x: request.strings("words") }).y.toStrings();
    return { upper: new Strings([...words.elements].reverse(), words.shape) };
  },
});
"""

SOURCES = {"rust": ("src/lib.rs", RUST), "python": ("app.py", PYTHON), "js": ("app.js", JAVASCRIPT)}


@pytest.mark.parametrize("language", SOURCES)
def test_strings_through_a_graph(make_gateway, tmp_path, language):
    # rten has no strings.
    gateway = make_gateway("onnxruntime")
    folder = tmp_path / "shout"
    gateway.cli("new", folder, "--lang", language)
    file, source = SOURCES[language]
    (folder / file).write_text(source)
    (folder / "windrose.toml").write_text(MANIFEST.format(test=ROOT / "models" / "test"))
    command = [sys.executable, ROOT / "guest-sdk" / "build.py", "--manifest-path", folder, "--out", folder]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    gateway.deploy(folder)
    told = gateway.get("/v2/models/shout").json()
    declared = [(one["name"], one["datatype"]) for one in told["inputs"] + told["outputs"]]
    assert declared == [("words", "BYTES"), ("upper", "BYTES")]

    def ask(words: list[str], **rest) -> list[str]:
        tensor = {"name": "words", "datatype": "BYTES", "shape": [len(words)], "data": words}
        answer = gateway.infer("shout", [tensor], **rest)
        assert answer.status == 200, (answer, gateway.tail())
        (upper,) = answer.json()["outputs"]
        assert (upper["name"], upper["datatype"], upper["shape"]) == ("upper", "BYTES", [len(words)])
        return upper["data"]

    assert ask(["north", "west"]) == ["NORTH", "WEST"]
    assert ask(["Grüße", "", "日本"], parameters={"turn": True}) == ["日本", "", "Grüße"]
