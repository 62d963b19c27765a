"""Hosts that were granted by name: reached where the name leads to the public internet, and nowhere else.

The names and addresses are those of a network of the test's own: a namespace with an address that looks public, and files
of its own in the place of /etc/hosts and /etc/resolv.conf.
"""

import http.server
import socket
import threading
from pathlib import Path

import pytest
from granting import deploy
from lab import needs_network
from lab.namespace import Namespace
from lab.sites import SiteGateway

pytestmark = needs_network

# Of the public internet, as far as the gateway can know.
PUBLIC, OTHER = "93.184.215.14", "93.184.215.15"
# What a name may be pointed at to get at what is not public.
CLOSED = ["10.77.0.2", "127.0.0.1", "169.254.169.254"]
PORT = 8080
RESOLVER = "127.0.0.53"
OWN_FILES = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'


class Page(http.server.BaseHTTPRequestHandler):
    """Says where it was asked, and keeps it."""

    asked: list[str] = []

    def do_GET(self):
        address = self.server.server_address[0]
        self.asked.append(address)
        self.send_response(200)
        self.send_header("content-length", str(len(address)))
        self.end_headers()
        self.wfile.write(address.encode())

    def log_message(self, *_):
        pass


class NamedGateway(SiteGateway):
    """A gateway with names of its own."""

    def __post_init__(self):
        super().__post_init__()
        self.under = ["unshare", "--mount", "sh", "-c", OWN_FILES, str(self.folder)]

    def point(self, *lines: str) -> None:
        """From now on these are all names that there are, `ADDRESS NAME` each."""
        # In place: another file would not be the one that is mounted.
        (self.folder / "hosts").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    space = Namespace("names", [PUBLIC, OTHER, *CLOSED[:1], *CLOSED[2:]])
    servers = []
    for address in [PUBLIC, OTHER, *CLOSED]:
        servers.append(space.run(http.server.ThreadingHTTPServer, (address, PORT), Page))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    # It takes questions and never answers.
    resolver = space.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((RESOLVER, 53))
    folder = tmp_path_factory.mktemp("names")
    (folder / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:30 attempts:1\n")
    allowed = f"granted.example:{PORT},silent.example"
    gateway = NamedGateway(folder, space, {"ceiling.network": allowed})
    # Its own listeners are on an address that no test is about.
    gateway.address, gateway.url, gateway.control_url = "127.0.0.1", "http://127.0.0.1:8000", "http://127.0.0.1:8001"
    gateway.point(f"{PUBLIC} granted.example")
    try:
        gateway.start()
        for module in ("hostile-http", "hostile-http-async"):
            deploy(gateway, tmp_path_factory.mktemp(module), module, module, [f"granted.example:{PORT}"])
        yield gateway
    finally:
        gateway.stop()
        for server in servers:
            server.shutdown()
            server.server_close()
        resolver.close()
        space.close()


@pytest.fixture(autouse=True)
def fresh(gateway):
    Page.asked.clear()
    gateway.point(f"{PUBLIC} granted.example")


def ask(gateway, model: str, what: str, **more) -> str:
    answer = gateway.get(f"/models/{model}/{what}", **more)
    assert answer.status == 200, answer
    return answer.body.decode().strip()


def test_a_granted_name_is_resolved_and_reached(gateway):
    assert ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}") == PUBLIC
    assert ask(gateway, "hostile-http", f"fetch?GRANTED.example:{PORT}") == PUBLIC
    for model in ("hostile-http", "hostile-http-async"):
        assert ask(gateway, model, f"connect-each?granted.example:{PORT}") == f"{PUBLIC} connected"
    # It is the name that was granted, with its port, and no other.
    assert "HttpRequestDenied" in ask(gateway, "hostile-http", f"fetch?{PUBLIC}:{PORT}")
    assert "HttpRequestDenied" in ask(gateway, "hostile-http", "fetch?granted.example:8081")
    assert "HttpRequestDenied" in ask(gateway, "hostile-http", f"fetch?silent.example:{PORT}")
    assert ask(gateway, "hostile-http", f"connect?{PUBLIC}:{PORT}").startswith("refused")
    assert Page.asked == [PUBLIC, PUBLIC]


def test_every_public_address_of_a_name_is_open(gateway):
    gateway.point(f"{PUBLIC} granted.example", f"{OTHER} granted.example")
    assert ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}") in (PUBLIC, OTHER)
    for model in ("hostile-http", "hostile-http-async"):
        lines = ask(gateway, model, f"connect-each?granted.example:{PORT}").splitlines()
        assert sorted(lines) == [f"{PUBLIC} connected", f"{OTHER} connected"]


@pytest.mark.parametrize("closed", CLOSED)
def test_a_name_that_changes_its_mind_is_refused(gateway, closed):
    """Where it led a moment ago says nothing: the address is looked at that is then connected to."""
    assert ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}") == PUBLIC
    gateway.point(f"{closed} granted.example")
    assert "DestinationIpProhibited" in ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}")
    for model in ("hostile-http", "hostile-http-async"):
        line = ask(gateway, model, f"connect-each?granted.example:{PORT}").lower()
        assert line.startswith(f"{closed} ") and "denied" in line, line
    gateway.point(f"{PUBLIC} granted.example")
    assert ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}") == PUBLIC
    assert Page.asked == [PUBLIC, PUBLIC]


@pytest.mark.parametrize("closed", CLOSED)
def test_of_a_name_that_leads_to_both_only_what_is_public_is_open(gateway, closed):
    gateway.point(f"{closed} granted.example", f"{PUBLIC} granted.example")
    # A request does not choose among addresses: it is refused.
    assert "DestinationIpProhibited" in ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}")
    for model in ("hostile-http", "hostile-http-async"):
        lines = ask(gateway, model, f"connect-each?granted.example:{PORT}").lower().splitlines()
        assert f"{PUBLIC} connected" in lines and len(lines) == 2, lines
        assert any(line.startswith(f"{closed} ") and "denied" in line for line in lines), lines
    assert Page.asked == []


def test_names_that_nobody_answers_for_stop_no_other_model(gateway, tmp_path):
    """The system's resolver holds a thread for as long as it waits."""
    deploy(gateway, tmp_path, "silent", "hostile-http", ["silent.example"])
    threads = lambda: len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir()))  # noqa: E731
    before = threads()
    for _ in range(3):
        assert ask(gateway, "silent", "names?silent.example").startswith("256 names, then")
    assert threads() < before + 64
    assert ask(gateway, "hostile-http", f"fetch?granted.example:{PORT}") == PUBLIC
    assert ask(gateway, "hostile-http", f"connect-each?granted.example:{PORT}") == f"{PUBLIC} connected"
