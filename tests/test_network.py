"""The emulated network is what it claims: delays, bandwidth, loss, cuts, and no packet where none belongs."""

import contextlib
import socket
import statistics
import threading
import time

import pytest
from lab import needs_network, plot
from lab.capture import Capture
from lab.link import Network, Site
from lab.load import Load

pytestmark = needs_network

SITES = [Site("clients", 0, hosts=2), Site("near", 1), Site("far", 40)]
PORT = 9000
# Python has no name for it. No packet shall be lost but by the emulator.
SO_RCVBUFFORCE = 33


@pytest.fixture(scope="module")
def network():
    with Network(SITES) as network:
        yield network


@pytest.fixture(scope="module")
def echoes(network):
    """Both sites send every UDP packet back."""
    stopping = threading.Event()

    def answer(server: socket.socket):
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                server.sendto(*server.recvfrom(2048))

    servers, threads = [], []
    for site in ("near", "far"):
        server = network.spaces[site].run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((network.address(site), PORT))
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        server.settimeout(0.1)
        servers.append(server)
        threads.append(threading.Thread(target=answer, args=(server,), daemon=True))
        threads[-1].start()
    yield
    stopping.set()
    for server, thread in zip(servers, threads):
        thread.join()
        server.close()


def client(network) -> socket.socket:
    made = network.spaces["clients"].run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    made.settimeout(1)
    return made


def round_trips(network, site: str, count: int = 15) -> list[float]:
    """Milliseconds of so many round trips."""
    times = []
    with client(network) as ours:
        for number in range(count):
            began = time.monotonic()
            ours.sendto(str(number).encode(), (network.address(site), PORT))
            assert ours.recv(2048) == str(number).encode()
            times.append((time.monotonic() - began) * 1e3)
    return times


@pytest.mark.parametrize("site", ["near", "far"])
def test_a_round_trip_takes_its_two_delays(network, echoes, site):
    expected = network.round_trip_ms("clients", site)
    times = round_trips(network, site)
    assert min(times) >= expected, "a packet came early"
    # How late the fastest is says what the emulator adds; the others also say how busy the machine is.
    assert min(times) < expected + 2, times
    network.set("clients", site, ms=expected / 2 + 10)
    try:
        assert min(round_trips(network, site, 3)) >= expected + 10, "a link is its own in each direction"
    finally:
        network.set("clients", site, ms=expected / 2)


def transfer(network, bytes_sent: int) -> float:
    """Seconds that a TCP transfer from `near` to `clients` takes."""
    listener = network.spaces["clients"].run(socket.create_server, (network.address("clients"), PORT))
    sender = network.spaces["near"].run(socket.create_connection, (network.address("clients"), PORT))
    with listener, sender:
        receiver, _ = listener.accept()
        with receiver:
            threading.Thread(target=sender.sendall, args=(bytes(bytes_sent),), daemon=True).start()
            began, got = time.monotonic(), 0
            while got < bytes_sent:
                got += len(receiver.recv(1 << 16))
            return time.monotonic() - began


def test_a_rate_limits_a_transfer(network):
    network.set("near", "clients", rate=2_000_000, queue=200_000)
    try:
        seconds = transfer(network, 2_000_000)
    finally:
        network.set("near", "clients", rate=25_000_000, queue=2_500_000)
    assert seconds > 0.9, f"2 MB over 2 MB/s in {seconds:.2f} s"
    assert seconds < 2.5, f"2 MB over 2 MB/s in {seconds:.2f} s"


def test_a_share_is_lost_in_one_direction(network, echoes):
    before = network.carried()
    network.set("near", "clients", loss=0.2)
    try:
        with client(network) as ours:
            for _ in range(1000):
                ours.sendto(b"x", (network.address("near"), PORT))
                time.sleep(0.0002)
            ours.settimeout(0.3)
            received = 0
            while True:
                try:
                    ours.recv(2048)
                except TimeoutError:
                    break
                received += 1
    finally:
        network.set("near", "clients", loss=0)
    after = network.carried()
    there, back = ("clients", "near"), ("near", "clients")
    assert after[there].packets - before[there].packets >= 1000 and after[there].lost == before[there].lost
    lost = after[back].lost - before[back].lost
    assert received + lost == 1000 and 150 < lost < 250, (received, lost)


def test_a_site_that_is_cut_off_is_silent(network, echoes):
    network.set_site("near", up=0)
    try:
        with client(network) as ours:
            ours.settimeout(0.3)
            ours.sendto(b"x", (network.address("near"), PORT))
            with pytest.raises(TimeoutError):
                ours.recv(2048)
            assert round_trips(network, "far", 1), "the others go on"
    finally:
        network.set_site("near", up=1)
    assert round_trips(network, "near", 1)


def test_a_capture_sees_what_crosses_and_nothing_else(network, echoes, tmp_path):
    near, far = (Capture(network.spaces[site], tmp_path / f"{site}.pcap") for site in ("near", "far"))
    round_trips(network, "near", 5)
    for capture in (near, far):
        capture.finish()
    ours, theirs = network.address("clients"), network.address("near")
    assert near.packets[ours, theirs] == near.packets[theirs, ours] == 5
    assert near.path.stat().st_size > 10 * (20 + 8)
    assert not far.packets, far.packets


BUSY = (
    b'HTTP/1.1 503 Busy\r\nx-site: near\r\nwindrose-error: unavailable\r\nwindrose-attempts: 3\r\n'
    b'content-length: 16\r\n\r\n{"error":"no a"}'
)


class Answering:
    """A server in `near` that adds, badly where it is told to; one thread for each connection."""

    def __init__(self, network):
        self.listener = network.spaces["near"].run(socket.create_server, (network.address("near"), PORT))
        threading.Thread(target=self._accept, daemon=True).start()
        self.behave = lambda number: number + 0.5

    def _accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        with stream, stream.makefile("rb") as reader:
            while head := self._head(reader):
                body = reader.read(int(head[b"content-length"]))
                number = int(body.split(b'"data":[')[1].split(b",")[0])
                result = self.behave(number)
                if result is None:
                    return
                if result == BUSY:
                    stream.sendall(BUSY)
                    continue
                answer = b'{"outputs":[{"data":[%s,3.0]}]}' % str(result).encode()
                stream.sendall(b"HTTP/1.1 200 OK\r\nx-site: near\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)

    @staticmethod
    def _head(reader) -> dict[bytes, bytes]:
        lines = iter(reader.readline, b"\r\n")
        return dict(line.strip().lower().split(b": ", 1) for line in lines if b": " in line) if reader.peek(1) else {}


def test_the_load_keeps_its_schedule_and_its_record_is_true(network, tmp_path):
    server = Answering(network)

    def behave(number: int):
        if number == 20:
            time.sleep(0.2)
        return {30: 1.25, 40: None, 50: BUSY}.get(number, number + 0.5)

    server.behave = behave
    try:
        target = f"{network.address('near')}:{PORT}"
        load = Load(network.spaces["clients"], target, 1, tmp_path / "record", rate=100, site_header="x-site")
        record = load.finish()
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
    assert len(record) == 100
    gaps = [round(gap, 4) for gap in (record.sent[1:] - record.sent[:-1]).tolist()]
    assert set(gaps) == {0.01}, "requests leave when the schedule says, whatever became of those before"
    assert record.verdict[30] == "wrong" and record.verdict[40] == "reset", record.problems()
    assert (record.status[50], record.error[50], record.attempts[50]) == (503, "unavailable", "3")
    assert record.note[50] == '{"error":"no a"}' and record.note[50] in record.problems()[-1]
    assert f"1 x status 503 `unavailable` by `near` over {target}" in record.kinds()
    assert (record.verdict == "right").sum() == 97
    assert record.ms[20] > 200 and statistics.median(record.ms) < 100
    assert min(record.ms) >= network.round_trip_ms("clients", "near")
    assert set(record.site[record.verdict == "right"]) == {"near"}
    window = record.between()
    assert (window.failed, window.wrong, window.sites) == (2, 1, {"near": 97})
    picture = plot.latency(record, tmp_path / "latency.png", "one stall, one wrong answer, one error, one reset")
    assert picture.read_bytes().startswith(b"\x89PNG")
