"""What people run in a checkout before anything else runs: the demo, and the scripts that fetch and make what is needed."""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys

import demo
import pytest
from harness import ROOT

# Behind everything else: one of the scripts has the name of a package.
sys.path += [str(ROOT / "guest-sdk"), str(ROOT / "models")]

import fetch  # noqa: E402
from builder import environments  # noqa: E402
from builder.report import BuildError  # noqa: E402

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def only_cargo(tmp_path):
    """An environment with no program but a `cargo` that builds nothing, and the file where that one says how it was called."""
    programs, said = tmp_path / "bin", tmp_path / "cargo.txt"
    programs.mkdir()
    cargo = programs / "cargo"
    cargo.write_text(f'#!/bin/sh\necho "$CARGO_TARGET_DIR" > {said}\nexit 1\n')
    cargo.chmod(0o755)
    return os.environ | {"PATH": str(programs), "CARGO_TARGET_DIR": str(tmp_path / "elsewhere")}, said


@pytest.fixture
def bare_python(tmp_path):
    """Where a Python finds that it has neither pip nor what makes environments, as that of a distribution may."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['pip'] = sys.modules['ensurepip'] = None\n")
    return {"PYTHONPATH": str(folder)}


def script(name: str, *arguments: str, env: dict) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / name, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_the_demo_asks_its_own_gateway(monkeypatch, tmp_path, capsys):
    """Whatever gateway the shell knows, and whatever proxy it is behind."""
    for name in ("WINDROSE_CONTROL_URL", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("WINDROSE_TOKEN", "of-another-gateway")
    monkeypatch.setenv("WINDROSE_DATA_TENANTS", str(tmp_path / "nosuch.toml"))
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    with demo.gateway(tmp_path) as (url, environment):
        demo.show(url, environment, [ROOT / "tests" / "demo.py"])
    said = capsys.readouterr().out
    # By the script's own request, and by that of curl where it is here.
    assert said.count("Python source") == (2 if shutil.which("curl") else 1), said


def test_tests_ask_their_gateways_without_a_proxy(monkeypatch, deployed):
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    assert deployed.gateway.get("/v2/health/ready").status == 200


def test_the_demo_names_files_that_are_missing(only_cargo):
    environment, said = only_cargo
    done = script("tests/demo.py", "README.md", "typo.txt", env=environment)
    assert done.returncode == 2 and "typo.txt" in done.stderr, done
    assert not said.exists()


def test_what_is_built_is_where_it_is_looked_for(only_cargo, monkeypatch, tmp_path):
    environment, said = only_cargo
    assert script("tests/demo.py", env=environment).returncode == 1
    assert said.read_text() == f"{ROOT}/target\n"
    said.unlink()
    make = ["make", "build", f"CARGO={tmp_path}/bin/cargo"]
    elsewhere = os.environ | {"CARGO_TARGET_DIR": str(tmp_path / "elsewhere")}
    assert subprocess.run(make, env=elsewhere, cwd=ROOT, capture_output=True).returncode != 0
    assert said.read_text() == f"{ROOT}/target\n"
    seen, everything = [], importlib.import_module("all")
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(everything, "everything", lambda: seen.append(os.environ["CARGO_TARGET_DIR"]))
    assert everything.main() == 0 and seen == [f"{ROOT}/target"]


def test_a_python_without_pip_is_told_before_anything_is_built(only_cargo, bare_python):
    environment, said = only_cargo
    done = script("tests/demo.py", env=environment | bare_python)
    assert done.returncode == 1 and "apt install python3-pip" in done.stderr, done
    assert "Traceback" not in done.stderr and not said.exists()
    version = f"python3.{sys.version_info.minor}-venv"
    done = script("tests/tools.py", env=environment | bare_python)
    assert done.returncode == 1 and f"apt install python3-pip {version}" in done.stderr, done


def test_an_environment_is_made_anew_where_its_checkout_was_moved(monkeypatch, tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text("")
    before, after = tmp_path / "before" / "venv", tmp_path / "after" / "venv"
    before.parent.mkdir()
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "ensurepip", None)
        with pytest.raises(BuildError, match="-venv"):
            environments.environment(before, pins)
    programs = environments.environment(before, pins)
    made = (before / "pins").stat().st_mtime_ns
    assert environments.environment(before, pins) == programs and (before / "pins").stat().st_mtime_ns == made
    before.parent.rename(after.parent)
    pip = environments.environment(after, pins) / "pip"
    assert subprocess.run([pip, "--version"], capture_output=True, timeout=60).returncode == 0


# Says whether somebody holds a lock, and then fails or does not.
MAKES = """
import fcntl, pathlib, sys
with open({lock!r}, "w") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = "free"
    except BlockingIOError:
        said = "held"
pathlib.Path(sys.argv[1]).write_text(said)
sys.exit({status})
"""


@pytest.mark.parametrize("status, pinned, whole", [(0, b"held", True), (0, b"something else", False), (1, b"held", False)])
def test_a_model_is_made_by_one_at_a_time_and_there_whole_or_not_at_all(monkeypatch, tmp_path, status, pinned, whole):
    monkeypatch.setattr(fetch, "TARGET", tmp_path / "models")
    makes = tmp_path / "makes.py"
    makes.write_text(MAKES.format(lock=str(tmp_path / "models" / ".net.lock"), status=status))
    made = {"script": str(makes), "to": "model.onnx", "sha256": hashlib.sha256(pinned).hexdigest()}
    try:
        fetch.provide("net", {"made": [made]})
    except (fetch.FetchError, subprocess.CalledProcessError):
        assert not whole
    files = {path.name: path.read_bytes() for path in (tmp_path / "models" / "net").iterdir()}
    assert files == ({"model.onnx": b"held"} if whole else {})
