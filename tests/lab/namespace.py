"""Network namespaces without names: they live as long as this process and what it started in them.

A namespace is held by a descriptor of this process, so that there is nothing to remove after a crash, and nothing of
one run can collide with another's. Its interfaces are `lo` and `tun0`; the other end of `tun0` is a descriptor that
`lab.link` hands to the link emulator. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN, and no tool.
"""

import contextlib
import ctypes
import fcntl
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8943
IFF_UP = 0x1
PR_SET_PDEATHSIG = 1

# Every site is in one network, so that no route is needed.
NETMASK = "255.255.0.0"
# Packets that wait in the kernel for the emulator; it is the links that shall be short of room, not this.
QUEUE_PACKETS = 4000


def missing() -> str | None:
    """Why no namespace can be made here; nothing where one can."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    try:
        Namespace("probe", ["10.77.0.1"]).close()
    except OSError as error:
        return f"no network namespace: {error}"
    return None


def die_with_parent() -> None:
    """For `preexec_fn`: Linux ends the child when the thread that started it ends, however that is."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _ifreq(name: str, rest: bytes) -> bytes:
    return struct.pack("16s24s", name.encode(), rest)


def _address(address: str) -> bytes:
    return struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(address))


def _up(control: socket.socket, name: str) -> None:
    flags = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, _ifreq(name, b"")), 16)[0]
    fcntl.ioctl(control, SIOCSIFFLAGS, _ifreq(name, struct.pack("H", flags | IFF_UP)))


def _interfaces(addresses: list[str]) -> int:
    """Brings up `lo` and `tun0` in the calling thread's namespace; returns the other end of `tun0`."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, TUNSETIFF, _ifreq("tun0", struct.pack("H", IFF_TUN | IFF_NO_PI)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _up(control, "lo")
        fcntl.ioctl(control, SIOCSIFTXQLEN, _ifreq("tun0", struct.pack("i", QUEUE_PACKETS)))
        for index, address in enumerate(addresses):
            name = "tun0" if index == 0 else f"tun0:{index}"
            fcntl.ioctl(control, SIOCSIFADDR, _ifreq(name, _address(address)))
            fcntl.ioctl(control, SIOCSIFNETMASK, _ifreq(name, _address(NETMASK)))
        _up(control, "tun0")
    return tun


class Namespace:
    """One network namespace with its addresses. `run` calls functions in it, `popen` starts programs in it."""

    def __init__(self, name: str, addresses: list[str]):
        self.name, self.addresses = name, addresses
        self.address = addresses[0]
        self.tun = -1
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        made: Future = Future()
        # A namespace belongs to a thread: this one enters it and stays.
        self._thread = threading.Thread(target=self._serve, args=(made,), daemon=True, name=f"netns-{name}")
        self._thread.start()
        self.descriptor, self.tun = made.result()

    def _serve(self, made: Future) -> None:
        try:
            _checked(LIBC.unshare(CLONE_NEWNET))
            tun = _interfaces(self.addresses)
            made.set_result((os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY), tun))
        except BaseException as error:  # it belongs to who asked
            made.set_exception(error)
            return
        while (work := self._work.get()) is not None:
            function, result = work
            try:
                result.set_result(function())
            except BaseException as error:  # likewise
                result.set_exception(error)

    def run(self, function, *arguments, **named):
        """Calls a function in a thread whose sockets are in this namespace, and returns what it returns."""
        if threading.current_thread() is self._thread:
            return function(*arguments, **named)
        result: Future = Future()
        self._work.put((lambda: function(*arguments, **named), result))
        return result.result()

    def enter(self) -> None:
        """For `preexec_fn`: the child is in this namespace, and ends with the process that started it."""
        _checked(LIBC.setns(self.descriptor, CLONE_NEWNET))
        die_with_parent()

    def popen(self, command: list, **more) -> subprocess.Popen:
        """Starts a program in this namespace, in a session of its own."""
        return subprocess.Popen([str(part) for part in command], preexec_fn=self.enter, start_new_session=True, **more)

    def close(self) -> None:
        """Gives the namespace up; the kernel removes it with the last process in it."""
        self._work.put(None)
        self._thread.join(10)
        for descriptor in (self.descriptor, self.tun):
            with contextlib.suppress(OSError):
                os.close(descriptor)
