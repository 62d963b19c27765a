"""The servers that are compared: how each is installed, started, asked and measured."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "guest-sdk"))

from builder import environments  # noqa: E402
from builder.report import BuildError  # noqa: E402

SERVERS = HERE / "servers"
FOLDER = ROOT / "target" / "peers"
BENCH = ROOT / "target" / "release" / "windrose-bench"
WINDROSE = ROOT / "target" / "release" / "windrose"
INSTANCES = os.cpu_count() or 1
# As in servers/work.py, which is imported by the peers' own Pythons only.
GRAPHS = {"tiny": "models/tiny/model.onnx", "mobilenet": "target/models/mobilenet/model.onnx"}
# Calls of Windrose at the same time, which refuses more by default, as it does what would wait for long: the others queue
# without a bound.
CONCURRENCY, WAIT = 256, "2m"
# Seconds that a server may take to its first answer.
PATIENCE = 120
# Asks this machine itself, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PeerError(Exception):
    """Why a peer is not measured."""


@dataclass
class Turn:
    """What the clients of one turn saw: answers, those of a second, and microseconds; and how many asked at a time."""

    count: int
    rate: float
    p50: float
    p99: float
    callers: int


def python(name: str) -> Path:
    """The interpreter of the peer's own environment."""
    try:
        return environments.environment(FOLDER / name, HERE / "requirements" / f"{name}.txt") / "python"
    except BuildError as error:
        raise PeerError(f"not installed: {str(error).splitlines()[-1]}") from None


def surroundings() -> dict[str, str]:
    """The environment, without what it says of a gateway of the developer's own."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WINDROSE_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Peer:
    """One server with one model. A subclass says how it is started and where it is asked."""

    name = ""
    # Whether it takes the binary tensors of the Open Inference Protocol.
    binary = False

    def __init__(self, model: str):
        self.model, self.port = model, free_port()
        self.process: subprocess.Popen | None = None
        self.folder = FOLDER / "run" / f"{self.name}-{model}"
        # Milliseconds from the start of the process to the first answer.
        self.first_ms = 0.0
        # How it batches, where it has chosen.
        self.batching = ""

    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def prepare(self) -> None:
        """What happens before the clock runs."""

    def deploy(self) -> None:
        """What happens between the start and the first request."""

    def found_batching(self) -> str:
        """How the running server has chosen to batch, where it chooses."""
        return ""

    def given(self) -> dict[str, str]:
        """The environment of its processes."""
        given = surroundings() | {"PYTHONPATH": str(SERVERS), "PEER_MODEL": self.model, "PEER_INSTANCES": str(INSTANCES)}
        # One thread for each instance, whatever a library thinks of the machine.
        given |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # A developer's shell may ask for backtraces; a service's environment does not.
        given.pop("RUST_BACKTRACE", None)
        return given | self.environment()

    def start(self, body: bytes) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.prepare()
        given, began = self.given(), time.monotonic()
        with open(self.folder / "log.txt", "wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, env=given, stdout=log, stderr=log, start_new_session=True
            )
        self.deploy()
        self.await_answer(body, began)
        self.first_ms = (time.monotonic() - began) * 1e3

    def await_answer(self, body: bytes, began: float) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path()}", body)
        request.add_header("Content-Type", "application/json")
        said = ""
        while time.monotonic() - began < PATIENCE:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                with DIRECT.open(request, timeout=10) as response:
                    response.read()
                    return
            except urllib.error.HTTPError as error:
                said = f"{error.code}: {error.read(200).decode(errors='replace')}"
            except OSError as error:
                said = str(error)
            time.sleep(0.02)
        log = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        ended = self.process and self.process.poll()
        raise PeerError(f"no answer ({said}), exit {ended} after {time.monotonic() - began:.0f} s; its log ends: {(log or ['nothing'])[-1][:200]}")

    def turn(self, request: Path, connections: int, seconds: float) -> Turn:
        """Puts it under load for so long."""
        command = [BENCH, "--load", str(self.port), "--request", request]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 120)
        if done.returncode != 0:
            raise PeerError((done.stderr.strip().splitlines() or ["the load failed"])[0][:200])
        seen = json.loads(done.stdout)
        return Turn(seen["count"], seen["count"] / seen["seconds"], seen["p50_us"], seen["p99_us"], connections)

    def pids(self) -> list[int]:
        """The process, its session and everything beneath."""
        if self.process is None:
            return []
        mine, parents = {self.process.pid}, {}
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
            except (OSError, IndexError):
                continue
            if fields:
                parents[int(entry.name)] = int(fields[1])
                if int(fields[3]) == self.process.pid:
                    mine.add(int(entry.name))
        while more := {pid for pid, parent in parents.items() if parent in mine and pid not in mine}:
            mine |= more
        return sorted(mine & parents.keys())

    def cpu_seconds(self) -> float:
        total = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
            except (OSError, IndexError):
                continue
        return total / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Resident memory, what its processes share counted once."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except OSError:
                continue
        return total * 1024 / 1e6

    def stop(self) -> None:
        """Ends what was started, politely first."""
        pids = self.pids()
        for how, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for pid in pids:
                try:
                    os.kill(pid, how)
                except ProcessLookupError:
                    continue
            ends = time.monotonic() + patience
            while time.monotonic() < ends and any(alive(pid) for pid in pids):
                if self.process is not None:
                    self.process.poll()
                time.sleep(0.05)
        self.process = None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


class Windrose(Peer):
    """With the module `scores` in the path of every request, each in a fresh sandbox, on ONNX Runtime."""

    name = "windrose"
    binary = True

    def prepare(self):
        self.control = free_port()
        lines = [f'name = "{self.model}"', f'module = "{ROOT}/target/guests/scores.wasm"', "[graphs.model]"]
        lines += [f'file = "{ROOT}/{GRAPHS[self.model]}"', f"queue = {CONCURRENCY}", f'queue_wait = "{WAIT}"']
        lines += ["[limits]", f"concurrency = {CONCURRENCY}"]
        (self.folder / "windrose.toml").write_text("\n".join(lines))

    def command(self):
        listen = ["--listen", f"127.0.0.1:{self.port}", "--control-listen", f"127.0.0.1:{self.control}"]
        return [WINDROSE, "serve", *listen, "--engine", "onnxruntime"]

    def environment(self):
        return {"WINDROSE_STORAGE_DIR": str(self.folder / "data")}

    def deploy(self):
        command = [WINDROSE, "deploy", self.folder, "--control", f"http://127.0.0.1:{self.control}"]
        for _ in range(100):
            done = subprocess.run(command, cwd=ROOT, env=surroundings() | self.environment(), capture_output=True)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        raise PeerError(f"deploy: {done.stderr.decode(errors='replace').strip()[-300:]}")

    def found_batching(self):
        """The manifest says nothing of batches, so that they are as the gateway has found that they pay."""
        command = [WINDROSE, "inspect", self.model, "--json", "--control", f"http://127.0.0.1:{self.control}"]
        given = surroundings() | self.environment()
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
        if done.returncode != 0:
            raise PeerError(f"inspect: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout)["loaded"]["graphs"]["model"]["batching"]
        rows, why = found["max_rows"], found["alone_because"]
        return f"batching = auto: at most {rows} rows together" + (f" ({why})" if rows == 1 and why else "")


class Hyper(Peer):
    """The floor of any HTTP server in Rust: reads the request, answers with a constant."""

    name = "bare hyper"
    binary = True

    def command(self):
        return [BENCH, "--floor", "200", "--floor-port", str(self.port)]


class OnnxRuntime(Peer):
    """The floor of what serves with ONNX Runtime: as many instances as the peers have, each asked by a loop in its own
    process. More connections than instances are no more callers: nobody waits in it."""

    name = "bare ONNX Runtime"
    binary = True

    def __init__(self, model: str):
        super().__init__(model)
        self.instances: list[subprocess.Popen] = []

    def prepare(self):
        self.program = python(LitServe.name)

    def start(self, body):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.prepare()
        given, began = self.given(), time.monotonic()
        with open(self.folder / "log.txt", "wb") as log:
            for _ in range(INSTANCES):
                command = [self.program, SERVERS / "work.py", self.model]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                self.instances.append(
                    subprocess.Popen(command, cwd=ROOT, env=given, text=True, start_new_session=True, **pipes)
                )
        for one in self.instances:
            self.said(one)
        self.first_ms = (time.monotonic() - began) * 1e3

    def said(self, instance: subprocess.Popen) -> dict:
        """The next line of an instance."""
        line = instance.stdout.readline()
        if not line:
            log = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise PeerError(f"it has ended; its log ends: {(log or ['nothing'])[-1][:200]}")
        return json.loads(line)

    def turn(self, request, connections, seconds):
        asked = self.instances[:connections]
        try:
            for one in asked:
                one.stdin.write(f"{seconds}\n")
                one.stdin.flush()
        except OSError as error:
            raise PeerError(f"it has ended: {error}") from None
        seen = [self.said(one) for one in asked]
        # They do the same, each for as long as the others.
        count, rate = (sum(one[key] for one in seen) for key in ("count", "rate"))
        p50, p99 = statistics.median(one["p50"] for one in seen), max(one["p99"] for one in seen)
        return Turn(count, rate, p50, p99, len(asked))

    def pids(self):
        return [one.pid for one in self.instances if one.poll() is None]

    def stop(self):
        for one in self.instances:
            one.kill()
            one.communicate()
        self.instances = []


class MlServer(Peer):
    name = "mlserver"

    def prepare(self):
        ports = {"http_port": self.port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "debug": False, "parallel_workers": INSTANCES, **ports}
        settings["metrics_dir"] = str(self.folder / "metrics")
        model = {"name": self.model, "implementation": "mlserver_model.Scores"}
        (self.folder / "settings.json").write_text(json.dumps(settings))
        (self.folder / "model-settings.json").write_text(json.dumps(model))
        self.program = python(self.name).with_name("mlserver")

    def command(self):
        return [self.program, "start", self.folder]


class LitServe(Peer):
    name = "litserve"

    def prepare(self):
        self.program = python(self.name)

    def path(self):
        return "/predict"

    def command(self):
        return [self.program, SERVERS / "litserve_server.py", self.model, str(self.port)]


class BentoMl(Peer):
    name = "bentoml"

    def prepare(self):
        self.program = python(self.name).with_name("bentoml")
        (self.folder / "bentoml.yaml").write_text("api_server:\n  logging:\n    access:\n      enabled: false\n")

    def path(self):
        return "/infer"

    def command(self):
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [self.program, "serve", "bentoml_service:Scores", "--working-dir", SERVERS, *listen]

    def environment(self):
        config = str(self.folder / "bentoml.yaml")
        return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(self.folder), "BENTOML_CONFIG": config}


class PyTriton(Peer):
    name = "pytriton"
    binary = True

    def prepare(self):
        self.program = python(self.name)

    def command(self):
        return [self.program, SERVERS / "pytriton_server.py", self.model, str(self.port)]

    def environment(self):
        """Its backend brings an interpreter of its own and takes the standard library of ours, which fails where their
        releases differ; so it is given our interpreter, where that is a library."""
        ask = "import os, sysconfig as s; print(os.path.join(s.get_config_var('LIBDIR'), s.get_config_var('INSTSONAME')))"
        library = Path(subprocess.run([self.program, "-c", ask], capture_output=True, text=True).stdout.strip())
        return {"LD_PRELOAD": str(library)} if ".so" in library.name and library.is_file() else {}


# Windrose is first: the others' ratios are to it.
ALL = [Windrose, Hyper, OnnxRuntime, MlServer, LitServe, BentoMl, PyTriton]


if __name__ == "__main__":
    # Installs the servers of these names, for those who want to start them.
    try:
        for name in sys.argv[1:]:
            python(name)
    except PeerError as error:
        sys.exit(f"error: {error}")
