#!/usr/bin/env python3
"""Rules of choice on real gateways: `make bench-rules`.

Four gateways on loopback run in turns, so that each is a server with a share of one core, whose queue is real. One client
sends them an open-loop load and chooses one of them for each request, by one rule after the other, over the connections and
with the reports of load that a gateway's peers have. Windrose's own rule is the gateway's router with one attempt for each
request, as the others have it: no retries, no hedges.

Even: all alike. Uneven: every second one is three times slower. Antagonised: somebody else takes three quarters of one
gateway or another for one to three seconds, again and again. The rules take turns within each round, over the same requests,
and the medians of the rounds count.
"""

import argparse
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_forward import TICKS, cpu_seconds  # noqa: E402
from fleet import ADD, Fleet, explained  # noqa: E402
from harness import wait_until  # noqa: E402
from lab.link import TOOL  # noqa: E402

CLIENT = "client"
GATEWAYS = ["one", "two", "three", "four"]
SPREADS = ["even", "uneven", "antagonised"]
RULES = ["round robin", "least in flight", "peak EWMA, two choices", "Prequal-like", "windrose"]
# One job at a time at each gateway: what comes meanwhile waits in its queue.
MANIFEST = f"""
name = "loop"
[graphs.model]
file = "{ADD / "loop.onnx"}"
sessions = 1
"""


class Turn:
    """One rule's turn in one round: counts of requests, and times in milliseconds."""

    def __init__(self, words: list[str]):
        self.counted, self.failed, self.late, median, p99 = map(int, words)
        self.median, self.p99 = median / 1e3, p99 / 1e3


class Others:
    """How many cores what is not ours has used since this was made: they share the machine, and figures beside them are
    worse by what they took."""

    def __init__(self, fleet: Fleet):
        self.fleet, self.began, self.before = fleet, time.monotonic(), self.used(fleet)

    @staticmethod
    def used(fleet: Fleet) -> float:
        """Seconds of all that ran so far but the gateways and the client."""
        times = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        idle, waiting = times[3:5]
        client = resource.getrusage(resource.RUSAGE_CHILDREN)
        gateways = sum(cpu_seconds(gateway.process.pid) for gateway in fleet.gateways.values())
        return (sum(times) - idle - waiting) / TICKS - gateways - client.ru_utime - client.ru_stime

    def cores(self) -> float:
        return max(0.0, self.used(self.fleet) - self.before) / (time.monotonic() - self.began)


def start(folder: Path) -> Fleet:
    """Starts gateways that know each other and the client."""
    fleet = Fleet(folder / "fleet", [CLIENT, *GATEWAYS])
    model = folder / "model"
    model.mkdir()
    (model / "windrose.toml").write_text(MANIFEST)
    try:
        for name in GATEWAYS:
            fleet.start(name).deploy(model)
    except BaseException:
        stop(fleet)
        raise
    return fleet


def stop(fleet: Fleet) -> None:
    for gateway in fleet.gateways.values():
        # If the client was killed, it has left gateways stopped, which would not hear of their end.
        if gateway.process is not None:
            gateway.process.send_signal(signal.SIGCONT)
    fleet.stop()


def digest_of_the_model(fleet: Fleet) -> str:
    """What runs under the model's name, as one gateway sees it at another."""

    def known():
        candidates = explained(fleet.gateways[GATEWAYS[0]], "loop")["candidates"]
        return {candidate["digest"] for candidate in candidates} if len(candidates) >= len(GATEWAYS) else None

    (digest,) = wait_until(known, 30, "gateways that know each other")
    return digest


def a_round(fleet: Fleet, digest: str, spread: str, seed: int, arguments) -> dict[str, Turn]:
    """A turn of every rule."""
    settings = fleet.settings(CLIENT)
    command = [TOOL, "rules", "--spread", spread, "--seed", seed, "--seconds", arguments.seconds, "--digest", digest]
    command += ["--certificate", settings["fleet.certificate"], "--key", settings["fleet.key"]]
    command += ["--late-ms", arguments.late]
    for name in GATEWAYS:
        command += ["--gateway", f"127.0.0.1:{fleet.ports[name]}={fleet.gateways[name].process.pid}"]
    others = Others(fleet)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{spread}, round {seed}: {done.stderr}")
    said, *rows = done.stdout.splitlines()
    used = f"others used {others.cores():.2f} cores"
    print(f"{spread}, round {seed}: {said.removeprefix('# ')}; {used}", file=sys.stderr, flush=True)
    if arguments.verbose:
        print("\n".join(rows), file=sys.stderr, flush=True)
    return {name: Turn(words) for name, *words in (row.split("\t") for row in rows)}


def over_rounds(values: list[float]) -> str:
    """The median, and between what the rounds were."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def report(spread: str, rounds: list[dict[str, Turn]], late: int) -> None:
    print(f"\n**{spread.capitalize()}**, {len(rounds)} rounds\n")
    print(f"| rule | p50 | p99 | over {late} ms | failed |\n| --- | ---: | ---: | ---: | ---: |")
    for rule in RULES:
        turns = [turns[rule] for turns in rounds]
        counted = sum(turn.counted for turn in turns)
        late_share, failed_share = (sum(counts) / counted for counts in zip(*((t.late, t.failed) for t in turns)))
        median, p99 = over_rounds([turn.median for turn in turns]), over_rounds([turn.p99 for turn in turns])
        print(f"| {rule} | {median} | {p99} | {late_share:.1%} | {failed_share:.1%} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of one rule's turn; the first two do not count")
    parser.add_argument("--late", type=int, default=100, help="milliseconds beyond which an answer is late")
    parser.add_argument("--spread", dest="spreads", action="append", choices=SPREADS, help="which; all when not given")
    parser.add_argument("--verbose", action="store_true", help="every rule's turn on standard error")
    arguments = parser.parse_args()
    for spread in arguments.spreads or SPREADS:
        with TemporaryDirectory() as folder:
            # Gateways anew for each: they report what an inference took on average since their start.
            fleet = start(Path(folder))
            try:
                digest = digest_of_the_model(fleet)
                seeds = range(1, arguments.rounds + 1)
                report(spread, [a_round(fleet, digest, spread, seed, arguments) for seed in seeds], arguments.late)
            finally:
                stop(fleet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
