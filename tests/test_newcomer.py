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


def test_from_new_to_an_answer(make_gateway, tmp_path):
    gateway = make_gateway()
    folder = tmp_path / "hello"
    gateway.cli("new", folder)
    command = [sys.executable, ROOT / "guest-sdk" / "build.py", "--manifest-path", folder, "--out", folder]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    gateway.cli("validate", folder)
    gateway.deploy(folder)
    listed = json.loads(gateway.cli("models", "--json").stdout)
    assert "hello" in json.dumps(listed)


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


def test_exit_codes_tell_what_went_wrong(gateway, tmp_path):
    assert gateway.cli("nosuch", check=False).returncode == 2
    assert gateway.cli("inspect", "nosuch", check=False).returncode != 0
    assert gateway.cli("validate", tmp_path, check=False).returncode != 0
    assert gateway.cli("deploy", tmp_path / "missing.onnx", check=False).returncode != 0
    stopped = gateway.cli("models", "--control", "http://127.0.0.1:9", check=False)
    assert stopped.returncode != 0 and stopped.stderr.strip()
