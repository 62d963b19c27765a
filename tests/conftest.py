"""What the end-to-end tests share: gateways, and models deployed on them through the CLI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import BINARY, ROOT, Gateway  # noqa: E402

ENGINES = ["rten", "onnxruntime"]
# Clients that nobody here wrote take their proxy from the environment; the gateways are on this machine.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,::1"


def pytest_sessionstart(session):
    if not BINARY.is_file():
        raise pytest.UsageError("target/release/windrose is missing: run `make build guests models onnxruntime` first")


class Deployed:
    """A gateway, and what was deployed on it so far."""

    def __init__(self, gateway: Gateway):
        self.gateway = gateway
        self.names = {}

    def graph(self, path: Path) -> str:
        """Deploys a bare ONNX file once; returns the model's name."""
        # Two folders may have a file of the same name.
        name = path.parent.name if path.stem == "model" else f"{path.parent.name}-{path.stem}"
        name = "bare-" + name.replace("_", "-")
        if name not in self.names:
            self.names[name] = self.gateway.deploy(path, "--name", name)
        return name

    def example(self, name: str) -> str:
        """Deploys examples/NAME once; returns the model's name."""
        if name not in self.names:
            self.names[name] = self.gateway.deploy(ROOT / "examples" / name)
        return name


@pytest.fixture(scope="session", params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def deployed(engine, tmp_path_factory):
    """One gateway per engine, shared by all tests that leave it as they found it."""
    gateway = Gateway(tmp_path_factory.mktemp(engine), engine).start()
    try:
        yield Deployed(gateway)
    finally:
        assert gateway.stop() == 0, gateway.tail()


@pytest.fixture
def make_gateway(tmp_path):
    """Gateways of a test's own."""
    started = []

    def make(engine: str = "rten", **settings: str) -> Gateway:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        gateway = Gateway(tmp_path / f"gateway{len(started)}", engine, named)
        started.append(gateway)
        return gateway.start()

    yield make
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="session", autouse=True)
def leaves_no_process():
    """The tests end every process that they start."""
    yield
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    ours = [line for line in listed.splitlines() if str(BINARY) in line and f" {os.getpid()} " in f" {line} "]
    assert not ours, ours
