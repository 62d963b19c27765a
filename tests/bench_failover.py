#!/usr/bin/env python3
"""What clients see while the nearest of four sites is sick: `make bench-failover`.

Long runs through every fault, 500 requests a second; Envoy and HAProxy take the place of the entry gateways in the same
sites. Prints one line for each run, and leaves records and pictures in target/failover. Fails where a run of our own
misses what the project promises.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import MISSING, plot  # noqa: E402
from lab.faults import FAULTS, Run, through  # noqa: E402
from lab.scene import BehindProxy, Fleet  # noqa: E402
from lab.link import ROOT  # noqa: E402

FOLDER = ROOT / "target" / "failover"
# Proxies speak plain HTTP to the sites here: there is no certificate that could expire.
ONLY_PEERS = {7}
COLUMNS = f"{'':32} {'failed':>6} {'wrong':>6} {'p99':>6} {'slowest':>8} {'normal':>8} {'nearest':>8}"
ENTRIES = {
    "windrose": Fleet,
    "envoy": lambda folder: BehindProxy(folder, "envoy", False),
    "envoy-tuned": lambda folder: BehindProxy(folder, "envoy", True),
    "haproxy": lambda folder: BehindProxy(folder, "haproxy", False),
    "haproxy-tuned": lambda folder: BehindProxy(folder, "haproxy", True),
}


def line(run: Run) -> str:
    ten, whole, nearest = run.ten_seconds, run.whole, run.nearest_serves_after()
    back = "never" if nearest is None else f"{nearest:.0f}"
    name = f"{run.fault.number}. {run.fault.name}"
    return (
        f"{name:32} {whole.failed:6} {whole.wrong:6} {ten.p99:6.0f} {ten.slowest:8.0f} "
        f"{run.normal_after():8.0f} {back:>8}"
    )


def measure(entry: str, arguments) -> list[str]:
    """Goes through the faults; what was missed, in words."""
    folder = FOLDER / entry
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{entry}\n{COLUMNS}", flush=True)
    missed = []
    for fault in FAULTS:
        if arguments.faults and fault.number not in arguments.faults:
            continue
        if fault.number in ONLY_PEERS and entry != "windrose":
            continue
        # Sites of its own for each fault: some entries stay away from a site long after it has healed.
        with ENTRIES[entry](folder / str(fault.number)) as sites:
            time.sleep(arguments.settle)
            run = through(sites, fault, 3, arguments.during, arguments.after)
        print(line(run), flush=True)
        title = f"{entry}: {fault.number}. {fault.name}"
        plot.latency(run.record, folder / f"{fault.number}.png", title, (run.began, run.ended))
        missed += [f"{title}: {what}" for what in run.misses()]
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", choices=ENTRIES, help="which entries; all when not given")
    parser.add_argument("--fault", dest="faults", action="append", type=int, help="which faults; all when not given")
    parser.add_argument("--during", type=float, default=10, help="seconds that a fault lasts")
    parser.add_argument("--after", type=float, default=5, help="seconds of load after its end")
    parser.add_argument("--settle", type=float, default=2, help="seconds before the load")
    arguments = parser.parse_args()
    if MISSING:
        print(f"no emulated network here: {MISSING}", file=sys.stderr)
        return 1
    print(
        "500 requests a second; sites at 2, 30, 80 and 180 ms round trip. Requests that failed and answers that were "
        "wrong, of all;\np99 and slowest of the ten seconds after the fault began, ms; from the fault to the last "
        "request slower than 50 ms, ms;\nfrom its end until the nearest site serves half of the requests again, ms."
    )
    missed = {entry: measure(entry, arguments) for entry in arguments.entry or ENTRIES}
    ours = missed.get("windrose", [])
    print("\n" + "\n".join(ours or ["windrose keeps what it promises"] if "windrose" in missed else []))
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
