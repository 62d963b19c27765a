"""What a module asks for, what the operator's ceiling leaves of it, and what the module then reaches."""

import socket

import pytest
from granting import deploy, secret_page
from harness import Gateway, children, wait_until

X = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]


@pytest.fixture(scope="module")
def page():
    """The port of a server on this machine."""
    with secret_page() as (port, _):
        yield port


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, page):
    """Its operator allows one address, the name of this machine, and all of 127.0.0.1 to those who ask for it."""
    allowed = f"127.0.0.1:{page},localhost,127.0.0.1,169.254.169.254,private.invalid"
    settings = {"ceiling.network": allowed, "ceiling.load": "true"}
    gateway = Gateway(tmp_path_factory.mktemp("grants"), "rten", settings).start()
    try:
        yield gateway
    finally:
        assert gateway.stop() == 0, gateway.tail()


def fetch(gateway, name: str, target: str) -> str:
    return gateway.get(f"/models/{name}/fetch?{target}").body.decode()


def connect(gateway, name: str, target: str) -> str:
    return gateway.get(f"/models/{name}/connect?{target}").body.decode()


def status_of(loaded: dict, interface: str) -> set[str]:
    return {entry["status"] for entry in loaded["imports"] if entry["name"].startswith(interface)}


def test_nothing_is_granted_that_was_not_asked_for(gateway, tmp_path, page):
    loaded = deploy(gateway, tmp_path, "asks-nothing", "hostile-http", [])
    assert status_of(loaded, "wasi:http/outgoing-handler") == {"denied"} == status_of(loaded, "wasi:sockets/tcp")
    assert status_of(loaded, "wasi:http/types") == {"provided"}
    assert "HttpRequestDenied" in fetch(gateway, "asks-nothing", f"127.0.0.1:{page}")
    assert connect(gateway, "asks-nothing", f"127.0.0.1:{page}").startswith("refused")


def test_only_what_was_granted_is_reached(gateway, tmp_path, page):
    granted = f"127.0.0.1:{page}"
    loaded = deploy(gateway, tmp_path, "asks-one", "hostile-http", [granted, "elsewhere.example"])
    assert loaded["grants"]["asked"]["network"] == [granted, "elsewhere.example"]
    assert loaded["grants"]["in_force"]["network"] == [granted]
    assert status_of(loaded, "wasi:http/outgoing-handler") == {"granted"} == status_of(loaded, "wasi:sockets/tcp")
    assert fetch(gateway, "asks-one", granted) == "secret"
    assert connect(gateway, "asks-one", granted) == "connected"
    assert "HttpRequestDenied" in fetch(gateway, "asks-one", "elsewhere.example:80")
    assert connect(gateway, "asks-one", "elsewhere.example:80").startswith("refused")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "HttpRequestDenied" in fetch(gateway, "asks-one", f"127.0.0.1:{other.getsockname()[1]}")
        assert connect(gateway, "asks-one", f"127.0.0.1:{other.getsockname()[1]}").startswith("refused")


def test_a_granted_name_does_not_lead_home(gateway, tmp_path, page):
    """The addresses are looked at after the name was resolved."""
    deploy(gateway, tmp_path, "asks-names", "hostile-http", ["localhost", "private.invalid"])
    assert "DestinationIpProhibited" in fetch(gateway, "asks-names", f"localhost:{page}")
    assert connect(gateway, "asks-names", f"localhost:{page}").startswith("refused")
    # Granted as a name, the machine is still closed as an address.
    assert "HttpRequestDenied" in fetch(gateway, "asks-names", f"127.0.0.1:{page}")
    for closed in ("169.254.169.254:80", "10.0.0.1:80", "[::1]:80", "0.0.0.0:80"):
        assert "HttpRequestDenied" in fetch(gateway, "asks-names", closed), closed


def test_the_gateways_own_listeners_stay_closed(gateway, tmp_path, page):
    deploy(gateway, tmp_path, "asks-all", "hostile-http", ["127.0.0.1"])
    assert fetch(gateway, "asks-all", f"127.0.0.1:{page}") == "secret"
    for port in (gateway.port, gateway.control_port):
        assert "HttpRequestDenied" in fetch(gateway, "asks-all", f"127.0.0.1:{port}")
        assert connect(gateway, "asks-all", f"127.0.0.1:{port}").startswith("refused")


@pytest.mark.parametrize("asks", [True, False])
def test_load_of_its_own_bytes(gateway, tmp_path, asks):
    name = f"loads-{asks}".lower()
    loaded = deploy(gateway, tmp_path, name, "hostile", [], load=asks)
    assert loaded["grants"]["in_force"] == {"network": [], "load": asks}
    answer = gateway.infer(name, X, parameters={"act": "load"})
    if asks:
        assert answer.json()["outputs"][0]["data"] == X[0]["data"]
        # Each of them has a thread and a process: there is an end to it, and they go with the call.
        greedy = gateway.infer(name, X, parameters={"act": "loads"})
        assert greedy.status == 400 and greedy.json()["error"].startswith("16 graphs, then"), greedy
        wait_until(lambda: not children(gateway.process.pid), 30, "the graphs' processes to end")
    else:
        assert (answer.status, answer.headers["windrose-error"]) == (502, "guest_failed")


def test_no_ceiling_means_no_grant(make_gateway, tmp_path, page):
    gateway = make_gateway()
    loaded = deploy(gateway, tmp_path, "wishes", "hostile", [f"127.0.0.1:{page}"], load=True)
    assert loaded["grants"]["asked"] == {"network": [f"127.0.0.1:{page}"], "load": True}
    assert loaded["grants"]["in_force"] == {"network": [], "load": False}
    assert "granted      nothing" in gateway.cli("inspect", "wishes").stdout
    answer = gateway.infer("wishes", X, parameters={"act": "load"})
    assert (answer.status, answer.headers["windrose-error"]) == (502, "guest_failed")
