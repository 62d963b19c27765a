"""A name server for tests: UDP on port 53 of a loopback address of its own, and the one name whose addresses a test sets."""

import random
import socket
import struct
import threading
from pathlib import Path

# For a gateway with a mount namespace of its own; `$0` is a folder with the two files. Another order of lookups, such as
# systemd's, would go past what resolv.conf says.
WITH_RESOLVER = (
    'mount --bind "$0/resolv.conf" /etc/resolv.conf && '
    'if [ -e /etc/nsswitch.conf ]; then mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf; fi && exec "$@"'
)
PORT = 53
A, IN = 1, 1
AUTHORITATIVE, NO_SUCH_NAME = 0x8580, 0x8583


class Resolver(threading.Thread):
    """Answers until it is closed; while `addresses` is `None` it takes questions and says nothing."""

    def __init__(self, name: str, folder: Path):
        super().__init__(daemon=True)
        self.name_asked, self.folder = name, folder
        self.addresses: list[str] | None = []
        self.asked = 0
        self.socket, address = self._bound()
        (folder / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
        (folder / "nsswitch.conf").write_text("hosts: files dns\n")
        self.start()

    @staticmethod
    def _bound() -> tuple[socket.socket, str]:
        """Others' tests may have one at the same time, at an address of theirs."""
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind((address, PORT))
        return bound, address

    def under(self) -> list[str]:
        """What a program follows that shall ask here and nowhere else."""
        return ["unshare", "--mount", "sh", "-c", WITH_RESOLVER, str(self.folder)]

    def run(self):
        while True:
            question, asker = self.socket.recvfrom(512)
            if not question:
                return
            addresses = self.addresses
            self.asked += 1
            if addresses is not None:
                self.socket.sendto(self._answer(question, addresses), asker)

    def _answer(self, question: bytes, addresses: list[str]) -> bytes:
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode().lower())
            at += 1 + length
        end = at + 5
        kind, _ = struct.unpack("!HH", question[at + 1 : end])
        known = ".".join(labels) == self.name_asked
        found = addresses if known and kind == A else []
        flags = AUTHORITATIVE if known else NO_SUCH_NAME
        # A record names what was asked, the question at byte 12, and must not be kept.
        records = b"".join(struct.pack("!HHHIH", 0xC00C, A, IN, 0, 4) + socket.inet_aton(one) for one in found)
        return question[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question[12:end] + records

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.socket.getsockname())
        self.join()
        self.socket.close()
