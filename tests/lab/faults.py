"""The faults, and what a run of the load through one shows."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .scene import NAMES, Fleet, Sites
from .load import Record, Window

# An undisturbed answer of the next site may take so much longer than its round trip, and the slowest one of all so much.
P99_SLACK_MS = 20
SLOWEST_FACTOR, SLOWEST_SLACK_MS = 3, 50
# Milliseconds from a fault until all is as before, from its end until the nearest site serves again, and from the first
# wrong answer to the last.
NORMAL_MS, NEAREST_MS, WRONG_MS = 300, 2000, 2000
# The faults that are judged by times: one site is sick, and the next is well.
TIMED = range(1, 8)


@dataclass(frozen=True)
class Fault:
    """One fault: a context manager that begins it and ends it again. What begins by itself is prepared before the load, and
    says after how many seconds it will, which are no fewer than those that it is given."""

    number: int
    name: str
    happens: Callable[[Sites], object]
    prepare: Callable[[Sites, float], float] = lambda _, seconds: seconds


@contextmanager
def _killed(sites: Sites, *names: str) -> Iterator[None]:
    for name in names:
        sites.kill(name)
    try:
        yield
    finally:
        for name in names:
            sites.start(name)


@contextmanager
def _network(sites: Sites, *names: str, healed: dict, **change) -> Iterator[None]:
    for name in names:
        sites.network.set_site(name, **change)
    try:
        yield
    finally:
        for name in names:
            sites.network.set_site(name, **healed)


def _cut_off(sites: Sites, *names: str):
    return _network(sites, *names, healed={"up": 1}, up=0)


@contextmanager
def _sick(sites: Sites, fault: str) -> Iterator[None]:
    sites.front.tell(fault)
    try:
        yield
    finally:
        sites.front.tell("none")


# Within so many seconds the nearest site serves again over connections that show its other certificate.
CONNECTED_S = 15


def _will_expire(sites: Fleet, seconds: float) -> float:
    """Has the nearest site show a certificate that expires while connections to it are open."""
    lifetime = math.ceil(seconds) + CONNECTED_S
    expires = time.time() + lifetime
    identity = sites.certify("near", sites.folder / "short", lifetime=f"{lifetime}s")
    sites.certify("near", sites.keys, days=365)
    sites.front.stop()
    sites.start_front(identity)
    sites.until_served_by("near", CONNECTED_S)
    return expires - time.time()


@contextmanager
def _expired(sites: Fleet) -> Iterator[None]:
    try:
        yield
    finally:
        sites.front.stop()
        sites.start_front()


@contextmanager
def _again_and_again(step: Callable[[threading.Event], None], after: Callable[[], None]) -> Iterator[None]:
    """Calls `step` in a thread until the end; what it raises is raised at the end."""
    stopping, problems = threading.Event(), []

    def work():
        try:
            while not stopping.is_set():
                step(stopping)
        except Exception as error:  # it belongs to who waits for the thread
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(60)
        after()
    if problems:
        raise problems[0]


def _flapping(sites: Sites):
    def step(stopping):
        for up in (0, 1):
            sites.network.set_site("near", up=up)
            stopping.wait(1)

    return _again_and_again(step, lambda: sites.network.set_site("near", up=1))


def _overloaded(sites: Sites):
    """Somebody else takes nine tenths of the processor of the nearest site, in slices as a scheduler's quota has them."""
    process = sites.gateways["near"].process

    def step(_):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.09)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)

    return _again_and_again(step, lambda: process.send_signal(signal.SIGCONT))


def _rolling(sites: Sites):
    left = list(NAMES)

    def step(stopping):
        if left:
            sites.restart(left.pop(0))
        stopping.wait(0.2)

    return _again_and_again(step, lambda: [sites.restart(name) for name in left])


FAULTS = [
    Fault(1, "kill -9", lambda sites: _killed(sites, "near")),
    Fault(2, "packets dropped", lambda sites: _cut_off(sites, "near")),
    Fault(3, "answers 500 ms late", lambda sites: _sick(sites, "late 500")),
    Fault(4, "half of the answers are 500", lambda sites: _sick(sites, "errors 2")),
    Fault(5, "accepted and never answered", lambda sites: _sick(sites, "mute")),
    Fault(6, "answers cut", lambda sites: _sick(sites, "cut")),
    Fault(7, "certificate expired", _expired, _will_expire),
    Fault(8, "wrong answers", lambda sites: _sick(sites, "wrong")),
    Fault(9, "flapping every second", _flapping),
    Fault(10, "20% lost one way", lambda s: _network(s, "near", healed={"loss": 0}, incoming=False, loss=0.2)),
    Fault(11, "two sites at once", lambda sites: _cut_off(sites, "near", "mid")),
    Fault(12, "overloaded by someone else", _overloaded),
    Fault(13, "rolling restart", _rolling),
]


@dataclass
class Run:
    """A load that went through a fault, on the clock of the record."""

    fault: Fault
    record: Record
    began: float
    ended: float
    # Milliseconds to the next site and back.
    next_round_trip: float

    @property
    def before(self) -> Window:
        return self.record.between(end=self.began)

    @property
    def ten_seconds(self) -> Window:
        """The ten seconds after the fault began."""
        return self.record.between(self.began, self.began + 10)

    @property
    def whole(self) -> Window:
        return self.record.between()

    @property
    def p99_limit(self) -> float:
        return self.next_round_trip + P99_SLACK_MS

    @property
    def slowest_limit(self) -> float:
        return SLOWEST_FACTOR * self.next_round_trip + SLOWEST_SLACK_MS

    def normal_after(self) -> float:
        """Milliseconds from the fault to the last request in it that failed or took longer than the next site takes."""
        return (self.record.last_slow(self.began, self.ended, self.p99_limit) - self.began) * 1e3

    def wrong_for(self) -> float:
        """Milliseconds from the first wrong answer to the last; 0 without one."""
        wrong = self.record.sent[self.record.verdict == "wrong"]
        return float(wrong.max() - wrong.min()) * 1e3 if len(wrong) else 0.0

    def nearest_serves_after(self) -> float | None:
        """Milliseconds from the fault's end until the nearest site answers half of the requests again; none if never."""
        for start in np.arange(self.ended, self.record.sent.max() - 0.2, 0.1):
            window = self.record.between(start, start + 0.2)
            if window.sites.get("near", 0) >= window.count / 2 > 0:
                return float(start - self.ended) * 1e3
        return None


    def misses(self) -> list[str]:
        """What is not as it should be, in words: outcomes of every fault, and times of those that are judged by them."""
        found = [f"{self.whole.failed} failed"] if self.whole.failed else []
        if self.fault.number == 8:
            found += [f"wrong answers for {self.wrong_for():.0f} ms"] if self.wrong_for() > WRONG_MS else []
        elif self.whole.wrong:
            found.append(f"{self.whole.wrong} wrong")
        if self.fault.number in TIMED:
            ten, nearest = self.ten_seconds, self.nearest_serves_after()
            times = {
                "p99": (ten.p99, self.p99_limit),
                "slowest": (ten.slowest, self.slowest_limit),
                "normal after": (self.normal_after(), NORMAL_MS),
                "nearest after": (float("inf") if nearest is None else nearest, NEAREST_MS),
            }
            found += [f"{name} {ms:.0f} ms, not {limit:.0f}" for name, (ms, limit) in times.items() if ms > limit]
        return found


def through(sites: Sites, fault: Fault, before: float, during: float, after: float, **options) -> Run:
    """Runs the load through a fault."""
    before = fault.prepare(sites, before)
    load = sites.load(before + during + after, f"fault-{fault.number}", **options)
    try:
        began = load.until(before)
        with fault.happens(sites):
            load.until(before + during)
        ended = time.monotonic()
        record = load.finish()
    finally:
        load.process.kill()
        load.process.wait()
    return Run(fault, record, began, ended, sites.network.round_trip_ms("clients", "mid"))
