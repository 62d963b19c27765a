"""Deploys thousands of models, and says what each of them costs.

    target/venv/bin/python benches/many_models.py --models 2000

`same`: they share one module and one graph. It prints how long the deployments took, what an idle model adds to the
gateway's memory, how many copies of the weights the gateway holds, how long a restart takes until every model answers, and
the latency of each model's first request after it. The graph is made here: a matrix product whose weights (--weights, MiB)
are large enough for a second copy to be seen. With `--isolation child` the graph is in a child process, and the memory of
that is printed while it is idle: its proportional share (PSS) of what it has in common with the gateway.

`different`: each has a module of its own, the built-in one with another digest, on a gateway with a budget for modules
(--budget; by default no idle one stays in memory): what an idle model adds, and the latency of a request after all others.

`real`: examples on a gateway where no idle module stays in memory, each asked after it has left, beside the same on a gateway
where it stays. The floor of loading a module, bare wasmtime's, is printed by `windrose-bench sandbox`.

Ends with what holds of what the gateway promises, and fails where something does not.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from asking import ROOT, Client, Gateway, control_of, quantile
from contents import another_module
from harness import children
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
# What the gateway promises: of an idle model beyond its code, bytes; of the first request to a module that left, ms;
# and of the memory of one graph's weights, whoever has it, in copies: two of them, or one and its file, are more.
IDLE, BACK, COPIES = 100_000, 5.0, 1.5


class Claims:
    """What was found true or not."""

    def __init__(self):
        self.all: list[tuple[bool, str]] = []

    def claim(self, holds: bool, what: str):
        self.all.append((bool(holds), what))

    def idle(self, bytes_each: float, what: str):
        wanted = f"less than {IDLE / 1e3:.0f} wanted"
        self.claim(bytes_each < IDLE, f"{what}: an idle model takes {bytes_each / 1e3:.1f} KB, {wanted}")


def graph(path: Path, mebibytes: int):
    """One row times a wide matrix, of which the largest product is returned."""
    columns = (mebibytes << 20) // (4 * WIDTH)
    weights = np.random.default_rng(1).standard_normal((WIDTH, columns), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["all"]),
        helper.make_node("ReduceMax", ["all"], ["y"], axes=[1], keepdims=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    made = helper.make_graph(nodes, "wide", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def first_requests(gateway: Gateway, names: list[str]) -> list[float]:
    """Milliseconds of one request to each model, one after the other."""
    client = Client(gateway.port)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [0.5] * WIDTH}]}
    times = []
    for name in names:
        began = time.perf_counter()
        client.call("POST", f"/v2/models/{name}/infer", body)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def idle_children(gateway: Gateway) -> list[int]:
    """The proportional share of memory of each child, bytes."""
    rollups = [Path(f"/proc/{child}/smaps_rollup").read_text() for child in children(gateway.process.pid)]
    lines = [line.split() for rollup in rollups for line in rollup.splitlines() if line.startswith("Pss:")]
    return [int(kibibytes) << 10 for _, kibibytes, _ in lines]


def same(models: int, weights: int, isolation: str, folder: Path, claims: Claims):
    graph(folder / "wide.onnx", weights)
    size = (folder / "wide.onnx").stat().st_size
    settings = {"engines.default": "rten", "engines.isolation": isolation}
    gateway = Gateway(folder / "gateway", settings=settings).start()
    before = gateway.resident()
    gateway.deploy(folder / "wide.onnx", "--name", "m0")
    first_requests(gateway, ["m0"])
    one = gateway.resident()
    for share in idle_children(gateway):
        print(f"an idle child with a graph of {weights} MiB, MiB: {share / 2**20:.1f}")
    control = control_of(gateway)
    manifest = control.call("GET", "/v1/models/m0/versions/1")["manifest"]
    names, took = [f"m{number}" for number in range(models)], []
    tenth = max(1, models // 10)
    for name in names[1:]:
        began = time.perf_counter()
        control.call("PUT", f"/v1/models/{name}/versions/1", manifest | {"name": name})
        took.append(1e3 * (time.perf_counter() - began))
        if len(took) == tenth:
            # What loading the first one took for a moment is given back by now.
            first_requests(gateway, names[:tenth])
            some = gateway.resident()
    every = first_requests(gateway, names)
    all_of_them = gateway.resident()
    print(f"{models} models, one module, one graph of {weights} MiB")
    print(f"deploying one more, ms: first tenth {statistics.median(took[:tenth]):.1f}, "
          f"last tenth {statistics.median(took[-tenth:]):.1f}; all of them {sum(took) / 1e3:.1f} s")
    print(f"memory, MiB: empty {before / 2**20:.0f}, one model {one / 2**20:.0f}, a tenth of them {some / 2**20:.0f}, "
          f"all {all_of_them / 2**20:.0f}; each after the first tenth {(all_of_them - some) / 1024 / (models - tenth):.1f} KiB")
    each = (all_of_them - some) / (models - tenth)
    # What is not the models'.
    copies = (all_of_them - before - models * each) / size
    held = control.metric("windrose_memory_bytes", "weights") / size
    print(f"copies of the weights: {held:.2f} by the gateway's own count, "
          f"{copies:.2f} by its memory without the models'")
    what = "one module and one graph"
    claims.idle(each, what)
    claims.claim(held == 1, f"{what}: the weights are loaded once, {held:.2f} by the gateway's own count")
    claims.claim(copies < COPIES, f"{what}: memory of {copies:.2f} copies of the weights, less than {COPIES} wanted")
    print(f"first request, ms: median {statistics.median(every):.2f}, p99 {quantile(every, 0.99):.2f}")
    gateway.stop()
    began = time.monotonic()
    gateway.start()
    print(f"restart until all are ready: {time.monotonic() - began:.1f} s")
    again = first_requests(gateway, names)
    print(f"first request after it, ms: median {statistics.median(again):.2f}, p99 {quantile(again, 0.99):.2f}, "
          f"largest {max(again):.2f}; memory {gateway.resident() / 2**20:.0f} MiB")
    gateway.stop()


def different(models: int, budget: str, folder: Path, claims: Claims):
    module = (ROOT / "gateway" / "sandbox" / "passthrough" / "passthrough.wasm").read_bytes()
    graph(folder / "small.onnx", 1)
    settings = {"engines.default": "rten", "memory.modules": budget}
    gateway = Gateway(folder / "different", settings=settings).start()
    control = control_of(gateway)
    weights = control.upload((folder / "small.onnx").read_bytes())
    names, began, tenth = [f"m{number}" for number in range(models)], time.monotonic(), max(1, models // 10)
    for number, name in enumerate(names):
        digest = control.upload(another_module(module, number))
        manifest = {"name": name, "version": "1", "module": digest, "graphs": {"model": {"digest": weights}}}
        control.call("PUT", f"/v1/models/{name}/versions/1", manifest)
        if number + 1 == tenth:
            first_requests(gateway, names[:tenth])
            some, code_then = gateway.resident(), control.metric("windrose_memory_bytes", "modules")
    print(f"\n{models} models, each with a module of its own, of which {budget} may be in memory; "
          f"deployed in {time.monotonic() - began:.1f} s")
    first = first_requests(gateway, names)
    known = control.metric("windrose_memory_reloads_total", "modules")
    later = first_requests(gateway, names)
    came = control.metric("windrose_memory_reloads_total", "modules") - known
    now, code_now = gateway.resident(), control.metric("windrose_memory_bytes", "modules")
    added = (now - some) / 1024 / (models - tenth)
    code = statistics.median(path.stat().st_size for path in (gateway.folder / "data" / "cache").iterdir()) / 1024
    kept = sum(control.call("GET", f"/v1/models/{name}/versions/1")["loaded"]["module_resident"] for name in names)
    print(f"memory, MiB: {gateway.resident() / 2**20:.0f}; each after the first tenth {added:.1f} KiB; "
          f"{kept} modules of {code:.0f} KiB of code are in memory")
    for what, times in (("first request", first), ("next request, all others between", later)):
        print(f"{what}, ms: median {statistics.median(times):.2f}, p99 {quantile(times, 0.99):.2f}, largest {max(times):.2f}")
    claims.idle((now - code_now - some + code_then) / (models - tenth), "a module each")
    median = statistics.median(later)
    claims.claim(
        # Where some may stay, not all come back.
        median < BACK and (came == models or budget != "1"),
        f"a module each: {came} of {models} requests brought it back, median {median:.2f} ms, less than {BACK} wanted",
    )
    gateway.stop()


def real(folder: Path, claims: Claims, turns: int = 25):
    """The gateways take turns; an idle module of the second has left memory before it is asked."""
    print("\nrequest to an example whose module is in memory, and after it has left, ms")
    gateways = [
        Gateway(folder / name, settings={"engines.default": "rten", "memory.modules": budget}).start()
        for name, budget in (("stays", "2GiB"), ("leaves", "1"))
    ]
    for example in ("iris", "embed", "magika", "python-iris"):
        known = set((gateways[1].folder / "data" / "cache").glob("*"))
        for gateway in gateways:
            gateway.deploy(ROOT / "examples" / example)
        (entry,) = set((gateways[1].folder / "data" / "cache").glob("*")) - known
        body = (ROOT / "examples" / example / "test-input.json").read_bytes()
        clients = [Client(gateway.port) for gateway in gateways]
        times = [[], []]
        for _ in range(turns):
            for client, kept in zip(clients, times):
                # Idle modules leave a moment after their call.
                time.sleep(0.05)
                began = time.perf_counter()
                client.send("POST", f"/v2/models/{example}/infer", body)
                kept.append(1e3 * (time.perf_counter() - began))
        stays, leaves = (statistics.median(kept[1:]) for kept in times)
        print(f"  {example:12} {entry.stat().st_size / 2**20:6.2f} MiB of code  in memory {stays:7.2f}  "
              f"left {leaves:7.2f}, largest {max(times[1][1:]):7.2f}  adds {leaves - stays:7.2f}")
        # One whose own work takes longer is not judged for that.
        own = stays if stays >= BACK else 0
        claims.claim(
            leaves - own < BACK,
            f"{example}: a request after it has left takes {leaves:.2f} ms, {stays:.2f} while it stays, less than "
            f"{'that and ' if own else ''}{BACK} wanted",
        )
    for gateway in gateways:
        gateway.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["same", "different", "real"], help="same, different, real")
    parser.add_argument("--models", type=int, default=2000, help="at least 20")
    parser.add_argument("--weights", type=int, default=64, metavar="MIB")
    parser.add_argument("--isolation", choices=("process", "child"), default="process", help="of the graph of `same`")
    parser.add_argument("--budget", default="1", metavar="BYTES", help="of `different`, as `memory.modules` takes it")
    arguments = parser.parse_args()
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if "same" in arguments.parts:
            same(arguments.models, arguments.weights, arguments.isolation, folder, claims)
        if "different" in arguments.parts:
            different(arguments.models, arguments.budget, folder, claims)
        if "real" in arguments.parts:
            real(folder, claims)
    print()
    for holds, what in claims.all:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    if not all(holds for holds, _ in claims.all):
        sys.exit(1)


if __name__ == "__main__":
    main()
