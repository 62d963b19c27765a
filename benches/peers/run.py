#!/usr/bin/env python3
"""Windrose beside the model servers that packages give, in one run: `make bench-peers`.

    benches/peers/run.py [--rounds N] [--seconds S] [--only NAME,NAME] [--connections N,N] [--json FILE]

The same ONNX file, the same release of ONNX Runtime, one thread an instance and an instance a core for everybody; the same
work in the path of every request (servers/work.py, examples/scores). The servers run side by side and take turns under
load, which comes from a process of its own; bare ONNX Runtime, with as many instances, has its turn in every round too.
What counts is the median over the rounds, as a ratio to Windrose in the same round. The others run each request alone;
Windrose runs together as many as it has found to pay, which is printed. A server that cannot be installed or started is
reported with the reason.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from peers import ALL, FOLDER, Peer, PeerError, Windrose  # noqa: E402

OURS = Windrose.name
SHAPES = {"tiny": ("x", [1, 16]), "mobilenet": ("input", [1, 3, 224, 224])}
# Model, and whether its tensors are binary.
CASES = [("tiny", False), ("mobilenet", True), ("mobilenet", False)]
CONNECTIONS = [1, 8, 64, 256]


def values(shape: list[int]) -> list[float]:
    """Numbers with the digits that real data has; the same at every run."""
    count = 1
    for size in shape:
        count *= size
    source = random.Random(7)
    return [source.getrandbits(24) / (1 << 23) - 1 for _ in range(count)]


def body(model: str, binary: bool) -> tuple[bytes, int]:
    """The body of a request, and the length of its JSON where binary data follows."""
    import array

    name, shape = SHAPES[model]
    data = array.array("f", values(shape))
    tensor: dict = {"name": name, "shape": shape, "datatype": "FP32"}
    request: dict = {"inputs": [tensor]}
    if not binary:
        tensor["data"] = [float(f"{value:.7g}") for value in data]
        return json.dumps(request, separators=(",", ":")).encode(), 0
    tensor["parameters"] = {"binary_data_size": len(data) * 4}
    request["parameters"] = {"binary_data_output": True}
    head = json.dumps(request, separators=(",", ":")).encode()
    return head + data.tobytes(), len(head)


def request(peer: Peer, binary: bool) -> Path:
    """The whole request, in a file for the load generator."""
    content, json_length = body(peer.model, binary)
    head = [f"POST {peer.path()} HTTP/1.1", "host: bench", f"content-length: {len(content)}"]
    if json_length:
        head += [f"inference-header-content-length: {json_length}", "content-type: application/octet-stream"]
    else:
        head += ["content-type: application/json"]
    file = peer.folder / ("binary.http" if binary else "json.http")
    file.write_bytes("\r\n".join([*head, "", ""]).encode() + content)
    return file


def load(peer: Peer, file: Path, connections: int, seconds: float) -> dict[str, float]:
    """One turn: what the clients saw and what it cost the server."""
    before = peer.cpu_seconds()
    seen = peer.turn(file, connections, seconds)
    cpu_us = (peer.cpu_seconds() - before) / max(seen.count, 1) * 1e6
    # With every caller's request waiting for its turn, the last one waits for all.
    queueing = seen.p99 / (seen.callers / seen.rate * 1e6)
    shown = {"rate": seen.rate, "p50": seen.p50, "p99": seen.p99}
    return shown | {"cpu": cpu_us, "mb": peer.megabytes(), "queueing": queueing}


def turns(up: list[Peer], binary: bool, connections: int, arguments) -> dict[str, list[dict[str, float]]]:
    """Every server in turn, round by round. One that fails is left out from there."""
    files = {peer.name: request(peer, binary) for peer in up}
    seen: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in up}
    failed: set[str] = set()
    for peer in up:
        attempt(peer, failed, lambda peer=peer: load(peer, files[peer.name], connections, arguments.seconds / 3))
    for _ in range(arguments.rounds):
        for peer in up:
            if peer.name not in failed:
                run = attempt(peer, failed, lambda peer=peer: load(peer, files[peer.name], connections, arguments.seconds))
                seen[peer.name] += [run] if run else []
    return {name: runs for name, runs in seen.items() if runs and name not in failed}


def attempt(peer: Peer, failed: set[str], work):
    try:
        return work()
    except (PeerError, subprocess.TimeoutExpired) as error:
        print(f"  {peer.name}: failed under load: {error}", flush=True)
        failed.add(peer.name)
        return None


def table(title: str, batching: str, connections: int, seen: dict[str, list[dict[str, float]]]) -> list[dict]:
    """Prints medians, and their ratios to Windrose in the same round."""
    print(f"\n{title}, {connections} connections; {batching}")
    print(f"  {'':17}    req/s     x    p50 us     x    p99 us     x   CPU us     x     MB   p99 / queueing bound")
    rows, ours = [], seen.get(OURS, [])
    for name, runs in seen.items():
        row: dict = {"case": title, "connections": connections, "server": name}
        line = f"  {name:17}"
        for key, width in (("rate", 8), ("p50", 9), ("p99", 9), ("cpu", 8)):
            row[key] = statistics.median(run[key] for run in runs)
            pairs = [run[key] / our[key] for run, our in zip(runs, ours) if our[key]]
            row[f"{key}_ratio"] = statistics.median(pairs) if pairs else None
            # A run of the bare engine takes some microseconds.
            digits, ratio = (1 if key == "cpu" else 0), row[f"{key}_ratio"]
            line += f" {row[key]:{width}.{digits}f}" + (f" {ratio:5.2f}" if pairs else "     -")
        row["mb"] = statistics.median(run["mb"] for run in runs)
        row["queueing"] = statistics.median(run["queueing"] for run in runs)
        print(f"{line} {row['mb']:6.0f}   {row['queueing']:.2f}", flush=True)
        rows.append(row)
    return rows


def start(peer: Peer, content: bytes) -> None:
    """Starts a server; once more where it fails, since some give a busy machine a second for each of their steps."""
    try:
        peer.start(content)
    except PeerError:
        peer.stop()
        peer.start(content)


def times(up: list[Peer]) -> str:
    """The last one's time to its first answer, as a ratio to Windrose's."""
    ours = [peer.first_ms for peer in up if peer.name == OURS]
    return f" ({up[-1].first_ms / ours[0]:6.2f} x)" if ours else ""


def start_all(model: str, only: list[str], up: list[Peer]) -> None:
    """Starts every server that can be, one after the other, each alone while it does; what runs is in `up`."""
    for kind in ALL:
        if only and kind.name not in only:
            continue
        peer = kind(model)
        up.append(peer)
        try:
            start(peer, body(model, False)[0])
            peer.batching = peer.found_batching()
            took = f"first answer after {peer.first_ms:6.0f} ms{times(up)}, {peer.megabytes():5.0f} MB"
            print(f"  {peer.name:17} {took}", flush=True)
        except (PeerError, OSError) as error:
            up.remove(peer)
            peer.stop()
            print(f"  {peer.name:17} not measured: {error}", flush=True)


def model_section(model: str, arguments) -> list[dict]:
    rows: list[dict] = []
    print(f"\n=== {model}", flush=True)
    up: list[Peer] = []
    try:
        start_all(model, arguments.only, up)
        of = lambda peer: {"first_ms": peer.first_ms, "batching": peer.batching}  # noqa: E731
        rows += [{"case": model, "server": peer.name, **of(peer)} for peer in up]
        chosen = [f"{peer.name}: {peer.batching}" for peer in up if peer.batching]
        batching = "; ".join([*chosen, "the others run each request alone"])
        for name, binary in CASES:
            able = [peer for peer in up if peer.binary or not binary]
            for connections in arguments.connections if name == model else ():
                title = f"{model}, {'binary' if binary else 'JSON'}"
                rows += table(title, batching, connections, turns(able, binary, connections, arguments))
    finally:
        for peer in up:
            peer.stop()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of servers")
    counts = lambda text: [int(count) for count in text.split(",")]  # noqa: E731
    parser.add_argument("--connections", type=counts, default=CONNECTIONS, help="at the same time, one number or several")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [row for model in SHAPES for row in model_section(model, arguments)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
