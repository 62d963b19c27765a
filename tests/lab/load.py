"""The load that clients make, and the record of what became of every request."""

import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .link import TOOL
from .namespace import Namespace

RATE = 500

# With a mount namespace of its own, the clients' names are theirs alone.
WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


@dataclass
class Window:
    """The requests of a stretch of time; times in milliseconds."""

    count: int
    median: float
    p99: float
    slowest: float
    failed: int
    wrong: int
    sites: dict[str, int]

    def __str__(self) -> str:
        sites = ", ".join(f"{name or '-'} {count}" for name, count in sorted(self.sites.items(), key=lambda s: -s[1]))
        return (
            f"{self.count} requests, {self.failed} failed, {self.wrong} wrong, median {self.median:.1f}, "
            f"p99 {self.p99:.1f}, slowest {self.slowest:.1f} ms; {sites}"
        )


class Record:
    """What became of every request. Times are `time.monotonic()` in seconds, latencies milliseconds."""

    def __init__(self, path: Path):
        lines = path.read_text().splitlines()
        began = int(lines[0]) / 1e6
        rows = sorted((line.split("\t") for line in lines[1:]), key=lambda row: int(row[0]))
        self.began = began
        self.sent = np.array([began + int(row[0]) / 1e6 for row in rows])
        self.ms = np.array([int(row[1]) / 1e3 for row in rows])
        self.status = np.array([int(row[2]) for row in rows])
        self.verdict = np.array([row[3] for row in rows])
        self.site = np.array([row[4] for row in rows])
        self.error = np.array([row[5] for row in rows])
        self.attempts = np.array([row[6] for row in rows])
        self.entry = np.array([row[7] for row in rows])
        self.note = [row[8] for row in rows]

    def __len__(self) -> int:
        return len(self.sent)

    def between(self, begin: float = -np.inf, end: float = np.inf) -> Window:
        """The requests that were to leave in a stretch of time."""
        mask = (self.sent >= begin) & (self.sent < end)
        ms, verdict = self.ms[mask], self.verdict[mask]
        names, counts = np.unique(self.site[mask & (self.verdict == "right")], return_counts=True)
        quantile = (lambda q: float(np.quantile(ms, q))) if len(ms) else lambda q: float("nan")
        return Window(
            count=len(ms),
            median=quantile(0.5),
            p99=quantile(0.99),
            slowest=quantile(1.0),
            failed=int(((verdict != "right") & (verdict != "wrong")).sum()),
            wrong=int((verdict == "wrong").sum()),
            sites=dict(zip(names.tolist(), counts.tolist())),
        )

    def problems(self, limit: int = 10) -> list[str]:
        """The first requests that were not answered rightly, in words, for a test's message."""
        bad = np.flatnonzero(self.verdict != "right")
        return [
            f"{self.sent[i] - self.began:.3f} s: {self.verdict[i]} {self.status[i]} `{self.error[i]}` after "
            f"{self.ms[i]:.1f} ms and `{self.attempts[i]}` attempts by `{self.site[i]}` over {self.entry[i]}: {self.note[i]}"
            for i in bad[:limit]
        ]

    def kinds(self) -> list[str]:
        """How many requests were not answered rightly, by how they ended and where."""
        bad = np.flatnonzero(self.verdict != "right")
        ended = Counter((self.verdict[i], int(self.status[i]), self.error[i], self.site[i], self.entry[i]) for i in bad)
        return [
            f"{count} x {verdict} {status} `{error}` by `{site}` over {entry}"
            for (verdict, status, error, site, entry), count in ended.most_common(20)
        ]

    def answered_by(self, site: str) -> np.ndarray:
        """When the requests that a site answered rightly were sent."""
        return self.sent[(self.site == site) & (self.verdict == "right")]

    def last_slow(self, begin: float, end: float, ms: float) -> float:
        """When the last request of a stretch of time left that took longer than so many ms, or failed; `begin` if none."""
        mask = (self.sent >= begin) & (self.sent < end) & ((self.ms > ms) | (self.verdict != "right"))
        return float(self.sent[mask].max()) if mask.any() else begin


class Load:
    """The load generator, running in a namespace from the time that this is made."""

    def __init__(self, space: Namespace, target: str, seconds: float, out: Path, rate: float = RATE, **options):
        """`hosts` is a file that the clients see as /etc/hosts; other options are the load generator's own."""
        self.out, self.seconds = out, seconds
        hosts = options.pop("hosts", None)
        command = [] if hosts is None else ["unshare", "--mount", "sh", "-c", WITH_HOSTS, hosts]
        command += [TOOL, "load", "--target", target, "--rate", rate, "--seconds", seconds, "--out", out]
        for name, value in options.items():
            for one in value if isinstance(value, list) else [value]:
                command += [f"--{name.replace('_', '-')}", one]
        self.began = time.monotonic()
        self.process = space.popen(command, stderr=subprocess.PIPE, text=True)

    def until(self, seconds: float) -> float:
        """Sleeps until so long after the start; returns the time."""
        left = self.began + seconds - time.monotonic()
        if left > 0:
            time.sleep(left)
        return time.monotonic()

    def finish(self) -> Record:
        """Waits for the last answer."""
        try:
            _, errors = self.process.communicate(timeout=self.seconds + 60)
        finally:
            self.process.kill()
        if self.process.returncode != 0:
            raise RuntimeError(f"the load generator failed: {errors}")
        return Record(self.out)
