"""The commands in README.md and docs/ run as they stand there."""

import os
import re
import shutil
import subprocess

import pytest
from harness import BINARY, ROOT

PAGES = ["README.md", "docs/getting-started.md", "docs/protocol.md", "docs/modules.md", "docs/operations.md"]
# What the harness does in its own way, or what other tests do: starting a gateway, make, tools of the system.
NOT_RUN = re.compile(r"\bmake\b|\bserve\b|\bsystemctl\b|\bpip install\b")


def blocks(page: str) -> list[str]:
    """The shell commands of a page that are to be run, block by block."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    kept = ["\n".join(line for line in block.splitlines() if not NOT_RUN.search(line)) for block in found]
    return [block for block in kept if block.strip()]


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(make_gateway, tmp_path, page):
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    # Nothing names the data folder to the commands: it is where it is by default.
    gateway = make_gateway(storage__dir=str(tmp_path / "windrose"))
    environment = gateway.environment() | {"XDG_DATA_HOME": str(tmp_path)}
    del environment["WINDROSE_STORAGE_DIR"]
    environment["PATH"] = f"{BINARY.parent}:{os.environ['PATH']}"
    environment["HOME"] = os.environ["HOME"]
    environment["TMPDIR"] = str(tmp_path)
    commands = blocks(page)
    assert commands
    for block in commands:
        block = block.replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}")
        block = block.replace("127.0.0.1:8001", f"127.0.0.1:{gateway.control_port}")
        script = f'curl() {{ command curl --fail-with-body "$@"; }}\nwindrose() {{ {BINARY} "$@"; }}\n{block}'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{block}\n--- {done.stdout}{done.stderr}\n{gateway.tail()}"


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
