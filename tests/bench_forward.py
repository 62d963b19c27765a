#!/usr/bin/env python3
"""What forwarding a request costs: `make bench-forward`.

One gateway serves; clients ask it over each forwarder in turn, all on loopback. Prints the processor time that the
forwarder itself used for a request, and what it added to the median of asking the gateway directly in the same round. They
take turns, since the machine is shared, and the median of the rounds counts.

`windrose` is a gateway that serves no model itself, as it is by default: it chooses a site and sends the request on over
HTTP/2 and TLS with certificates on both sides. `plain` is another, to which the same server is a foreign one over
HTTP/1.1 without TLS, as it is to the others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fleet import Fleet  # noqa: E402
from harness import ROOT, free_ports, wait_until  # noqa: E402
from lab import proxies  # noqa: E402
from lab.link import TOOL  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
LARGE = 600_000
# By name: the graph behind it.
MODELS = {"add": "add_fp32.onnx", "copy": "identity_uint8.onnx"}


def request(path: str, body: bytes, headers: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: models.lab\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def small_body() -> bytes:
    tensor = '{"name":"%s","datatype":"FP32","shape":[1,2],"data":[1.5,%d]}'
    body = '{"inputs":[' + tensor % ("a", 1) + "," + tensor % ("b", 2) + "]}"
    return body.encode().ljust(200)


def small_request() -> bytes:
    return request("/v2/models/add/infer", small_body(), "content-type: application/json\r\n")


def large_request() -> bytes:
    head = (
        '{"inputs":[{"name":"x","datatype":"UINT8","shape":[%d],"parameters":{"binary_data_size":%d}}],'
        '"outputs":[{"name":"y","parameters":{"binary_data":true}}]}' % (LARGE, LARGE)
    ).encode()
    headers = f"content-type: application/octet-stream\r\ninference-header-content-length: {len(head)}\r\n"
    return request("/v2/models/copy/infer", head + bytes(LARGE), headers)


def cpu_seconds(pid: int) -> float:
    """What a process with all of its threads has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Way:
    """One way to the gateway. `process` is the one whose time counts; there is none for the direct way."""

    def __init__(self, name: str, port: int, process: subprocess.Popen | None):
        self.name, self.port, self.process = name, port, process

    def measure(self, request: Path, connections: int, seconds: float) -> tuple[float, float]:
        """Microseconds of processor time for a request, and the median that a client sees."""
        before = cpu_seconds(self.process.pid) if self.process else 0
        command = [TOOL, "storm", "--address", f"127.0.0.1:{self.port}", "--request", request]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {done.stderr}")
        count, median, _ = map(int, done.stdout.split())
        used = cpu_seconds(self.process.pid) - before if self.process else 0
        return used * 1e6 / count, median


def start(name: str, folder: Path, port: int, backend: int) -> Way:
    """Starts one of the others, as it forwards to one server and nothing more."""
    to = [proxies.Backend("backend", "127.0.0.1", backend)]
    parts = proxies.command(name, False, folder, ["127.0.0.1"], port, to)
    return Way(name, port, subprocess.Popen([str(part) for part in parts]))


def our_ways(fleet: Fleet, foreign: Fleet) -> list[Way]:
    """Starts a gateway that serves, and two that forward to it: one as its peer, and one to which it is foreign."""
    serves = fleet.start("serves")
    for model, graph in MODELS.items():
        serves.deploy(ROOT / "models" / "test" / graph, "--name", model)
    foreign.write(
        f'[[site]]\nname = "serves"\nkind = "oip"\nplain = true\naddresses = ["127.0.0.1:{serves.port}"]\n'
        f"repeatable = true\nmodels = {list(MODELS)}\n"
    )
    ways = [Way("direct", serves.port, None)]
    for name, entry in (("windrose", fleet.start("entry")), ("plain", foreign.start("entry"))):
        for model in MODELS:
            wait_until(lambda: entry.get(f"/v2/models/{model}/ready").status == 200, 30, f"{model} over {name}")
        ways.append(Way(name, entry.port, entry.process))
    return ways


def report(title: str, ways: list[Way], request: Path, connections: int, arguments) -> None:
    rounds = {way.name: [] for way in ways}
    for turn in range(arguments.rounds):
        # Whoever comes first in one round comes last in another.
        first = turn % len(ways)
        for way in ways[first:] + ways[:first]:
            rounds[way.name].append(way.measure(request, connections, arguments.seconds))
    print(f"\n{title}, {connections} at a time")
    print(f"{'':12} {'CPU us':>8} {'median us':>10} {'added us':>9} {'our CPU / its':>14}")
    for name, measured in rounds.items():
        cpu, median = (statistics.median(values) for values in zip(*measured))
        added = statistics.median(one[1] - direct[1] for one, direct in zip(measured, rounds["direct"]))
        ratio = ""
        if name != "direct":
            ratio = f"{statistics.median(ours[0] / one[0] for one, ours in zip(measured, rounds['windrose'])):.2f}"
        print(f"{name:12} {cpu:8.1f} {median:10.0f} {added:9.0f} {ratio:>14}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--others", default="envoy,haproxy,nginx", help="proxies to compare with; none where empty")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "small").write_bytes(small_request())
        (folder / "large").write_bytes(large_request())
        fleet, foreign = Fleet(folder / "fleet", ["entry", "serves"]), Fleet(folder / "foreign", ["entry"])
        others = []
        try:
            ways = our_ways(fleet, foreign)
            for name in filter(None, arguments.others.split(",")):
                others.append(start(name, folder / name, free_ports(1)[0], ways[0].port))
            time.sleep(2)
            report("200 bytes", ways + others, folder / "small", 1, arguments)
            report("600 KB and back", ways + others, folder / "large", 8, arguments)
        finally:
            for way in others:
                way.process.kill()
                way.process.wait()
            fleet.stop()
            foreign.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
