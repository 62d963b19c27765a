"""Deploys, swaps and deletes under constant load, thousands of times, and looks for what grows.

    target/venv/bin/python benches/lifetime.py --cycles 10000 --out lifetime.png

One cycle takes one of the models in turn, a bare graph or a module with its graph. It deploys a new version, which
unversioned calls get from then on; replaces that version by other content of the same signature; and deletes the version
before. Graphs and modules of the same digest are shared, so that each model goes through a few of each, and nothing
else has those: every deployment loads its graph and its module, and every replacement and deletion lets some go.
Clients in processes of their own call both models, and one that nobody touches, without a pause.

Every few cycles the gateway is measured, and the processes that it runs graphs in with it: latency, memory, file
descriptors, threads, processes, its folder on the disk, and what it counts of weights and modules in memory. The two
cycles at that time must have loaded what they deployed, and be rid of what they replaced and deleted. In turn with it
the clients call a second gateway, in which nothing is ever changed: what the machine does at the time meets both, so
that the ratios of their latencies, of the median and of p99, say what the cycles do to it.

After the first thousand cycles a line is fitted to each. The run fails when a request or a change failed, when
something was not loaded or did not leave, or when the slope of what is judged is more than three of its standard errors
above zero and would add more than two percent in the whole run. Not judged are absolute times, which are the machine's
too, and what the clock has not yet removed from the disk, which is as much as the machine is fast.
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
from asking import ROOT, Client, Gateway, Refused, control_of
from contents import another_graph, another_module
from harness import children, wait_until

GRAPHS = ROOT / "models" / "test"
FP32 = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
# What is measured at the gateway, and what of that the run may fail for. All that is on the disk is as much as the last
# seconds have left, more when the machine is faster: it is plotted, and judged is what is older.
MEASURED = ("rss_mib", "fds", "threads", "children", "disk_kib", "old_disk_kib", "weights_kib", "modules_kib")
JUDGED = {"p50_ratio", "p99_ratio", *MEASURED} - {"disk_kib"}
# What a growth of more than this share of the mean over the whole run is called, if it is no noise.
TOLERATED = 0.02
# Contents of each model. A cycle deploys the two that are not there: a cycle of the other model was between.
CONTENTS = 3
# Seconds that files stay which no model names, and revisions that stay: what some hundred cycles leave, so that the
# disk holds as much as it ever will before the line begins.
KEEP, REVISIONS = 8, 100
# Seconds after which what was to go has gone: the gateway looks for it with each deletion, and each second.
GONE = KEEP + 5
# Seconds until a new version's threads can be seen.
STARTING = 2
# Seconds until what was replaced or deleted has left: calls that still run on it take a moment.
LEAVING = 30


class Subject:
    """One model that lives through the cycles."""

    def __init__(self, gateway: Gateway, name: str, source: str):
        """Made as the version 1 of `source`, whose own digests are left to that."""
        self.control, self.name, self.number, self.turn = control_of(gateway), name, 0, 0
        self.manifest = self.control.call("GET", f"/v1/models/{source}/versions/1")["manifest"]
        blobs = gateway.folder / "data" / "store" / "blobs" / "sha256"
        graphs = {name: (blobs / graph["digest"]).read_bytes() for name, graph in self.manifest["graphs"].items()}
        self.has_module = "module" in self.manifest
        module = (blobs / self.manifest["module"]).read_bytes() if self.has_module else b""
        self.contents = [
            (another_module(module, number), {name: another_graph(graph, number) for name, graph in graphs.items()})
            for number in range(1, CONTENTS + 1)
        ]
        self.deploy()

    def deploy(self):
        """Deploys the version of this number, with the content whose turn it is."""
        content = self.contents[self.turn % CONTENTS]
        self.turn += 1
        for left in reversed(range(5)):
            try:
                return self.put(*content)
            except Refused as refused:
                # What nobody names is removed by the clock, even between its upload and this.
                if refused.status != 409 or not left:
                    raise

    def put(self, module: bytes, graphs: dict[str, bytes]):
        entries = {name: self.manifest["graphs"][name] | {"digest": self.control.upload(content)}
                   for name, content in graphs.items()}
        manifest = self.manifest | {"name": self.name, "version": str(self.number), "graphs": entries}
        if self.has_module:
            manifest["module"] = self.control.upload(module)
        self.control.call("PUT", f"/v1/models/{self.name}/versions/{self.number}", manifest)

    def cycle(self, between=lambda: None):
        """`between` is called while the old version and the new one are there."""
        before = self.number
        self.number += 1
        self.deploy()
        self.deploy()
        between()
        self.control.call("DELETE", f"/v1/models/{self.name}/versions/{before}")


@dataclass
class Loaded:
    """What a gateway has loaded: bytes of weights and modules as it counts them, the threads that own sessions, and the
    processes that graphs run in."""

    weights: int
    modules: int
    workers: set[int]
    children: list[int]

    @classmethod
    def of(cls, gateway: Gateway, control: Client) -> "Loaded":
        weights, modules = (control.metric("windrose_memory_bytes", kind) for kind in ("weights", "modules"))
        return cls(weights, modules, workers(gateway), children(gateway.process.pid))


def workers(gateway: Gateway) -> set[int]:
    found = set()
    for task in Path(f"/proc/{gateway.process.pid}/task").iterdir():
        try:
            name = (task / "comm").read_text()
        except OSError:
            continue
        if "-work-" in name or "-now-" in name:
            found.add(int(task.name))
    return found


def proven(gateway: Gateway, control: Client, subject: Subject, rest: Loaded) -> str | None:
    """A cycle of this model, and what of its content was not loaded or has not left. `rest` is what is loaded between
    two cycles."""
    before, seen = workers(gateway), []

    def look():
        # A thread has its name a moment after it has started.
        end = time.monotonic() + STARTING
        while not workers(gateway) - before and time.monotonic() < end:
            time.sleep(0.02)
        seen.append(Loaded.of(gateway, control))

    subject.cycle(look)
    both = seen[0]
    new = both.workers - before
    kinds = ("weights", "modules") if subject.has_module else ("weights",)
    more = {kind: getattr(both, kind) - getattr(rest, kind) for kind in kinds}
    if not new or min(more.values()) <= 0:
        return f"{subject.name}: a new version loaded nothing: {len(new)} threads, {more} bytes"

    def has_left() -> bool:
        now = Loaded.of(gateway, control)
        # All contents of a model are as large; less than half of one is none.
        less = all(2 * (getattr(now, kind) - getattr(rest, kind)) < more[kind] for kind in kinds)
        return less and len(now.workers) <= len(rest.workers) and len(now.children) <= len(rest.children)

    try:
        wait_until(has_left, LEAVING, "the old version to leave")
    except TimeoutError:
        return f"{subject.name}: an old version has not left: at rest {rest}, now {Loaded.of(gateway, control)}"
    return None


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
    """What was measured: a row for each sample; requests that failed; and what was not loaded or has not left."""

    columns = ("cycle", "cycle_ms", "p50_us", "p99_us", "p50_ratio", "p99_ratio", *MEASURED)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stayed: list[str] = field(default_factory=list)
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


def measure(gateway: Gateway, control: Client) -> tuple[float, ...]:
    """What [`MEASURED`] names, of the gateway and its children together."""
    pages = fds = threads = 0
    loaded = Loaded.of(gateway, control)
    for process in (Path(f"/proc/{pid}") for pid in (gateway.process.pid, *loaded.children)):
        try:
            pages += int((process / "statm").read_text().split()[1])
            fds += len(list((process / "fd").iterdir()))
            threads += len(list((process / "task").iterdir()))
        except OSError:
            # A child has ended meanwhile.
            continue
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    memory = (loaded.weights / 1024, loaded.modules / 1024)
    return resident, fds, threads, len(loaded.children), *disk(gateway), *memory


def disk(gateway: Gateway) -> tuple[float, float]:
    """KiB of the gateway's folder, and of what is there for longer than anything stays that no model names."""
    all_of_it, old, now = 0, 0, time.time()
    for folder, _, files in os.walk(gateway.folder / "data"):
        for file in files:
            try:
                about = os.stat(os.path.join(folder, file))
            except OSError:
                continue
            all_of_it += about.st_blocks
            old += about.st_blocks if about.st_mtime < now - GONE else 0
    return all_of_it / 2, old / 2


def subjects_of(gateway: Gateway, module: Path) -> list[Subject]:
    gateway.deploy(GRAPHS / "tiny.onnx", "--name", "bystander")
    gateway.deploy(module, "--name", "module-source")
    return [Subject(gateway, "graph", "bystander"), Subject(gateway, "module", "module-source")]


def run(gateway: Gateway, still: Gateway, module: Path, cycles: int, every: int, say=print) -> Result:
    """So many cycles of `gateway`, measured each `every`, beside one in which nothing changes. `module` is a folder that
    can be deployed, whose test is its request."""
    subjects = subjects_of(gateway, module)
    subjects_of(still, module)
    tiny = json.dumps({"inputs": [FP32]}).encode()
    own = (module / "test-input.json").read_bytes()
    requests = [(f"/v2/models/{name}/infer", body) for name, body in
                (("bystander", tiny), ("graph", tiny), ("module", own))]
    control, result = control_of(gateway), Result()
    load = Load([gateway.port, still.port], requests, clients=2)
    try:
        while not all(load.window()):
            time.sleep(0.5)
        rest = Loaded.of(gateway, control)
        began = time.perf_counter()
        for cycle in range(1, cycles + 1):
            subject = subjects[cycle % 2]
            # The last cycle of each model before it is measured.
            if cycle % every not in (0, every - 1):
                subject.cycle()
            elif said := proven(gateway, control, subject, rest):
                result.stayed.append(f"cycle {cycle}, {said}")
            if cycle % every == 0:
                took = (time.perf_counter() - began) / every * 1000
                here, there = (np.percentile(latencies or [np.nan], (50, 99)) * 1e6 for latencies in load.window())
                result.rows.append((cycle, took, *here, *(here / there), *measure(gateway, control)))
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
    parser.add_argument("--engine", default="rten", choices=["rten", "onnxruntime"])
    parser.add_argument("--isolation", default="process", choices=["process", "child"], help="where graphs run")
    parser.add_argument("--module", type=Path, default=ROOT / "examples" / "iris")
    parser.add_argument("--out", type=Path, default=Path("lifetime.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"engines.isolation": options.isolation, "log.filter": "warn"}
        # Compiled modules go as soon as files, so that each content of the module is compiled in a child process again
        # every few seconds, as at its first deployment.
        settings |= {"storage.keep": f"{KEEP}s", "storage.revisions": str(REVISIONS)}
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
    if growing or result.failures or result.stayed:
        failed = f"failed requests: {len(result.failures)}; not loaded, or not gone: {result.stayed[:3]}"
        sys.exit(f"growing: {growing}; {failed}")


if __name__ == "__main__":
    main()
