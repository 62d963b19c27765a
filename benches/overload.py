"""Sends a gateway more than it can do, and says what becomes of it.

    target/venv/bin/python benches/overload.py

`one`: the rate at which a closed load is answered is what the gateway sustains. Open loads follow, from half of that to three
times as much: how many requests a second are answered, and in which time; which statuses the others got, how soon, and
whether with `Retry-After`; and what the generator itself took of the machine. Once as a manifest has it that says nothing of
queues, with 64 calls in flight, and once with a `queue_wait` of four runs.

`neighbour`: a quiet model, asked at a fifth of what the machine sustains, with another beside it that is flooded with three
times as much, in turns with the same while the other is not asked at all: what the flood does to the quiet one's p99. Once
with graphs of their own, once with one graph that both share; and where runs of the flood are long, of many rows or of much
to compute.

`guests`: as `neighbour`, where the flooded model's module computes for some milliseconds before its graph does.

`weights`: two models of weights 1 and 3, both flooded: how the answers are shared.

`tenants`: as `neighbour`, with one model that two tenants call; and a tenant that floods four models beside one that floods
one of them: how the answers are shared.

The graph is made here: some milliseconds of matrix products behind the sum of two tensors, so that the load generator of
`tests/lab`, which checks every answer, can ask it. It has the machine's cores before the gateway where it may (as root): a
client on another machine would not wait for the gateway's. Ends with what holds of what the gateway promises, and fails
where something does not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from asking import Gateway
from harness import BINARY, ROOT
from lab.link import TOOL
from lab.load import Record
from onnx import TensorProto, helper, numpy_helper

REFUSALS = (429, 503)
# Seconds at the begin of each load that are not counted.
SETTLING = 2
# The load generator's priority over the gateway.
NICE = -10


def graph(path: Path, layers: int, seed: int, rows: int = 64, width: int = 256):
    """The sum of two tensors, and beside it matrix products that come to nothing."""
    random = np.random.default_rng(seed)
    weights = {"w0": random.standard_normal((2, rows * width), dtype=np.float32) / 16, "shape": np.array([0, rows, width])}
    nodes = [helper.make_node("MatMul", ["a", "w0"], ["wide"]), helper.make_node("Reshape", ["wide", "shape"], ["h0"])]
    for layer in range(1, layers + 1):
        weights[f"w{layer}"] = random.standard_normal((width, width), dtype=np.float32) / 16
        nodes.append(helper.make_node("MatMul", [f"h{layer - 1}", f"w{layer}"], [f"p{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"p{layer}"], [f"h{layer}"]))
    weights |= {"zero": np.zeros(1, np.float32), "column": np.array([0, 1])}
    nodes += [
        helper.make_node("ReduceMax", [f"h{layers}"], ["most"], axes=[1, 2], keepdims=1),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["none"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Add", ["sum", "none"], ["c"]),
    ]
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "abc")
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "busy", [a, b], [c], initializers)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def first_of_all():
    """In the load generator's process, before it is that."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        pass


@dataclass
class Seen:
    """What became of an open load. Times in milliseconds."""

    asked: float
    answered: float
    p50: float
    p99: float
    refused: dict[int, int]
    refused_p50: float
    refused_p99: float
    # Of one core, over the whole load.
    generator: float
    # Refusals that say when to come back.
    told: int
    # Neither answered rightly nor refused, in words.
    failed: list[str]

    def __str__(self) -> str:
        statuses = ", ".join(f"{status} x {count}" for status, count in sorted(self.refused.items())) or "none"
        text = f"asked {self.asked:7.1f}/s  answered {self.answered:7.1f}/s  p50 {self.p50:7.1f}  p99 {self.p99:7.1f} ms"
        text += f"  refused: {statuses}, p50 {self.refused_p50:.2f}, p99 {self.refused_p99:.2f} ms"
        return f"{text}  generator {100 * self.generator:.0f}% of a core"


class Load:
    """An open load on a model, which runs from now on; a tenant's with its key."""

    def __init__(self, gateway: Gateway, model: str, rate: float, seconds: float, out: Path, key: str | None = None):
        self.out, self.rate, self.seconds = out, rate, seconds
        command = [TOOL, "load", "--target", f"127.0.0.1:{gateway.port}", "--path", f"/v2/models/{model}/infer"]
        command += ["--rate", f"{rate:.3f}", "--seconds", f"{seconds + SETTLING}", "--out", out]
        # The record has a column for one header of the answers.
        command += ["--site-header", "retry-after"]
        command += ["--header", f"authorization: Bearer {key}"] if key else []
        self.process = subprocess.Popen(command, preexec_fn=first_of_all)

    def seen(self) -> Seen:
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise RuntimeError("the load generator failed")
        record = Record(self.out)
        counted = record.sent >= record.began + SETTLING
        right = counted & (record.verdict == "right")
        refused = counted & np.isin(record.status, REFUSALS)
        odd = [at for at in np.flatnonzero(counted & ~right & ~refused)]
        statuses, counts = np.unique(record.status[refused], return_counts=True)
        times = lambda mask, q: float(np.quantile(record.ms[mask], q)) if mask.any() else float("nan")  # noqa: E731
        return Seen(
            asked=counted.sum() / self.seconds,
            answered=right.sum() / self.seconds,
            p50=times(right, 0.5),
            p99=times(right, 0.99),
            refused=dict(zip(statuses.tolist(), counts.tolist())),
            refused_p50=times(refused, 0.5),
            refused_p99=times(refused, 0.99),
            generator=(usage.ru_utime + usage.ru_stime) / (self.seconds + SETTLING),
            told=int((record.site[refused] != "").sum()),
            failed=[f"{record.verdict[at]} {record.status[at]} {record.note[at]}" for at in odd],
        )


class Bench:
    """A gateway, and what was found true or not. With tenants, a gateway that knows them."""

    def __init__(self, folder: Path, engine: str, seconds: float, rounds: int, layers: int, tenants: tuple[str, ...] = ()):
        self.folder, self.seconds, self.rounds, self.layers = folder, seconds, rounds, layers
        folder.mkdir(exist_ok=True)
        self.keys: dict[str, str] = {}
        settings = {"log.filter": "warn"}
        if tenants:
            settings["data.tenants"] = str(self.let_in(tenants))
        self.gateway = Gateway(folder / "gateway", engine, settings).start()
        self.claims: list[tuple[bool, str]] = []

    def let_in(self, tenants: tuple[str, ...]) -> Path:
        """A file of tenants with a key each."""
        file = self.folder / "tenants.toml"
        for name in tenants:
            made = subprocess.run([BINARY, "tenant", name, "--json"], check=True, capture_output=True, text=True).stdout
            self.keys[name] = json.loads(made)["key"]
            with file.open("a") as out:
                out.write(f'[[tenant]]\nname = "{name}"\nkeys = ["{json.loads(made)["sha256"]}"]\n')
        return file

    def deploy(
        self,
        name: str,
        seed: int,
        weight: int = 1,
        queue_wait_ms: int | None = None,
        together: int | None = None,
        times: int = 1,
    ):
        """A model of the graph of this seed, without a module of its own; one that computes several times as much, or as
        many rows together as is said here and not as pays."""
        project = self.folder / name
        project.mkdir()
        graph(project / "model.onnx", self.layers * times, seed)
        text = f'name = "{name}"\nweight = {weight}\n[graphs.model]\nfile = "model.onnx"\n'
        text += f'queue_wait = "{queue_wait_ms}ms"\n' if queue_wait_ms else ""
        text += f"batching = {{ max_size = {together} }}\n" if together else ""
        (project / "windrose.toml").write_text(text)
        self.gateway.deploy(project)
        batching = json.loads(self.gateway.cli("inspect", name, "--json").stdout)["loaded"]["graphs"]["model"]["batching"]
        print(f"  {name}: weight {weight}, at most {batching['max_rows']} rows together")

    def sustained(self, model: str, connections: int = 16, tenant: str | None = None) -> float:
        """Answers a second under a closed load."""
        tensors = '{"inputs":[%s]}' % ",".join(
            '{"name":"%s","datatype":"FP32","shape":[1,2],"data":[1,2]}' % name for name in "ab"
        )
        request = self.folder / "request.http"
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self.keys[tenant]}\r\n" if tenant else ""
        request.write_text(f"{head}content-length: {len(tensors)}\r\n\r\n{tensors}")
        command = [TOOL, "storm", "--address", f"127.0.0.1:{self.gateway.port}", "--request", request]
        command += ["--connections", str(connections), "--seconds", str(self.seconds)]
        subprocess.run([*command[:-1], "1"], check=True, capture_output=True, preexec_fn=first_of_all)
        done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=first_of_all)
        count, p50, p99 = done.stdout.split()
        rate = int(count) / self.seconds
        print(f"  {model}: a closed load of {connections} gets {rate:.0f}/s, p50 {int(p50) / 1e3:.1f}, p99 {int(p99) / 1e3:.1f} ms")
        return rate

    def load(self, model: str, rate: float, tenant: str | None = None) -> Load:
        out = self.folder / f"{tenant or ''}{model}.tsv"
        return Load(self.gateway, model, rate, self.seconds, out, tenant and self.keys[tenant])

    def claim(self, holds: bool, what: str):
        self.claims.append((bool(holds), what))


def one(bench: Bench):
    print("\none model, from half of what is sustained to three times as much")
    bench.deploy("busy", 1)
    sustained = bench.sustained("busy")
    flooded(bench, "busy", "64 calls in flight", sustained, (0.5, 0.9, 1.0, 1.5, 3.0))
    wait = max(1, round(4 * 1e3 / sustained))
    print(f"\nthe same, where no job is to wait longer than {wait} ms")
    bench.deploy("brief", 1, queue_wait_ms=wait)
    flooded(bench, "brief", f"a queue_wait of {wait} ms", sustained, (0.5, 0.9, 3.0))


def flooded(bench: Bench, model: str, what: str, sustained: float, shares: tuple[float, ...]):
    cores = len(os.sched_getaffinity(0))
    seen: dict[float, list[Seen]] = {share: [] for share in shares}
    for _ in range(bench.rounds):
        for share in shares:
            seen[share].append(bench.load(model, sustained * share).seen())
            print(f"  {share:3.1f} x  {seen[share][-1]}", flush=True)
    median = {share: statistics.median(one.answered for one in seen[share]) for share in shares}
    best = max(sustained, *median.values())
    generator = statistics.median(one.generator for one in seen[3.0])
    bench.claim(
        median[3.0] >= 0.9 * best,
        f"{what}: answered at three times the load: {median[3.0] / best:.2f} of the best, 0.90 wanted; "
        f"{median[3.0] / best / (1 - generator / cores):.2f} of what the generator leaves, which takes {generator:.2f} of a core",
    )
    p99 = {share: statistics.median(one.p99 for one in seen[share]) for share in shares}
    bench.claim(
        p99[3.0] <= 1.5 * p99[0.9],
        f"{what}: p99 of what is answered at three times the load: {p99[3.0]:.1f} ms, at nine tenths {p99[0.9]:.1f} ms, "
        f"at half {p99[0.5]:.1f} ms",
    )
    flood = seen[3.0]
    refused, told = sum(sum(one.refused.values()) for one in flood), sum(one.told for one in flood)
    bench.claim(told == refused > 0, f"{what}: {refused} refusals, {told} of them with Retry-After")
    late = statistics.median(one.refused_p99 for one in flood)
    early = statistics.median(one.refused_p50 for one in flood)
    bench.claim(late <= 50, f"{what}: a refusal takes {early:.2f} ms, p99 {late:.2f} ms")
    failed = [text for runs in seen.values() for one in runs for text in one.failed]
    bench.claim(not failed, f"{what}: {len(failed)} neither answered nor refused {failed[:2]}")


def neighbour(bench: Bench):
    ways = (
        ("graphs of their own", 2, 3, {}),
        ("one graph for both", 2, 2, {}),
        ("graphs of their own, and the flood's runs are of eight rows", 2, 4, {"together": 8}),
        ("one graph for both, and the flood's runs are of eight rows", 2, 2, {"together": 8}),
        ("graphs of their own, and a run of the flood takes eight times as long", 2, 5, {"times": 8}),
    )
    for number, (what, own, other, loud_is) in enumerate(ways):
        quiet, loud = (f"{name}-{number}" for name in ("quiet", "loud"))
        print(f"\na quiet model beside one that is flooded: {what}")
        bench.deploy(quiet, own)
        bench.deploy(loud, other, **loud_is)
        # What the quiet one is asked for is a fifth of what the machine sustains of it.
        sustained = bench.sustained(quiet)
        flood = bench.sustained(loud) if loud_is else sustained
        beside(bench, what, sustained, (quiet, None), (loud, None), flood)


def beside(
    bench: Bench,
    what: str,
    sustained: float,
    quiet: tuple[str, str | None],
    loud: tuple[str, str | None],
    of_flood: float | None = None,
):
    """What a flood does to who asks for a fifth of what is sustained. Each is a model, and the tenant that calls it."""
    pairs, most = [], 3 * (of_flood or sustained)
    for _ in range(bench.rounds):
        alone = bench.load(quiet[0], sustained / 5, quiet[1]).seen()
        flood = bench.load(loud[0], most, loud[1])
        beside = bench.load(quiet[0], sustained / 5, quiet[1]).seen()
        print(f"  alone   {alone}\n  flooded {beside}\n  flood   {flood.seen()}", flush=True)
        pairs.append((alone, beside))
    moved(bench, what, pairs)


def moved(bench: Bench, what: str, pairs: list[tuple[Seen, Seen]]):
    """What a flood did to the quiet one: alone, and beside it."""
    ratio = statistics.median(beside.p99 / alone.p99 for alone, beside in pairs)
    bench.claim(ratio <= 1.5, f"{what}: a flood moves the neighbour's p99 by {ratio:.2f}, 1.50 wanted")
    lost = sum(sum(beside.refused.values()) + len(beside.failed) for _, beside in pairs)
    bench.claim(lost == 0, f"{what}: {lost} of the neighbour's requests not answered")


def guests(bench: Bench):
    print("\na quiet model beside one whose module computes for some milliseconds, and that 64 clients ask without a pause")
    bench.deploy("still", 7)
    project = bench.folder / "working"
    project.mkdir()
    shutil.copy(ROOT / "models" / "test" / "identity_fp32.onnx", project / "model.onnx")
    shutil.copy(ROOT / "target" / "guests" / "hostile.wasm", project / "hostile.wasm")
    text = 'name = "working"\nmodule = "hostile.wasm"\n[graphs.model]\nfile = "model.onnx"\n'
    (project / "windrose.toml").write_text(text)
    bench.gateway.deploy(project)
    tensors = '{"parameters":{"act":"work"},"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'
    request = bench.folder / "work.http"
    head = "POST /v2/models/working/infer HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    request.write_text(f"{head}content-length: {len(tensors)}\r\n\r\n{tensors}")
    command = [TOOL, "storm", "--address", f"127.0.0.1:{bench.gateway.port}", "--request", request, "--connections", "64"]
    sustained, pairs = bench.sustained("still"), []
    for _ in range(bench.rounds):
        alone = bench.load("still", sustained / 5).seen()
        flood = [*command, "--seconds", str(bench.seconds + SETTLING)]
        flood = subprocess.Popen(flood, stdout=subprocess.PIPE, text=True, preexec_fn=first_of_all)
        beside = bench.load("still", sustained / 5).seen()
        count, p50, p99 = flood.communicate()[0].split()
        print(f"  alone   {alone}\n  flooded {beside}")
        rate = int(count) / (bench.seconds + SETTLING)
        print(f"  flood   answered {rate:.0f}/s, p50 {int(p50) / 1e3:.1f}, p99 {int(p99) / 1e3:.1f} ms", flush=True)
        pairs.append((alone, beside))
    moved(bench, "guests that compute", pairs)


def weights(bench: Bench):
    print("\ntwo models of weights 1 and 3, both flooded")
    bench.deploy("light", 4)
    bench.deploy("heavy", 5, weight=3)
    sustained = bench.sustained("heavy")
    ratios = []
    for _ in range(bench.rounds):
        loads = [bench.load(model, sustained * 3) for model in ("light", "heavy")]
        light, heavy = (load.seen() for load in loads)
        print(f"  light {light}\n  heavy {heavy}", flush=True)
        ratios.append(heavy.answered / max(light.answered, 1e-9))
    ratio = statistics.median(ratios)
    bench.claim(2.4 <= ratio <= 3.6, f"answers of weight 3 against weight 1: {ratio:.2f}")


def tenants(bench: Bench):
    print("\none model that two tenants call, one of them far too much")
    bench.deploy("shared", 6)
    sustained = bench.sustained("shared", tenant="loud")
    beside(bench, "two tenants of one model", sustained, ("shared", "quiet"), ("shared", "loud"))
    print("\na tenant that floods four models beside one that floods one of them")
    names = ["shared", *(f"further-{at}" for at in range(3))]
    for name in names[1:]:
        bench.deploy(name, 6)
    ratios = []
    for _ in range(bench.rounds):
        many = [bench.load(name, sustained * 0.75, "loud") for name in names]
        one = bench.load("shared", sustained * 3, "quiet").seen()
        many = [load.seen() for load in many]
        print("\n".join(f"  of four {seen}" for seen in many) + f"\n  of one  {one}", flush=True)
        ratios.append(sum(seen.answered for seen in many) / max(one.answered, 1e-9))
    ratio = statistics.median(ratios)
    bench.claim(0.8 <= ratio <= 1.25, f"answers of a tenant with four models against one with one: {ratio:.2f}")


PARTS = {"one": one, "neighbour": neighbour, "guests": guests, "weights": weights, "tenants": tenants}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # The default is held against the choices as a whole.
    parser.add_argument("parts", nargs="*", default=[], choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=10, help="of one load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=60, help="how much the graph computes: 12 take about a millisecond")
    arguments = parser.parse_args()
    claims = []
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            who = ("quiet", "loud") if part == "tenants" else ()
            bench = Bench(Path(folder), arguments.engine, arguments.seconds, arguments.rounds, arguments.layers, who)
            try:
                PARTS[part](bench)
            finally:
                bench.gateway.stop()
            claims += bench.claims
    print()
    for holds, what in claims:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    if not all(holds for holds, _ in claims):
        sys.exit(1)


if __name__ == "__main__":
    main()
