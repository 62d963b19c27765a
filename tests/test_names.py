"""A site that is known by a name: its gateway follows when the name gets other addresses.

The entry has a mount namespace of its own, in which a file of the test is /etc/hosts, or names a server of the test as the
one to ask: the system's resolver is the real one.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from fleet import ADD, Fleet, answers, metric
from harness import Gateway, wait_until
from lab.load import WITH_HOSTS
from resolver import Resolver

MODEL = "identity"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
NAME = "one.site.test"
# The site has gateways at both; which of them its name leads to is what the test changes.
OLD, NEW = "127.0.0.1", "127.0.0.2"
# And one that stays.
STAYS = "127.0.0.3"
# Names are looked up every five seconds, and the question what a peer serves is open for twenty.
LOOKED_UP, DRAINED = 15, 40


class Named:
    """A site with a gateway at each of some addresses, and an entry that knows it by its name."""

    def __init__(self, folder: Path):
        self.folder, self.gateways = folder, []
        self.fleet = Fleet(folder / "fleet", ["entry", "one"])
        self.port = self.fleet.ports["one"]
        self.fleet.file.write_text(self.fleet.file.read_text().replace(f"127.0.0.1:{self.port}", f"{NAME}:{self.port}"))

    def _start(self, folder: str, settings: dict, **more) -> Gateway:
        self.gateways.append(Gateway(self.folder / folder, "rten", settings, **more))
        return self.gateways[-1].start()

    def start_site(self, *addresses: str) -> dict[str, Gateway]:
        sites = {}
        for address in addresses:
            sites[address] = self._start(address, self.fleet.settings("one") | {"fleet.listen": f"{address}:{self.port}"})
            sites[address].cli("deploy", ADD / "identity_fp32.onnx", "--name", MODEL)
        return sites

    def start_entry(self, under: list[str]) -> Gateway:
        entry = self._start("entry", self.fleet.settings("entry"), under=under)
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 30, "an answer")
        return entry

    def stop(self):
        for gateway in self.gateways:
            gateway.stop()


@pytest.fixture
def named(tmp_path):
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI runs as root"
        pytest.skip("a mount namespace needs root")
    named = Named(tmp_path)
    yield named
    named.stop()


@pytest.fixture
def site(named, tmp_path):
    hosts = tmp_path / "hosts"

    def names(*addresses: str):
        hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))

    sites = named.start_site(OLD, NEW)
    names(OLD)
    entry = named.start_entry(["unshare", "--mount", "sh", "-c", WITH_HOSTS, str(hosts)])
    return entry, sites, named.port, names


@pytest.fixture
def resolver(named, tmp_path):
    resolver = Resolver(NAME, tmp_path)
    yield resolver
    resolver.close()


def connections(gateway: Gateway, address: str, port: int) -> int:
    """How many connections this process has to an address."""
    number = "".join(f"{int(part):02X}" for part in reversed(address.split("."))) + f":{port:04X}"
    inodes = set()
    for descriptor in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2] == number and row[3] == "01" and f"socket:[{row[9]}]" in inodes for row in rows)


class Asking(threading.Thread):
    """Asks again and again until the end of the block; keeps what was no answer."""

    def __init__(self, entry: Gateway):
        super().__init__(daemon=True)
        self.entry, self.over, self.asked, self.wrong = entry, threading.Event(), 0, []

    def run(self):
        while not self.over.is_set():
            answer = answers(self.entry, MODEL, BODY)
            self.asked += 1
            if answer.status != 200:
                self.wrong.append((answer.status, answer.body))
            time.sleep(0.005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def slow_request(entry: Gateway) -> tuple[socket.socket, bytes]:
    """Sends all but the end of a body that is too large to be held, so that it goes on as it comes; returns the rest."""
    count = 600_000
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, count], "data": [1.5] * count}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: entry\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    asked = socket.create_connection(("127.0.0.1", entry.port))
    asked.sendall(head.encode() + body[:-100])
    return asked, body[-100:]


def answer_of(asked: socket.socket) -> bytes:
    asked.settimeout(30)
    with asked:
        return b"".join(iter(lambda: asked.recv(1 << 16), b""))


def answered(gateway: Gateway) -> float:
    return metric(gateway, "windrose_requests")


def test_a_name_that_moves_is_followed_and_what_is_on_its_way_there_is_finished(site):
    entry, sites, port, names = site
    assert connections(entry, OLD, port) > 0 and connections(entry, NEW, port) == 0
    with Asking(entry) as asking:
        asked, rest = slow_request(entry)
        names(NEW)
        wait_until(lambda: connections(entry, NEW, port) > 0, LOOKED_UP, "connections to the new address")
        wait_until(lambda: answered(sites[NEW]) > 20, LOOKED_UP, "answers from the new address")
        # What was under way keeps its connection, and is the last that goes over it.
        assert connections(entry, OLD, port) > 0
        before = answered(sites[OLD])
        asked.sendall(rest)
        answer = answer_of(asked)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        wait_until(lambda: connections(entry, OLD, port) == 0, DRAINED, "the end of the connections to the old address")
        assert answered(sites[OLD]) <= before + 1
    assert asking.asked > 100 and not asking.wrong, asking.wrong[:3]


def test_a_name_with_two_addresses_gets_connections_to_both_and_loses_one_unnoticed(site):
    entry, sites, port, names = site
    with Asking(entry) as asking:
        names(OLD, NEW)
        for gateway in sites.values():
            seen = answered(gateway)
            wait_until(lambda: answered(gateway) > seen + 20, LOOKED_UP, "answers from both")
        assert connections(entry, OLD, port) > 0 and connections(entry, NEW, port) > 0
        # A resolver that knows nothing changes nothing.
        names()
        time.sleep(LOOKED_UP / 2)
        assert connections(entry, OLD, port) > 0 and connections(entry, NEW, port) > 0
        names(OLD)
        wait_until(lambda: connections(entry, NEW, port) == 0, LOOKED_UP + DRAINED, "one address")
    assert asking.asked > 100 and not asking.wrong, asking.wrong[:3]


def test_what_a_name_server_says_is_followed_through_a_roll_out_without_a_failed_request(named, resolver):
    sites = named.start_site(STAYS, OLD, NEW)
    resolver.addresses = [STAYS, OLD]
    entry, port = named.start_entry(resolver.under()), named.port
    answer_more = lambda address: answered(sites[address]) > before[address] + 20  # noqa: E731
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(Asking(entry)) for _ in range(4)]
        before = dict.fromkeys(sites, 0)
        for address in (STAYS, OLD):
            wait_until(lambda: answer_more(address), LOOKED_UP, "answers from both")
        assert answered(sites[NEW]) == 0 and connections(entry, NEW, port) == 0
        # One is stopped in the moment in which the name loses it, and gets another: nobody was told before.
        resolver.addresses = [STAYS, NEW]
        assert sites[OLD].stop() == 0
        wait_until(lambda: answer_more(NEW), LOOKED_UP, "answers from the new address")
        wait_until(lambda: connections(entry, OLD, port) == 0, DRAINED, "the end of the connections to the old address")
        # It comes back while the name leads there already, and gets requests once it serves.
        resolver.addresses = [STAYS, OLD, NEW]
        sites[OLD].start()
        before[OLD] = answered(sites[OLD])
        wait_until(lambda: answer_more(OLD), LOOKED_UP + DRAINED, "answers from the one that came back")
        # A name server that is silent takes nothing away.
        resolver.addresses = None
        asked = resolver.asked
        wait_until(lambda: resolver.asked >= asked + 6, 3 * LOOKED_UP, "questions that nobody answers")
        before = {address: answered(sites[address]) for address in (STAYS, NEW)}
        for address in before:
            wait_until(lambda: answer_more(address), LOOKED_UP, "answers from both")
    assert all(one.asked > 100 for one in asking)
    assert not [wrong for one in asking for wrong in one.wrong]
