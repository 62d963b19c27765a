"""What the gateway tells the operator is deployed is on the disk: every file that it puts in its place was synced before,
and the folder that got it afterwards. The system calls are watched; pulling the plug shows little on one machine."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from harness import ROOT, wait_until

CALL = re.compile(r"^\d+\s+(\w+)\((.*)$")
QUOTED = re.compile(r'"([^"]*)"')
DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
WATCHED = "openat,mkdir,rename,renameat,renameat2,link,linkat,fsync,fdatasync"


@pytest.fixture
def watched(make_gateway, tmp_path):
    """A gateway, and the file that its system calls are written to from now on."""
    if not shutil.which("strace"):
        pytest.skip("no strace here")
    gateway, log = make_gateway(), tmp_path / "calls"
    command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", f"trace={WATCHED}", "-o", log, "-p", str(gateway.process.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        traced = Path(f"/proc/{gateway.process.pid}/status")
        wait_until(lambda: tracer.poll() is not None or f"TracerPid:\t{tracer.pid}" in traced.read_text(), 20, "strace")
        if tracer.poll() is not None:
            pytest.skip(f"strace may not watch here: {tracer.stderr.read()}")
        yield gateway, log, tracer
    finally:
        tracer.kill()
        tracer.wait(20)


def calls(log: Path) -> list[tuple[str, list[str]]]:
    """Each call with the paths that it names, in the order in which they began."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if match := CALL.match(line):
            name, rest = match.groups()
            descriptor = DESCRIPTOR.match(rest)
            paths = QUOTED.findall(rest)
            if name == "openat":
                name = "create" if "O_CREAT" in rest else "open"
            found.append((name, [descriptor[1]] if descriptor and name.endswith("sync") else paths))
    return found


def test_what_is_published_was_synced(watched):
    gateway, log, tracer = watched
    gateway.deploy(ROOT / "examples" / "cli-iris")
    gateway.deploy(ROOT / "models" / "test" / "identity_fp32.onnx", "--name", "bare")
    gateway.cli("delete", "bare", "--yes")
    tracer.send_signal(signal.SIGINT)
    tracer.wait(20)
    data, seen = str(gateway.folder / "data"), calls(log)
    synced = [(index, paths[0]) for index, (name, paths) in enumerate(seen) if name.endswith("sync")]

    def is_synced(path: str, after: int, before: int = len(seen)) -> bool:
        return any(after < index < before and path == other for index, other in synced)

    published = [(index, *paths[:2]) for index, (name, paths) in enumerate(seen)
                 if name.startswith(("rename", "link")) and len(paths) == 2 and paths[1].startswith(data)]
    kinds = {Path(target).relative_to(data).parts[0] for _, _, target in published}
    assert {"store", "assets", "cache"} <= kinds, kinds
    # Two modules and graphs, their records, three revisions, and what was compiled.
    assert len(published) >= 8, published
    for index, source, target in published:
        made = {path for name, paths in seen[:index] if name == "create" for path in paths if path.startswith(source + "/")}
        folders = {str(Path(path).parent) for path in made}
        for path in made | folders | {source}:
            assert is_synced(path, -1, index), f"{path} was not synced before it became {target}"
        assert is_synced(str(Path(target).parent), index), f"the folder of {target} was not synced"
