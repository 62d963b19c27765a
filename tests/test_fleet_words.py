"""What gateways tell each other about a request: believed from a proven peer, and from nobody else."""

import hashlib
import json
import re
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fleet import ADD, Fleet, answers, digest_of, explained, metric
from harness import ROOT, Gateway, wait_until

MODEL = "rows"
SITES = ["entry", "one"]
# Two rows run as soon as they are there; one waits for company, longer than any pause of a busy machine.
MANIFEST = """
name = "rows"

[graphs.model]
file = "{graph}"
batching = {{ max_size = 2, max_delay_us = 1000000 }}

[test]
input = "input.json"
output = "output.json"
"""
BODY = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]},
        {"name": "ids", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
}
# What a gateway would say to a peer, as a client that wants to pass for one would write it.
WORDS = {
    "windrose-remaining-ms": "1",
    "windrose-digest": "0" * 64,
    "windrose-rules": "tenant allow= deny=",
    "windrose-attempt": "7",
    "windrose-hops": "1",
    "windrose-tenant": "somebody",
    "windrose-probe": "golden",
    "windrose-load": "1 1 1 1 1 ready",
    "windrose-rest-ms": "60000",
    "windrose-origin": "module",
}


def write_model(folder, golden: bool = True):
    folder.mkdir()
    text = MANIFEST.format(graph=ADD / "rows.onnx")
    if golden:
        outputs = [{"name": "y", "shape": [1, 4], "datatype": "FP32", "data": [41, 51, 61, 71]}]
        (folder / "input.json").write_text(json.dumps(BODY))
        (folder / "output.json").write_text(json.dumps({"outputs": outputs}))
    else:
        text = text[: text.index("[test]")]
    (folder / "windrose.toml").write_text(text)
    return folder


class Peer:
    """Speaks to a site's peer listener with the certificate of another, as its gateway does."""

    def __init__(self, fleet: Fleet, site: str, digest: str = "", by: str = "entry"):
        context = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
        context.check_hostname = False
        context.load_cert_chain(fleet.certificates / f"{by}.pem", fleet.certificates / f"{by}-key.pem")
        # Over HTTP/2 and no other.
        self.make = lambda: httpx.Client(http1=False, http2=True, verify=context, timeout=60)
        self.own = threading.local()
        self.base, self.digest = f"https://127.0.0.1:{fleet.ports[site]}", digest

    @property
    def client(self) -> httpx.Client:
        """One of each thread: OpenSSL must not read and write a connection at the same time, and httpx lets it, so that the
        connection seems to have ended."""
        if not hasattr(self.own, "client"):
            self.own.client = self.make()
        return self.own.client

    def golden(self, digest: str) -> int:
        return self.client.get(f"{self.base}/windrose/golden/{digest}").status_code

    def ready(self) -> dict:
        return self.client.get(f"{self.base}/windrose/load").json()

    def infer(self, **words: str) -> httpx.Response:
        said = {
            "windrose-remaining-ms": "30000",
            "windrose-digest": self.digest,
            "windrose-attempt": "0",
            "windrose-hops": "1",
            "windrose-tenant": "default",
        } | {f"windrose-{name}": value for name, value in words.items()}
        return self.client.post(f"{self.base}/v2/models/{MODEL}/infer", json=BODY, headers=said)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A site whose entry is a test, and no gateway."""
    folder = tmp_path_factory.mktemp("pair")
    fleet = Fleet(folder / "fleet", SITES, {"one": "us"})
    try:
        one = fleet.start("one", **{"log.filter": "info,windrose::access=debug"})
        one.deploy(write_model(folder / "model", golden=False))
        yield one, Peer(fleet, "one", digest_of(one, MODEL))
    finally:
        fleet.stop()


def counts(gateway: Gateway) -> tuple[int, int, int]:
    """Requests that were answered, jobs that an engine answered, and its runs."""
    (statistics,) = gateway.get(f"/v2/models/{MODEL}/stats").json()["model_stats"]
    answered = statistics["inference_stats"]["success"]["count"]
    return answered, statistics["inference_count"], statistics["execution_count"]


def test_tenant_and_attempt_are_in_the_log_where_the_request_arrives(pair):
    one, peer = pair
    assert peer.infer(tenant="acme/eu", attempt="3").status_code == 200
    line = next(line for line in one.tail().splitlines() if "acme/eu" in line)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    for said in ('site="entry"', 'tenant="acme/eu"', "attempt=3", "probe=false", "status=200"):
        assert said in plain, plain
    for wrong in ({"tenant": "a b"}, {"attempt": "x"}, {"probe": "cheap"}, {"hops": "2"}):
        assert peer.infer(**wrong).status_code == 400, wrong


def test_a_connection_lasts_no_longer_than_what_it_was_believed_for(tmp_path):
    """It is ended when its certificate expires, its site leaves the fleet file, or another authority is believed."""
    fleet = Fleet(tmp_path / "fleet", SITES)
    try:
        one = fleet.start("one")
        one.deploy(write_model(tmp_path / "model"))
        digest = digest_of(one, MODEL)

        def ends(begin, why: str, **certificate) -> None:
            fleet.certify("entry", **certificate)
            # A connection of each: what is open is not judged by what is open elsewhere.
            peer = Peer(fleet, "one", digest)
            assert peer.infer().status_code == 200
            begin()
            wait_until(lambda: refused(peer), 20, why)
            wait_until(lambda: why in one.tail(200), 5, f"the log to say `{why}`")

        def refused(peer: Peer) -> bool:
            try:
                return peer.infer().status_code != 200
            except httpx.TransportError:
                return True

        def leave() -> None:
            fleet.names.remove("entry")
            fleet.write()

        def renew_authority() -> None:
            other = Fleet(tmp_path / "other", SITES)
            for file in fleet.certificates.glob("*.pem"):
                file.write_bytes((other.certificates / file.name).read_bytes())

        ends(lambda: None, "its certificate has expired", lifetime="3s")
        ends(leave, "it is no site of this fleet any more")
        fleet.names.append("entry")
        fleet.write()
        wait_until(lambda: not refused(Peer(fleet, "one", digest)), 20, "the site to be back")
        ends(renew_authority, "its certificate is not one of this fleet any more")
    finally:
        fleet.stop()


def test_the_law_is_kept_where_a_request_arrives(pair):
    one, peer = pair
    ran = counts(one)
    for rules, why in (
        ("request allow=eu deny=", "not allowed by the request"),
        ("manifest allow=us,eu deny=; tenant deny=us", "denied by the tenant"),
        ("fleet allow=eu,ch deny=", "not allowed by the fleet file"),
        ("gateway deny=us", "denied by the gateway's settings"),
    ):
        refused = peer.infer(rules=rules)
        assert (refused.status_code, refused.headers["windrose-error"]) == (503, "unlawful"), rules
        assert why in refused.json()["error"], refused.text
    for rules in ("request allow=e u", "somebody deny=us", "request permit=us"):
        assert peer.infer(rules=rules).status_code == 400, rules
    assert counts(one) == ran, "something ran"
    assert peer.infer(rules="request allow=us deny=ch").status_code == 200


def test_a_site_keeps_the_deadline_that_it_is_told(pair):
    one, peer = pair

    def takes(remaining_ms: int) -> float:
        began = time.monotonic()
        assert peer.infer(**{"remaining-ms": str(remaining_ms)}).status_code == 200
        return time.monotonic() - began

    # A row waits for company for a second, and no longer than its deadline leaves time for.
    assert takes(20_000) > 0.9 and min(takes(300) for _ in range(5)) < 0.5


def test_a_refusal_says_how_much_there_is_to_do_and_when_to_come_back(pair, tmp_path):
    one, peer = pair
    generations = {peer.ready()["generation"]}
    asked = [(peer.infer(), 200, "ready"), (peer.infer(digest="0" * 64), 421, "unready")]
    for answer, status, ready in [*asked, (peer.infer(rules="request deny=us"), 503, "ready")]:
        said = re.fullmatch(r"\d+ \d+ \d+ \d+ (\d+) (ready|unready)", answer.headers["windrose-load"])
        assert (answer.status_code, said[2]) == (status, ready), answer.headers
        generations.add(int(said[1]))
    assert len(generations) == 1
    # The cheap probe says the same, by digest.
    assert [entry[:3] for entry in peer.ready()["ready"]] == [[MODEL, "1", peer.digest]]
    fleet = Fleet(tmp_path / "fleet", SITES)
    try:
        narrow = fleet.start("one")
        folder = write_model(tmp_path / "model")
        manifest = folder / "windrose.toml"
        manifest.write_text(manifest.read_text() + "[limits]\nconcurrency = 1\n")
        narrow.deploy(folder)
        peer = Peer(fleet, "one", digest_of(narrow, MODEL))
        with ThreadPoolExecutor(1) as aside:
            first = aside.submit(peer.infer)
            wait_until(lambda: metric(narrow, "windrose_requests_in_flight", model=MODEL) == 1, 10, "a request", 0)
            second = peer.infer()
            assert second.status_code == 429 and second.headers["retry-after"] == "1", second.text
            assert 100 <= int(second.headers["windrose-rest-ms"]) <= 1000
            assert second.headers["windrose-load"].startswith("1 "), second.headers
            assert first.result().status_code == 200
    finally:
        fleet.stop()


def test_requests_of_tenants_that_a_peer_names_share_no_run(pair):
    one, peer = pair

    def runs(*tenants: str) -> int:
        before = counts(one)
        with ThreadPoolExecutor(len(tenants)) as pool:
            answered = list(pool.map(lambda tenant: peer.infer(tenant=tenant), tenants))
        assert [answer.status_code for answer in answered] == [200] * len(tenants), answered[0].text
        after = counts(one)
        assert after[1] - before[1] == len(tenants)
        return after[2] - before[2]

    assert runs("acme", "other") == 2
    # Of one tenant they do, unless the machine kept them a second apart.
    wait_until(lambda: runs("acme", "acme") == 1, 30, "two requests of a tenant in one run")


def test_a_golden_probe_counts_as_no_request(pair):
    one, peer = pair

    def counted() -> dict[str, float]:
        return {
            "requests": metric(one, "windrose_requests"),
            "durations": metric(one, "windrose_request_duration_seconds_count"),
            "statistics": counts(one)[0],
            "probes": metric(one, "windrose_site_probed", site="entry", probe="golden"),
        }

    before = counted()
    assert peer.infer(probe="golden", tenant="probe").status_code == 200
    # One that this site has to refuse is a probe too.
    assert peer.infer(probe="golden", digest="0" * 64).status_code == 421
    assert counted() == before | {"probes": before["probes"] + 2}
    load = metric(one, "windrose_site_probed", site="entry", probe="load")
    assert peer.client.get(f"{peer.base}/windrose/load").status_code == 200
    assert metric(one, "windrose_site_probed", site="entry", probe="load") == load + 1
    assert peer.infer().status_code == 200
    assert counted()["requests"] == before["requests"] + 1


def test_the_probes_of_a_fleet_are_told_apart_where_they_arrive(tmp_path):
    fleet = Fleet(tmp_path / "fleet", SITES)
    try:
        one = fleet.start("one")
        one.deploy(write_model(tmp_path / "model"))
        entry = fleet.start("entry")
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 30, "an answer")
        for probe in ("golden", "load"):
            wait_until(
                lambda probe=probe: metric(one, "windrose_site_probed", site="entry", probe=probe) >= 2, 20, probe
            )
        assert metric(entry, "windrose_site_probes", site="one") >= 2
        assert metric(one, "windrose_requests", model=MODEL) == 1
        # A client cannot pass its requests off as probes, nor as a tenant's, at an entry or at a site.
        for gateway in (entry, one):
            before = metric(one, "windrose_requests", model=MODEL, kind="ok")
            said = answers(gateway, MODEL, BODY, **{k.replace("-", "_"): v for k, v in WORDS.items()})
            assert said.status == 200, said.body
            assert metric(one, "windrose_requests", model=MODEL, kind="ok") == before + 1
    finally:
        fleet.stop()


def deploy_mirror(gateway: Gateway, folder):
    """A component that answers with the names of the headers that reached it."""
    folder.mkdir(exist_ok=True)
    module = ROOT / "target" / "guests" / "hostile-http.wasm"
    (folder / "windrose.toml").write_text(f'name = "mirror"\nmodule = "{module}"\n')
    gateway.deploy(folder)


def seen_by_guest(gateway: Gateway) -> set[str]:
    """With the words of a gateway before the body, and behind it."""
    trailers = "".join(f"{name}: {value}\r\n" for name, value in WORDS.items())
    head = {"te": "trailers", "trailer": ",".join(WORDS), "x-own": "1", "transfer-encoding": "chunked"} | WORDS
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    request = f"POST /models/mirror/headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{lines}\r\n"
    answer = raw(gateway, request + "3\r\nabc\r\n0\r\n" + trailers + "x-last: 1\r\n\r\n")
    assert " 200 " in answer.splitlines()[0], answer
    return set(answer.split("\r\n\r\n", 1)[1].lower().split())


def raw(gateway: Gateway, text: str) -> str:
    import socket

    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as stream:
        stream.sendall(text.encode())
        received = b""
        while piece := stream.recv(65536):
            received += piece
    return received.decode()


def test_a_guest_never_sees_the_words_of_a_gateway(make_gateway, tmp_path):
    alone = make_gateway()
    deploy_mirror(alone, tmp_path / "mirror")
    names = seen_by_guest(alone)
    assert {"x-own", "x-last"} <= names and not names & set(WORDS), names
    fleet = Fleet(tmp_path / "fleet", SITES)
    try:
        deploy_mirror(fleet.start("one"), tmp_path / "mirror")
        entry = fleet.start("entry")
        wait_until(lambda: entry.get("/models/mirror/").status == 200, 30, "the component at the entry")
        # Here, and by way of the entry.
        for gateway in (fleet.gateways["one"], entry):
            names = seen_by_guest(gateway)
            assert "x-own" in names and not names & set(WORDS), names
    finally:
        fleet.stop()


def test_a_model_gets_nothing_of_a_clients_headers(make_gateway, tmp_path):
    """The world of models has no headers at all; what would bind or hurry a forwarded request binds no client's."""
    gateway = make_gateway()
    gateway.deploy(write_model(tmp_path / "model", golden=False))
    said = answers(gateway, MODEL, BODY, **{name.replace("-", "_"): value for name, value in WORDS.items()})
    assert said.status == 200, said.body
    assert "parameters" not in said.json()


def test_a_golden_test_goes_where_its_model_may(tmp_path):
    """It is data of the model: a gateway under another law neither has it nor sends it."""
    sites = {"here": "eu", "there": "eu", "abroad": "us"}
    fleet = Fleet(tmp_path / "fleet", list(sites), sites)
    try:
        folder = write_model(tmp_path / "model")
        manifest = folder / "windrose.toml"
        manifest.write_text(manifest.read_text() + '[jurisdictions]\nallow = ["eu"]\n')
        for name in ("here", "there"):
            fleet.start(name).deploy(folder)
        abroad = fleet.start("abroad")
        wait_until(lambda: len(explained(abroad, MODEL)["candidates"]) >= 2, 30, "both sites abroad")
        probed = lambda by: metric(fleet.gateways["here"], "windrose_site_probed", site=by, probe="golden")  # noqa: E731
        wait_until(lambda: probed("there") >= 3, 30, "probes from where they may come")
        assert probed("abroad") == 0 and metric(abroad, "windrose_site_probes") == 0
        digest = hashlib.sha256((folder / "input.json").read_bytes()).hexdigest()
        got = {name: Peer(fleet, "here", by=name).golden(digest) for name in ("there", "abroad")}
        assert got == {"there": 200, "abroad": 404}
    finally:
        fleet.stop()


# Its instances count what they are asked, and the first one's answer is the right one.
COUNTING = f"""
name = "counting"
module = "{ROOT / "target" / "guests" / "hostile.wasm"}"
[graphs.model]
file = "{ADD / "identity_fp32.onnx"}"
[limits]
reuse = 100
[test]
input = "input.json"
output = "output.json"
"""
COUNT = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [7]}], "parameters": {"act": "count"}}


def test_a_site_that_finds_itself_wrong_leaves_its_own_clients_to_another(tmp_path):
    """One keeps its instances, so that its answers change; the other's operator does not let it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "windrose.toml").write_text(COUNTING)
    (folder / "input.json").write_text(json.dumps(COUNT))
    outputs = [{"name": "y", "shape": [1], "datatype": "FP32", "data": [1]}]
    (folder / "output.json").write_text(json.dumps({"outputs": outputs}))
    fleet = Fleet(tmp_path / "fleet", ["wrong", "right"])
    try:
        wrong = fleet.start("wrong")
        right = fleet.start("right", **{"ceiling.reuse": "1"})
        for gateway in (wrong, right):
            gateway.deploy(folder)
        for gateway in (wrong, right):
            found = lambda gateway=gateway: metric(gateway, "windrose_site_ejections", site="wrong", why="wrong") >= 1  # noqa: E731
            wait_until(found, 30, "the wrong answers to be found")
        assert "its answer to a golden input was wrong" in wrong.log.read_text()
        ask = {"inputs": COUNT["inputs"]}
        for gateway in (wrong, right):
            assert {answers(gateway, "counting", ask).headers["windrose-site"] for _ in range(10)} == {"right"}
    finally:
        fleet.stop()
