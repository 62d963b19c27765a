"""A real gateway for tests: the release binary on free ports with a data folder of its own, and the CLI beside it."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target" / "release" / "windrose"
LIBC = ctypes.CDLL(None)
# Asks this machine itself, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
START_SECONDS = 60
STOP_SECONDS = 45
# A deployment compiles and loads; on a busy machine with two cores the largest example takes a while.
CLI_SECONDS = 420


def _die_with_parent():
    """In the child, before it becomes the gateway: Linux ends it when the tests are killed (PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(condition, seconds: float, what: str, pause: float = 0.02):
    """The first true value of `condition`, asked again and again for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(pause)


def children(process: int) -> list[int]:
    """The children of a process, by all of its threads; a thread that ends while it is read has given its own to another."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass
class Gateway:
    """One gateway process. `settings` are `table.key` -> value, as the configuration names them; `under` is a command that
    the gateway's own follows."""

    folder: Path
    engine: str = "rten"
    settings: dict[str, str] = field(default_factory=dict)
    under: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.port, self.control_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.control_url = f"http://127.0.0.1:{self.control_port}"
        self.process = None
        self.log = self.folder / "gateway.log"

    def environment(self) -> dict[str, str]:
        """Settings reach the server and the CLI in the same way: by the environment."""
        settings = {
            "data.listen": f"127.0.0.1:{self.port}",
            "control.listen": f"127.0.0.1:{self.control_port}",
            "storage.dir": str(self.folder / "data"),
            "engines.default": self.engine,
        } | self.settings
        named = {f"WINDROSE_{key.upper().replace('.', '_')}": value for key, value in settings.items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WINDROSE_")}
        return kept | named | {"HOME": str(self.folder), "XDG_DATA_HOME": "", "NO_COLOR": "1"}

    def start(self) -> "Gateway":
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.under, BINARY, "serve"],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            wait_until(self.is_ready, START_SECONDS, "the gateway to be ready")
        except BaseException:
            self.stop()
            raise
        return self

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {self.process.returncode}:\n{self.tail()}")
        try:
            return self.get("/v2/health/ready").status == 200
        except OSError:
            return False

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Ends the process and waits for it; returns its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            self.process = None

    # --- over HTTP

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None, seconds=60) -> Answer:
        base = "" if path.startswith("http") else self.url
        request = urllib.request.Request(base + path, body, headers or {}, method=method)
        try:
            with DIRECT.open(request, timeout=seconds) as response:
                return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def get(self, path: str, **more) -> Answer:
        return self.call("GET", path, **more)

    def post_json(self, path: str, value, **more) -> Answer:
        return self.call("POST", path, json.dumps(value).encode(), {"content-type": "application/json"}, **more)

    def infer(self, model: str, inputs: list[dict], **rest) -> Answer:
        """An inference with JSON tensors; `rest` goes into the body."""
        return self.post_json(f"/v2/models/{model}/infer", {"inputs": inputs} | rest)

    # --- with the CLI

    def cli(self, *arguments, check: bool = True, seconds: float = CLI_SECONDS) -> subprocess.CompletedProcess:
        command = [str(BINARY), *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}")
        return done

    def deploy(self, path: Path, *more: str) -> subprocess.CompletedProcess:
        return self.cli("deploy", path, *more)

    def resident(self) -> int:
        """Bytes of memory that the process holds."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
