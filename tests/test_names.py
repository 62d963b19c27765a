"""A site that is known by a name: its gateway follows when the name gets other addresses.

The entry has a mount namespace of its own, in which files of the test are /etc/hosts and /etc/resolv.conf: the system's resolver
is the real one, and reads the file or asks a name server of the test's.
"""

import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from fleet import ADD, Fleet, answers, metric
from harness import Gateway, wait_until

MODEL = "identity"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
NAME = "one.site.test"
# The site has gateways at both; which of them its name leads to is what the test changes.
OLD, NEW = "127.0.0.1", "127.0.0.2"
# Names are looked up every five seconds, and the question what a peer serves is open for twenty.
LOOKED_UP, DRAINED = 15, 40


OWN_FILES = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'


class NameServer:
    """Answers for one name, over UDP: with its addresses, or that it failed where there are none."""

    ADDRESS = ("127.0.0.153", 53)

    def __init__(self):
        self.addresses, self.asked = (), 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(self.ADDRESS)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                asked, whose = self.socket.recvfrom(4096)
            except OSError:
                return
            self.asked += 1
            self.socket.sendto(self.answer(asked), whose)

    def answer(self, asked: bytes) -> bytes:
        # A header of 12 bytes; then labels, each behind its length, up to an empty one; type and class.
        end, labels = 12, []
        while asked[end]:
            labels.append(asked[end + 1 : end + 1 + asked[end]].decode())
            end += 1 + asked[end]
        question, kind = asked[12 : end + 5], int.from_bytes(asked[end + 1 : end + 3])
        known, failed = ".".join(labels).lower() == NAME, not self.addresses
        given = self.addresses if known and kind == 1 else ()
        flags = 0x8180 | (2 if failed else 0 if known else 3)
        head = asked[:2] + struct.pack(">5H", flags, 1, len(given), 0, 0)
        # The name is that of the question, valid for no time at all.
        return head + question + b"".join(struct.pack(">3HIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(at) for at in given)

    def stop(self):
        self.socket.close()


@pytest.fixture(params=["hosts"])
def site(request, tmp_path):
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI runs as root"
        pytest.skip("a mount namespace needs root")
    hosts, server = tmp_path / "hosts", NameServer() if request.param == "server" else None
    resolver = server.ADDRESS[0] if server else "127.0.0.154"
    (tmp_path / "resolv.conf").write_text(f"nameserver {resolver}\noptions timeout:1 attempts:1\n")
    fleet = Fleet(tmp_path / "fleet", ["entry", "one"])
    port = fleet.ports["one"]
    fleet.file.write_text(fleet.file.read_text().replace(f"127.0.0.1:{port}", f"{NAME}:{port}"))
    gateways = []

    def start(folder: str, settings: dict, **more) -> Gateway:
        gateways.append(Gateway(tmp_path / folder, "rten", settings, **more))
        return gateways[-1].start()

    def names(*addresses: str):
        if server:
            server.addresses = addresses
        # In place: another file would not be the one that is mounted.
        hosts.write_text("" if server else "".join(f"{address} {NAME}\n" for address in addresses))

    try:
        sites = {}
        for address in (OLD, NEW):
            sites[address] = start(address, fleet.settings("one") | {"fleet.listen": f"{address}:{port}"})
            sites[address].cli("deploy", ADD / "identity_fp32.onnx", "--name", MODEL)
        names(OLD)
        under = ["unshare", "--mount", "sh", "-c", OWN_FILES, str(tmp_path)]
        entry = start("entry", fleet.settings("entry"), under=under)
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 30, "an answer")
        yield entry, sites, port, names
    finally:
        for gateway in gateways:
            gateway.stop()
        if server:
            server.stop()


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


@pytest.mark.parametrize("site", ["server"], indirect=True)
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
