"""Packets as they cross a site's interface, taken by the kernel (AF_PACKET) and not by the emulator that carries them."""

import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path

from .namespace import Namespace

ETH_P_ALL = 3
# LINKTYPE_RAW: each packet begins with its IP header.
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)


class Capture:
    """Takes every packet of a namespace's `tun0`, in both directions, until `finish`. Writes them as a pcap file."""

    def __init__(self, space: Namespace, path: Path):
        self.path = path
        # (source, destination) -> bytes of TCP payload.
        self.payload: Counter = Counter()
        self.packets: Counter = Counter()
        self.bytes = bytearray()
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
            self.bytes += payload

    def finish(self) -> "Capture":
        self._until = time.monotonic() + 0.3
        self._thread.join(10)
        self._socket.close()
        return self
