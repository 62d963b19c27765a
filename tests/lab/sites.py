"""Gateways in the namespaces of sites, and the front before one that misbehaves when told to."""

import signal
import subprocess
from pathlib import Path

from harness import Answer, Gateway

from .link import TOOL
from .namespace import Namespace

DATA_PORT, CONTROL_PORT = 8000, 8001


class SiteGateway(Gateway):
    """A gateway that listens on an address of its site; everything that talks to it does so from there."""

    def __init__(self, folder: Path, space: Namespace, settings: dict[str, str], host: int = 0, engine: str = "rten"):
        self.space, self.address = space, space.addresses[host]
        super().__init__(folder, engine, settings)

    def __post_init__(self):
        super().__post_init__()
        self.port, self.control_port = DATA_PORT, CONTROL_PORT
        self.url = f"http://{self.address}:{self.port}"
        self.control_url = f"http://{self.address}:{self.control_port}"

    def environment(self) -> dict[str, str]:
        listeners = {
            "WINDROSE_DATA_LISTEN": f"{self.address}:{self.port}",
            "WINDROSE_CONTROL_LISTEN": f"{self.address}:{self.control_port}",
        }
        return super().environment() | listeners

    def start(self) -> "SiteGateway":
        return self.space.run(super().start)

    def call(self, *arguments, **named) -> Answer:
        return self.space.run(super().call, *arguments, **named)

    def cli(self, *arguments, **named) -> subprocess.CompletedProcess:
        return self.space.run(super().cli, *arguments, **named)

    def kill(self) -> None:
        """Ends it with no chance to say anything."""
        self.stop(signal.SIGKILL)


class Front:
    """Stands before a gateway; `tell` makes it sick."""

    def __init__(self, space: Namespace, listen: str, to: str, identities: dict[str, Path] | None = None):
        command = [TOOL, "front", "--listen", listen, "--to", to]
        for name, path in (identities or {}).items():
            command += [f"--{name.replace('_', '-')}", path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = space.popen(command, **pipes)
        self._expect("listening")

    def tell(self, fault: str) -> None:
        """`none`, `late MS`, `errors ONE_IN`, `mute`, `cut` or `wrong`; holds from now on."""
        self.process.stdin.write(fault + "\n")
        self.process.stdin.flush()
        self._expect(fault)

    def _expect(self, line: str) -> None:
        said = self.process.stdout.readline().strip()
        if said != line:
            raise RuntimeError(f"the front said `{said}` and not `{line}`")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()
