"""Sites and the links between them: namespaces, and the emulator that carries packets from one to another."""

import contextlib
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .namespace import Namespace, die_with_parent

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "target" / "release" / "windrose-lab"

# What a link carries where nothing else was said: 200 Mbit/s, and a queue of a tenth of a second.
RATE = 25_000_000
QUEUE = RATE // 10


@dataclass(frozen=True)
class Site:
    """One place: `ms` is how long a packet takes from it to the middle of the network, or back."""

    name: str
    ms: float
    # Hosts of the site, all in its one namespace.
    hosts: int = 1


@dataclass
class Carried:
    """What a link has carried in one direction."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0


class Network:
    """Namespaces, one for each site, joined by the emulator. A context manager; nothing is left when it ends."""

    def __init__(self, sites: list[Site], seed: int = 1):
        self.sites = {site.name: site for site in sites}
        self.number = {site.name: index + 1 for index, site in enumerate(sites)}
        self.spaces: dict[str, Namespace] = {}
        self._process = None
        self._seed = seed

    def __enter__(self) -> "Network":
        try:
            return self._start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> "Network":
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(10)
        with theirs:
            command = [TOOL, "link", "--seed", str(self._seed)]
            self._process = subprocess.Popen(
                command, stdin=theirs, start_new_session=True, preexec_fn=die_with_parent
            )
        for name, site in self.sites.items():
            number = self.number[name]
            space = Namespace(name, [f"10.77.{number}.{host + 1}" for host in range(site.hosts)])
            self.spaces[name] = space
            self._tell(f"site {number}", space.tun)
        for one in self.sites:
            for other in self.sites:
                if one != other:
                    self.set(one, other, up=1, ms=self.one_way_ms(one, other), rate=RATE, queue=QUEUE)
        return self

    def close(self) -> None:
        """Ends the emulator and gives the namespaces up. What still runs in them must have been stopped."""
        self._control.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait(10)
        for space in self.spaces.values():
            space.close()

    def address(self, site: str, host: int = 0) -> str:
        return self.spaces[site].addresses[host]

    def one_way_ms(self, one: str, other: str) -> float:
        """How long a packet takes between two sites."""
        return self.sites[one].ms + self.sites[other].ms

    def round_trip_ms(self, one: str, other: str) -> float:
        return 2 * self.one_way_ms(one, other)

    def set(self, sender: str, receiver: str, ms: float | None = None, **change) -> None:
        """Changes a link in one direction: `up`, `ms`, `rate` in bytes a second, `queue` in bytes, `loss` from 0 to 1."""
        if ms is not None:
            change["delay_us"] = round(ms * 1000)
        words = [f"{key}={value}" for key, value in change.items()]
        self._tell(" ".join([f"link {self.number[sender]} {self.number[receiver]}", *words]))

    def set_site(self, site: str, outgoing: bool = True, incoming: bool = True, **change) -> None:
        """Changes all links of a site, or those of one direction."""
        for other in self.sites:
            if other != site:
                if outgoing:
                    self.set(site, other, **change)
                if incoming:
                    self.set(other, site, **change)

    def carried(self) -> dict[tuple[str, str], Carried]:
        """What each link has carried since the beginning; links without traffic are left out."""
        names = {number: name for name, number in self.number.items()}
        rows = [list(map(int, line.split())) for line in self._tell("count").splitlines()]
        return {(names[one], names[other]): Carried(*rest) for one, other, *rest in rows}

    def _tell(self, command: str, descriptor: int | None = None) -> str:
        try:
            if descriptor is None:
                self._control.send(command.encode())
            else:
                socket.send_fds(self._control, [command.encode()], [descriptor])
            answer = self._control.recv(65_536).decode()
        except OSError as error:
            raise RuntimeError(f"the link emulator does not answer `{command}`: {error}") from error
        if not answer:
            raise RuntimeError(f"the link emulator ended at `{command}`")
        return answer
