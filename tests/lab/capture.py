"""Packets as they cross a site's interface, taken by the kernel (AF_PACKET) and not by the emulator that carries them."""

import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from .namespace import Namespace

ETH_P_ALL = 3
# How a TLS record begins that carries data: its type, and the version that every one names. Its length follows.
TLS_DATA, TLS_HEAD = b"\x17\x03\x03", 5
# LINKTYPE_RAW: each packet begins with its IP header.
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)


class Capture:
    """Takes every packet of a namespace's `tun0`, in both directions, until `finish`. Writes them as a pcap file."""

    def __init__(self, space: Namespace, path: Path):
        self.path = path
        # (source, destination) -> bytes of TCP payload.
        self.payload: Counter = Counter()
        self.packets: Counter = Counter()
        # (source, its port, destination, its port) -> what was sent, by sequence number.
        self._streams: dict[tuple, dict[int, bytes]] = defaultdict(dict)
        # When to stop; what crossed before `finish` was called is still taken.
        self._until = float("inf")
        self._socket = space.run(self._open)
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _open(self) -> socket.socket:
        taken = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        taken.bind(("tun0", ETH_P_ALL))
        taken.settimeout(0.1)
        return taken

    def _take(self) -> None:
        with open(self.path, "wb") as file:
            file.write(PCAP_HEADER)
            while True:
                try:
                    packet = self._socket.recv(65_536)
                except TimeoutError:
                    if self._until < time.monotonic():
                        return
                    continue
                if self._until < time.monotonic():
                    return
                now = time.time_ns()
                file.write(struct.pack("<IIII", now // 10**9, now % 10**9 // 1000, len(packet), len(packet)) + packet)
                self._count(packet)

    def _count(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4:
            return
        between = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        self.packets[between] += 1
        if packet[9] == socket.IPPROTO_TCP:
            ip, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4])
            payload = packet[ip + (packet[ip + 12] >> 4) * 4 : total]
            self.payload[between] += len(payload)
            ports, sequence = struct.unpack_from("!HH", packet, ip), int.from_bytes(packet[ip + 4 : ip + 8])
            if payload:
                self._streams[between[0], ports[0], between[1], ports[1]][sequence] = payload

    def records(self, destination: str) -> Iterator[int]:
        """The lengths of the TLS records with data that were sent to an address, once it has finished."""
        for (_, _, to, _), segments in self._streams.items():
            if to == destination:
                yield from _records(segments)

    def finish(self) -> "Capture":
        self._until = time.monotonic() + 0.3
        self._thread.join(10)
        self._socket.close()
        return self


def _records(segments: dict[int, bytes]) -> Iterator[int]:
    """Of one stream, from the first segment on that begins with a record: the capture may have begun in another's middle."""
    stream, end = bytearray(), None
    for sequence in sorted(segments):
        payload = segments[sequence]
        if end is None and payload.startswith(TLS_DATA):
            end = sequence
        if end is not None and sequence <= end:
            # What was sent again is there already.
            stream += payload[end - sequence :]
            end = max(end, sequence + len(payload))
    at = 0
    while at + TLS_HEAD <= len(stream):
        length = int.from_bytes(stream[at + 3 : at + TLS_HEAD])
        if stream[at : at + len(TLS_DATA)] == TLS_DATA:
            yield length
        at += TLS_HEAD + length
