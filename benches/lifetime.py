"""Deploys, swaps and deletes under constant load, thousands of times, and looks for what grows.

    target/venv/bin/python benches/lifetime.py --cycles 10000 --out lifetime.png

One cycle takes one of the models in turn, a bare graph or a module with its graph. It deploys a new version, which
unversioned calls get from then on; replaces that version by other content of the same signature; and deletes the version
before. Clients in processes of their own call both models, and one that nobody touches, without a pause. Every few cycles
the gateway is measured: latency, memory, file descriptors, threads, and its folder on the disk. In turn with it the clients
call a second gateway, in which nothing is ever changed: what the machine does at the time meets both, so that the ratio of
their median latencies says what the cycles do to it.

After the first thousand cycles a line is fitted to each. The run fails when a request or a change failed, or when the slope
of anything but the absolute times, which are the machine's too, is more than three of its standard errors above zero and
would add more than two percent in the whole run.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from asking import ROOT, Client, Gateway, control_of

GRAPHS = ROOT / "models" / "test"
FP32 = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
# What the run may fail for.
JUDGED = ("ratio", "rss_mib", "fds", "threads", "disk_kib")
# What a growth of more than this share of the mean over the whole run is called, if it is no noise.
TOLERATED = 0.02


class Subject:
    """One model that lives through the cycles."""

    def __init__(self, control: Client, name: str, source: str):
        self.control, self.name = control, name
        self.manifest = control.call("GET", f"/v1/models/{source}/versions/1")["manifest"]
        self.number = 0
        self.deploy()

    def deploy(self, spare: int = 0):
        """Deploys the version of this number. Its queues are not those of the version before, nor of its replacement, so
        that the graph is loaded anew each time."""
        graphs = {name: graph | {"queue": 64 + 2 * (self.number % 8) + spare}
                  for name, graph in self.manifest["graphs"].items()}
        manifest = self.manifest | {"name": self.name, "version": str(self.number), "graphs": graphs}
        self.control.call("PUT", f"/v1/models/{self.name}/versions/{self.number}", manifest)

    def cycle(self):
        before = self.number
        self.number += 1
        self.deploy()
        self.deploy(spare=1)
        self.control.call("DELETE", f"/v1/models/{self.name}/versions/{before}")


def client(ports: list[int], requests: list[tuple[str, bytes]], queue, stopping):
    """Calls one model after the other, each at every port in turn, until it is told to stop; hands its latencies over a
    few times a second."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=120) for port in ports]
    latencies, failures, handed = [[] for _ in ports], [], time.monotonic()
    turn = 0
    while not stopping.is_set():
        at, (path, body) = turn % len(ports), requests[turn // len(ports) % len(requests)]
        connection = connections[at]
        turn += 1
        began = time.perf_counter()
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                failures.append(f"{path}: {answer.status} {content[:200]!r}")
        except OSError as error:
            failures.append(f"{path}: {error!r}")
            connection.close()
        latencies[at].append(time.perf_counter() - began)
        if time.monotonic() - handed > 0.2:
            queue.put((latencies, failures))
            latencies, failures, handed = [[] for _ in ports], [], time.monotonic()
    queue.put((latencies, failures))
    queue.close()
    queue.join_thread()


class Load:
    """Client processes, and what they have seen since it was last asked for."""

    def __init__(self, ports: list[int], requests: list[tuple[str, bytes]], clients: int):
        context = multiprocessing.get_context("spawn")
        self.queue, self.stopping = context.Queue(), context.Event()
        self.failures, self.answered, self.ports = [], 0, len(ports)
        self.clients = [
            context.Process(target=client, args=(ports, requests, self.queue, self.stopping), daemon=True)
            for _ in range(clients)
        ]
        for one in self.clients:
            one.start()

    def window(self) -> list[list[float]]:
        """Latencies at each port since the last window."""
        latencies = [[] for _ in range(self.ports)]
        while not self.queue.empty():
            some, failures = self.queue.get()
            for all_of_port, more in zip(latencies, some):
                all_of_port += more
            self.failures += failures
        self.answered += len(latencies[0])
        return latencies

    def stop(self):
        self.stopping.set()
        while any(one.is_alive() for one in self.clients):
            self.window()
            time.sleep(0.05)
        self.window()


@dataclass
class Result:
    """What was measured: a row for each sample, and what failed."""

    columns = ("cycle", "cycle_ms", "p50_us", "p99_us", "ratio", "rss_mib", "fds", "threads", "disk_kib")
    rows: list[tuple[float, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    answered: int = 0

    def column(self, name: str) -> np.ndarray:
        return np.array([row[self.columns.index(name)] for row in self.rows])

    def slope(self, name: str, after: int) -> tuple[float, float, float]:
        """Change per thousand cycles, its standard error, and the mean, from the samples after so many cycles."""
        keep = self.column("cycle") > after
        # A window in which nobody had an answer has no latency.
        keep &= np.isfinite(self.column(name))
        x, y = self.column("cycle")[keep] / 1000, self.column(name)[keep]
        if len(x) < 4:
            raise ValueError("too few samples for a line")
        centred = x - x.mean()
        slope = (centred * y).sum() / (centred**2).sum()
        rest = y - y.mean() - slope * centred
        # Neighbouring samples are alike: as if there were only as many as are independent.
        alike = float(np.clip(np.corrcoef(rest[:-1], rest[1:])[0, 1], 0, 0.99)) if rest.std() > 0 else 0.0
        error = np.sqrt((rest**2).sum() / (len(x) - 2) / (centred**2).sum() * (1 + alike) / (1 - alike))
        return float(slope), float(error), float(y.mean())

    def grows(self, name: str, after: int) -> bool:
        slope, error, mean = self.slope(name, after)
        span = (self.column("cycle").max() - after) / 1000
        return bool(slope > 3 * error and slope * span > TOLERATED * mean)


def measure(gateway: Gateway) -> tuple[float, int, int, float]:
    process = Path(f"/proc/{gateway.process.pid}")
    disk = sum(
        os.stat(os.path.join(folder, file)).st_blocks
        for folder, _, files in os.walk(gateway.folder / "data")
        for file in files
        if os.path.exists(os.path.join(folder, file))
    )
    fds, threads = (len(list((process / what).iterdir())) for what in ("fd", "task"))
    return gateway.resident() / 2**20, fds, threads, disk / 2


def subjects_of(gateway: Gateway, module: Path) -> list[Subject]:
    gateway.deploy(GRAPHS / "tiny.onnx", "--name", "bystander")
    gateway.deploy(module, "--name", "module-source")
    control = control_of(gateway)
    return [Subject(control, "graph", "bystander"), Subject(control, "module", "module-source")]


def run(gateway: Gateway, still: Gateway, module: Path, cycles: int, every: int, say=print) -> Result:
    """So many cycles of `gateway`, measured each `every`, beside one in which nothing changes. `module` is a folder that
    can be deployed, whose test is its request."""
    subjects = subjects_of(gateway, module)
    subjects_of(still, module)
    tiny = json.dumps({"inputs": [FP32]}).encode()
    own = (module / "test-input.json").read_bytes()
    requests = [(f"/v2/models/{name}/infer", body) for name, body in
                (("bystander", tiny), ("graph", tiny), ("module", own))]
    load, result = Load([gateway.port, still.port], requests, clients=2), Result()
    try:
        while not all(load.window()):
            time.sleep(0.5)
        began = time.perf_counter()
        for cycle in range(1, cycles + 1):
            subjects[cycle % 2].cycle()
            if cycle % every == 0:
                took = (time.perf_counter() - began) / every * 1000
                here, there = (latencies or [np.nan] for latencies in load.window())
                p50, p99 = np.percentile(here, (50, 99)) * 1e6
                result.rows.append((cycle, took, p50, p99, np.median(here) / np.median(there), *measure(gateway)))
                say(" ".join(f"{name}={value:.1f}" for name, value in zip(Result.columns, result.rows[-1])), flush=True)
                began = time.perf_counter()
    finally:
        load.stop()
    result.failures, result.answered = load.failures, load.answered
    return result


def plot(result: Result, after: int, out: Path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = Result.columns[1:]
    figure, axes = pyplot.subplots(len(names), 1, figsize=(9, 2 * len(names)), sharex=True)
    for axis, name in zip(axes, names):
        x, y = result.column("cycle"), result.column(name)
        axis.plot(x, y, ".", markersize=3)
        slope, error, mean = result.slope(name, after)
        keep = x > after
        axis.plot(x[keep], mean + slope * (x[keep] - x[keep].mean()) / 1000, linewidth=1)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0, top=np.nanpercentile(y, 99.5) * 1.3 + 1e-9)
        axis.set_title(f"{slope:+.3g} ± {error:.2g} per thousand cycles", fontsize=8, loc="right")
    axes[-1].set_xlabel("cycles")
    figure.suptitle(f"{int(result.column('cycle').max())} cycles, {result.answered} requests, "
                    f"{len(result.failures)} failed")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=25, help="cycles between two measurements")
    parser.add_argument("--after", type=int, default=1_000, help="cycles before the line begins")
    parser.add_argument("--engine", default="rten")
    parser.add_argument("--isolation", default="process")
    parser.add_argument("--module", type=Path, default=ROOT / "examples" / "iris")
    parser.add_argument("--out", type=Path, default=Path("lifetime.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Files that no model names are kept for a minute, not an hour: what is kept so is what the disk holds in the end.
        settings = {"engines.isolation": options.isolation, "log.filter": "warn", "storage.keep": "60s"}
        gateway, still = (Gateway(Path(folder) / name, options.engine, settings) for name in ("changing", "still"))
        try:
            result = run(gateway.start(), still.start(), options.module, options.cycles, options.every)
        finally:
            gateway.stop()
            still.stop()
    np.savetxt(options.out.with_suffix(".csv"), result.rows, delimiter=",", header=",".join(Result.columns), fmt="%.3f")
    plot(result, options.after, options.out)
    print(f"{result.answered} requests, {len(result.failures)} failed: {result.failures[:3]}")
    growing = []
    for name in Result.columns[1:]:
        slope, error, mean = result.slope(name, options.after)
        print(f"{name:10} mean {mean:10.2f}, {slope:+9.3f} ± {error:.3f} per thousand cycles")
        if name in JUDGED and result.grows(name, options.after):
            growing.append(name)
    if growing or result.failures:
        sys.exit(f"growing: {growing}; failed requests: {len(result.failures)}")


if __name__ == "__main__":
    main()
