#!/usr/bin/env python3
"""What forwarding a request costs: `make bench-forward`.

One gateway serves; clients ask it over each proxy in turn, all on loopback. Prints the processor time that the proxy itself used for
a request, and what it added to the median, beside asking the gateway directly. The proxies take turns, since the
machine is shared, and the median of the rounds counts.
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

from harness import ROOT, Gateway, free_ports  # noqa: E402
from lab import proxies  # noqa: E402
from lab.link import TOOL  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
LARGE = 600_000


def request(path: str, body: bytes, headers: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: models.lab\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def small_request() -> bytes:
    tensor = '{"name":"%s","datatype":"FP32","shape":[1,2],"data":[1.5,%d]}'
    body = '{"inputs":[' + tensor % ("a", 1) + "," + tensor % ("b", 2) + "]}"
    return request("/v2/models/add/infer", body.encode().ljust(200), "content-type: application/json\r\n")


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


class Proxy:
    """One way to the gateway. `pid` is the process whose time counts; there is none for the direct way."""

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


def start(name: str, folder: Path, port: int, backend: int) -> Proxy:
    """Starts one of the others, as it forwards to one server and nothing more."""
    to = [proxies.Backend("backend", "127.0.0.1", backend)]
    parts = proxies.command(name, False, folder, ["127.0.0.1"], port, to)
    return Proxy(name, port, subprocess.Popen([str(part) for part in parts]))


def report(title: str, ways: list[Proxy], request: Path, connections: int, arguments) -> None:
    rounds = {way.name: [] for way in ways}
    for _ in range(arguments.rounds):
        for way in ways:
            rounds[way.name].append(way.measure(request, connections, arguments.seconds))
    print(f"\n{title}, {connections} at a time\n{'':12} {'CPU us':>8} {'median us':>10} {'added us':>9}")
    for name, measured in rounds.items():
        cpu, median = (statistics.median(values) for values in zip(*measured))
        added = statistics.median(ours[1] - direct[1] for ours, direct in zip(measured, rounds["direct"]))
        print(f"{name:12} {cpu:8.1f} {median:10.0f} {added:9.0f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "small").write_bytes(small_request())
        (folder / "large").write_bytes(large_request())
        gateway = Gateway(folder / "gateway").start()
        ways = [Proxy("direct", gateway.port, None)]
        try:
            gateway.deploy(ROOT / "models" / "test" / "add_fp32.onnx", "--name", "add")
            gateway.deploy(ROOT / "models" / "test" / "identity_uint8.onnx", "--name", "copy")
            for name in ("envoy", "haproxy", "nginx"):
                ways.append(start(name, folder / name, free_ports(1)[0], gateway.port))
            time.sleep(2)
            report("200 bytes", ways, folder / "small", 1, arguments)
            report("600 KB and back", ways, folder / "large", 8, arguments)
        finally:
            for way in ways[1:]:
                way.process.kill()
                way.process.wait()
            gateway.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
