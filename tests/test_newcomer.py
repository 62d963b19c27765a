"""What a newcomer does: `windrose new`, build, deploy, infer; a bare graph; help that helps."""

import json
import subprocess
import sys

import pytest
from harness import ROOT
from sending import infer

COMMANDS = ["serve", "deploy", "models", "inspect", "infer", "delete", "validate", "new"]


@pytest.fixture(scope="module")
def gateway(deployed):
    return deployed.gateway


def test_help_names_every_command(gateway):
    text = gateway.cli("--help").stdout
    for command in COMMANDS:
        assert command in text
        assert len(gateway.cli(command, "--help").stdout.splitlines()) >= 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(gateway, shell):
    script = gateway.cli("completions", shell).stdout
    assert "deploy" in script and "inspect" in script


@pytest.mark.parametrize("language", ["rust", "python", "js"])
def test_from_new_to_an_answer(make_gateway, tmp_path, language):
    gateway = make_gateway()
    folder = tmp_path / "hello"
    gateway.cli("new", folder, "--lang", language)
    command = [sys.executable, ROOT / "guest-sdk" / "build.py", "--manifest-path", folder, "--out", folder]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    gateway.cli("validate", folder)
    gateway.deploy(folder)
    listed = json.loads(gateway.cli("models", "--json").stdout)
    assert "hello" in json.dumps(listed)
    # A byte order mark is a character of the text like any other.
    for text, length in [("Grüße", 5), ("\ufeffGrüße", 6)]:
        answer = json.loads(gateway.cli("infer", "hello", "--input", f"text={text}", "--json").stdout)
        assert answer["outputs"][0]["data"] == [length]


def test_a_bare_graph(deployed, gateway):
    name = deployed.graph(ROOT / "models" / "iris" / "model.onnx")
    import numpy as np

    answer = infer(gateway, name, features=np.array([[5.1, 3.5, 1.4, 0.2]], np.float32))
    assert answer["label"].tolist() == [0]
    told = gateway.cli("inspect", name).stdout
    assert "features" in told and gateway.engine in told
    assert json.loads(gateway.cli("inspect", name, "--json").stdout)


def test_infer_from_files(deployed, gateway, tmp_path):
    deployed.example("magika")
    script = tmp_path / "anything"
    script.write_text("import os\n\n\ndef main():\n    print(os.getcwd())\n\n\nif __name__ == '__main__':\n    main()\n" * 3)
    assert "python" in gateway.cli("infer", "magika", "--input", f"file=@{script}").stdout.lower()


def test_infer_from_arrays(deployed, gateway, tmp_path):
    """Files of NumPy, in every order of bytes and dimensions that it has, and its strings."""
    import numpy as np

    name = deployed.graph(ROOT / "models" / "iris" / "model.onnx")
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)
    kinds = {"plain": rows, "columns": np.asfortranarray(rows), "big": rows.astype(">f4"), "row": rows[0]}
    for kind, array in kinds.items():
        np.save(tmp_path / f"{kind}.npy", array)
        answer = json.loads(gateway.cli("infer", name, "--input", f"features=@{tmp_path / kind}.npy", "--json").stdout)
        labels = next(output for output in answer["outputs"] if output["name"] == "label")
        assert labels["data"] == ([0] if kind == "row" else [0, 2]), kind
    np.save(tmp_path / "double.npy", rows.astype(np.float64))
    refused = gateway.cli("infer", name, "--input", f"features=@{tmp_path / 'double.npy'}", check=False)
    assert refused.returncode == 2 and "FP64" in refused.stderr and "FP32" in refused.stderr
    np.save(tmp_path / "names.npy", np.array(["Grüße", "日本", ""]))
    model = deployed.example("echo")
    said = gateway.cli("infer", model, "--input", f"text=@npy:{tmp_path / 'names.npy'}", "--input", "x=[1]").stdout
    assert "Grüße" in said and "日本" in said


def test_infer_of_halves(make_gateway, tmp_path):
    """FP16 and BF16 have no JSON in the protocol: people write and read numbers, and binary tensors travel."""
    gateway = make_gateway("onnxruntime")
    for datatype, third in (("FP16", 0.099975586), ("BF16", 0.100097656)):
        name = f"identity-{datatype.lower()}"
        told = gateway.deploy(ROOT / "models" / "test" / f"identity_{datatype.lower()}.onnx", "--name", name)
        assert f"windrose infer {name} --input x=@FILE" in told.stdout + told.stderr
        y = {"name": "y", "datatype": datatype, "shape": [2, 2], "data": [1.5, -2.0, third, 0.0]}
        numbers = ["infer", name, "--input", "x=[[1.5, -2], [0.1, 0]]"]
        assert json.loads(gateway.cli(*numbers, "--json").stdout)["outputs"] == [y]
        assert "1.5, -2.0" in gateway.cli(*numbers).stdout
        x = y | {"name": "x", "data": [[1.5, -2], [0.1, 0]]}
        (tmp_path / "request.json").write_text(json.dumps({"id": "mine", "inputs": [x]}))
        whole = json.loads(gateway.cli("infer", name, "--json-request", tmp_path / "request.json", "--json").stdout)
        assert whole["id"] == "mine" and whole["outputs"] == [y]
        for wrong in ("[[1e39]]", '[["a"]]'):
            refused = gateway.cli("infer", name, "--input", f"x={wrong}", check=False)
            assert refused.returncode == 2 and "x: element 0" in refused.stderr, refused
        # Everybody else is told what to send.
        answer = gateway.infer(name, [x])
        assert answer.status == 400 and f"{datatype} has no JSON form" in answer.json()["error"], answer


def test_a_golden_test_of_halves_is_written_in_numbers(make_gateway, tmp_path):
    gateway = make_gateway("onnxruntime")
    for datatype in ("FP16", "BF16"):
        name, folder = f"golden-{datatype.lower()}", tmp_path / datatype
        folder.mkdir()
        graph = ROOT / "models" / "test" / f"identity_{datatype.lower()}.onnx"
        (folder / "windrose.toml").write_text(
            f'name = "{name}"\n[graphs.model]\nfile = "{graph}"\n[test]\ninput = "in.json"\noutput = "out.json"\n'
        )

        def deploy(given: list, expected: list):
            tensor = {"datatype": datatype, "shape": [2, 2]}
            (folder / "in.json").write_text(json.dumps({"inputs": [tensor | {"name": "x", "data": given}]}))
            (folder / "out.json").write_text(json.dumps({"outputs": [tensor | {"name": "y", "data": expected}]}))
            return gateway.cli("deploy", folder, check=False)

        numbers = [[1.5, -2], [0.1, 0]]
        for given, expected, why in (
            (numbers, [1.5, -2, 0.1, 1], "output `y` differs from the golden one at element 3: 0 instead of 1"),
            ([[1.5, -2], [1e39, 0]], numbers, f"is out of range for {datatype}"),
        ):
            refused = deploy(given, expected)
            assert refused.returncode == 1 and why in refused.stderr + refused.stdout, refused
        done = deploy(numbers, numbers)
        assert done.returncode == 0, done
        assert gateway.get(f"/v2/models/{name}/ready").status == 200


def test_exit_codes_tell_what_went_wrong(gateway, tmp_path):
    assert gateway.cli("nosuch", check=False).returncode == 2
    assert gateway.cli("inspect", "nosuch", check=False).returncode != 0
    assert gateway.cli("validate", tmp_path, check=False).returncode != 0
    assert gateway.cli("deploy", tmp_path / "missing.onnx", check=False).returncode != 0
    stopped = gateway.cli("models", "--control", "http://127.0.0.1:9", check=False)
    assert stopped.returncode != 0 and stopped.stderr.strip()
