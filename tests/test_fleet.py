"""Several gateways as one: real processes on loopback, peers over TLS with certificates on both sides."""

import http.client
import json
import re
import signal
import socket
import ssl
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from fleet import ADD, Fleet, answers, digest_of, explained, metric, until_site
from harness import Gateway, wait_until

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
MODEL = "identity"


def deploy(gateway, name=MODEL, graph="identity_fp32", version="1"):
    gateway.cli("deploy", ADD / f"{graph}.onnx", "--name", name, "--model-version", version)


@pytest.fixture
def make_fleet(tmp_path):
    made = []

    def make(*names, **more) -> Fleet:
        fleet = Fleet(tmp_path / f"fleet{len(made)}", list(names), **more)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.stop()


def ready_at(entry, model, sites):
    def look():
        try:
            found = explained(entry, model)
        except AssertionError:
            return False
        return sites <= {c["site"] for c in found["candidates"]}

    wait_until(look, 10, f"{model} at {sites}", pause=0.1)


@pytest.fixture
def trio(make_fleet):
    """An entry that serves nothing, and two sites that serve the same model."""
    fleet = make_fleet("entry", "aws/one", "gcp/two")
    for name in ("aws/one", "gcp/two"):
        deploy(fleet.start(name))
    entry = fleet.start("entry")
    ready_at(entry, MODEL, {"aws/one", "gcp/two"})
    return fleet, entry


def test_an_entry_answers_from_any_site_and_says_which(trio):
    fleet, entry = trio
    until_site(entry, MODEL, BODY, {"aws/one", "gcp/two"})
    answer = answers(entry, MODEL, BODY)
    assert answer.status == 200 and answer.json()["outputs"][0]["data"] == [1.5, 2.5]
    headers = answer.headers
    assert headers["windrose-model"] == MODEL and headers["windrose-version"] == "1"
    assert re.fullmatch(r"[0-9a-f]{64}", headers["windrose-digest"])
    assert re.fullmatch(r"[0-9a-f]{64}", headers["windrose-module"])
    assert re.fullmatch(r"model=[0-9a-f]{64}", headers["windrose-graphs"])
    assert headers["windrose-engine"] == "rten" and headers["windrose-attempts"] == "1"
    assert "windrose-load" not in headers
    assert answers(entry, "nothing", BODY).status == 404


def test_an_entry_tells_of_models_that_only_other_sites_serve(trio):
    fleet, entry = trio
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"):
        told, own = entry.get(path), fleet.gateways["aws/one"].get(path)
        assert told.status == 200 and told.json() == own.json(), told.body
        assert told.headers["windrose-site"] in {"aws/one", "gcp/two"} and "windrose-site" not in own.headers
        assert entry.get(path + "/ready").json() == {"name": MODEL, "version": "1", "ready": True}
    for path in ("/v2/models/nothing", f"/v2/models/{MODEL}/versions/2"):
        assert [entry.get(path + end).status for end in ("", "/ready")] == [404, 404]
    # How long that took is no reason to choose one site or the other for a call.
    assert explained(entry, MODEL)["decisions"] == []
    fleet.gateways["aws/one"].stop(signal.SIGKILL)
    assert [entry.get(f"/v2/models/{MODEL}/ready").status for _ in range(10)] == [200] * 10
    fleet.gateways["gcp/two"].stop()
    assert entry.get(f"/v2/models/{MODEL}/ready").status == 503


def test_one_that_serves_the_model_itself_answers_the_same(trio):
    fleet, _ = trio
    one = fleet.gateways["aws/one"]
    answer = answers(one, MODEL, BODY)
    assert answer.status == 200 and answer.headers["windrose-site"] in {"aws/one", "gcp/two"}


def test_a_peer_that_is_killed_or_hangs_is_not_noticed(trio):
    fleet, entry = trio
    for how in (signal.SIGKILL, signal.SIGSTOP):
        until_site(entry, MODEL, BODY, {"aws/one", "gcp/two"})
        victim = fleet.gateways["aws/one"]
        victim.process.send_signal(how)
        statuses = [answers(entry, MODEL, BODY).status for _ in range(50)]
        assert statuses == [200] * 50
        if how == signal.SIGSTOP:
            victim.process.send_signal(signal.SIGCONT)
        else:
            victim.stop(signal.SIGKILL)
            victim.start()
            ready_at(entry, MODEL, {"aws/one", "gcp/two"})
    until_site(entry, MODEL, BODY, {"aws/one", "gcp/two"}, seconds=30)


def test_a_rolling_restart_is_not_noticed_and_takes_no_time(trio):
    fleet, entry = trio
    stop, failed = threading.Event(), []

    def load():
        while not stop.is_set():
            answer = answers(entry, MODEL, BODY)
            if answer.status != 200:
                failed.append((answer.status, answer.body))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for name in ("aws/one", "gcp/two"):
            began = time.monotonic()
            assert fleet.gateways[name].stop() == 0
            # Idle connections of peers do not hold it up.
            assert time.monotonic() - began < 8
            fleet.start(name)
            ready_at(entry, MODEL, {"aws/one", "gcp/two"})
    finally:
        stop.set()
        thread.join()
    assert not failed, failed[:3]


def said(gateway, what: str) -> dict[str, datetime]:
    """When the gateway's log said that, by the generation that it named."""
    lines = [line for line in gateway.log.read_text(errors="replace").splitlines() if what in line]
    found = {}
    for line in lines:
        generation = re.search(r"generation=(?:Some\()?(\d+)", line)
        if generation:
            found.setdefault(generation[1], datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")))
    return found


def test_what_is_ready_where_is_known_within_a_second(trio):
    """By both gateways' own clocks, which are one here; how long one of them was kept from its core is not what is asked."""
    fleet, entry = trio
    one = fleet.gateways["aws/one"]
    told = "peers are told what is served here"
    known = lambda: said(entry, "what a peer serves has changed")  # noqa: E731
    before = said(one, told)
    for number in range(5):
        so_far = len(said(one, told))
        deploy(one, f"fresh{number}")
        wait_until(lambda: len(said(one, told)) > so_far, 30, "the change at the site")  # noqa: B023
    # The table changes first, and then the log says so.
    began = {at: time for at, time in said(one, told).items() if at not in before}
    wait_until(lambda: began.keys() <= known().keys(), 30, "the entry to know them")
    took = [(known()[at] - time).total_seconds() for at, time in began.items()]
    assert statistics.median(took) < 1, took
    assert answers(entry, "fresh4", BODY).status == 200


def test_only_one_digest_answers(trio):
    fleet, entry = trio
    one, two = fleet.gateways["aws/one"], fleet.gateways["gcp/two"]
    deploy(one, "fresh")
    wait_until(lambda: answers(entry, "fresh", BODY).status == 200, 10, "the new model at the entry")
    digest = digest_of(entry, "fresh")
    # So long that it is the one which is meant when another comes.
    time.sleep(11)
    # Another graph under the same name and version: it stops nobody who answered before.
    deploy(two, "fresh", graph="add_fp32")
    ready_at(entry, "fresh", {"aws/one", "gcp/two"})
    assert {answers(entry, "fresh", BODY).headers["windrose-digest"] for _ in range(20)} == {digest}
    (refused,) = [c["refused"] for c in explained(entry, "fresh")["candidates"] if c["site"] == "gcp/two"]
    assert "digest" in refused
    # A gateway that starts does not know what answered before: nobody can say which is meant.
    entry.stop()
    entry.start()
    ready_at(entry, "fresh", {"aws/one", "gcp/two"})
    assert answers(entry, "fresh", BODY).status == 503
    # The file decides.
    fleet.write(f'[model.fresh]\ndigests = ["{digest}"]\n')
    wait_until(lambda: answers(entry, "fresh", BODY).status == 200, 10, "the digest that the file allows")
    assert answers(entry, "fresh", BODY).headers["windrose-digest"] == digest
    # A site answers only what it serves itself allows.
    assert answers(one, "fresh", BODY).headers["windrose-site"] == "aws/one"


def test_the_death_of_the_only_site_of_a_new_version_is_not_noticed(trio):
    fleet, entry = trio
    one = fleet.gateways["aws/one"]

    def version() -> str | None:
        return answers(entry, MODEL, BODY).headers.get("windrose-version")

    deploy(one, version="2")
    wait_until(lambda: version() == "2", 10, "the new version")
    one.stop(signal.SIGKILL)
    said = [answers(entry, MODEL, BODY) for _ in range(100)]
    assert {(answer.status, answer.headers["windrose-version"]) for answer in said} == {(200, "1")}
    fleet.start("aws/one")
    wait_until(lambda: version() == "2", 30, "the new version to be back")


def test_what_a_client_says_in_a_peers_words_is_dropped(trio):
    fleet, entry = trio
    spoofed = answers(
        entry,
        MODEL,
        BODY,
        windrose_remaining_ms="1",
        windrose_hops="1",
        windrose_digest="0" * 64,
        windrose_rules="tenant allow= deny=",
        windrose_tenant="somebody",
    )
    assert spoofed.status == 200, spoofed.body
    assert answers(entry, MODEL, BODY, windrose_timeout_ms="0").status == 400


def test_nobody_without_a_sites_certificate_reaches_a_peer_listener(trio, make_fleet):
    fleet, entry = trio
    port = fleet.ports["aws/one"]
    context = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])

    def refused(context) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            try:
                with context.wrap_socket(plain) as tls:
                    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                    return not tls.recv(1)
            except (ssl.SSLError, ConnectionError):
                return True

    assert refused(context)
    # Signed by the right authority, for a site that is not of this fleet.
    fleet.certify("nobody")
    strange = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
    strange.check_hostname = False
    strange.set_alpn_protocols(["h2"])
    strange.load_cert_chain(fleet.certificates / "nobody.pem", fleet.certificates / "nobody-key.pem")
    assert refused(strange)
    # Of another authority.
    other = make_fleet("entry")
    strange = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
    strange.check_hostname = False
    strange.load_cert_chain(other.certificates / "entry.pem", other.certificates / "entry-key.pem")
    assert refused(strange)
    # And the entry's own certificate is let in.
    known = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
    known.check_hostname = False
    known.set_alpn_protocols(["h2"])
    known.load_cert_chain(fleet.certificates / "entry.pem", fleet.certificates / "entry-key.pem")
    assert not refused(known)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b"GET /windrose/catalog HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"200" not in plain.recv(100)


def test_a_certificate_that_expires_shuts_a_site_out_and_a_new_one_lets_it_in(trio):
    """While connections to it are open: neither do they go on, nor does a client notice."""
    fleet, entry = trio
    one = fleet.gateways["aws/one"]
    # Started again, so that the connections are made with the certificate that will expire.
    one.stop()
    fleet.certify("aws/one", lifetime="12s")
    expires = time.time() + 12
    fleet.start("aws/one")

    def ask(_) -> tuple[int, str | None]:
        answer = answers(entry, MODEL, BODY)
        return answer.status, answer.headers.get("windrose-site")

    with ThreadPoolExecutor(12) as together:
        until_site(entry, MODEL, BODY, {"aws/one", "gcp/two"})
        assert time.time() < expires, "the machine is too slow for this certificate"
        seen = []
        while time.time() < expires + 1.5:
            seen += together.map(ask, range(24))
        assert {status for status, _ in seen} == {200}, seen
        assert "aws/one" in {site for _, site in seen}
        arrived = metric(one, "windrose_requests", model=MODEL)
        after = list(together.map(ask, range(500)))
        assert set(after) == {(200, "gcp/two")}
        assert metric(one, "windrose_requests", model=MODEL) == arrived
    assert "has expired" in entry.tail(200)
    fleet.certify("aws/one")
    until_site(entry, MODEL, BODY, {"aws/one", "gcp/two"}, seconds=30)


def test_a_large_body_is_streamed_and_a_large_answer_too(trio):
    fleet, entry = trio
    count = 600_000
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, count], "data": [0.5] * count}]}
    answer = answers(entry, MODEL, body)
    assert answer.status == 200, answer.body[:300]
    assert answer.json()["outputs"][0]["data"] == [0.5] * count


def test_a_client_that_sends_slowly_makes_no_site_look_slow(trio):
    """Of a body that is not held: it is passed on as it comes."""
    fleet, entry = trio
    count = 600_000
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, count], "data": [0.5] * count}]}
    text = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", entry.port, timeout=60)
    headers = {"content-type": "application/json", "content-length": str(len(text))}
    connection.putrequest("POST", f"/v2/models/{MODEL}/infer")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(text[:-1000])
    time.sleep(4)
    connection.send(text[-1000:])
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["windrose-attempts"]) == (200, "1")
    (site,) = [one for one in explained(entry, MODEL)["candidates"] if one["site"] == answer.headers["windrose-site"]]
    assert site["score_ms"] < 2_000, site


def test_a_deadline_holds_whatever_the_site_does(make_fleet):
    fleet = make_fleet("entry", "one")
    one = fleet.start("one")
    deploy(one, "loop", "loop")
    entry = fleet.start("entry")
    ready_at(entry, "loop", {"one"})
    inputs = [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [2_000_000_000]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
    began = time.monotonic()
    late = answers(entry, "loop", {"inputs": inputs}, windrose_timeout_ms="300")
    assert late.status == 504 and time.monotonic() - began < 10


def test_a_deadline_is_the_clients_and_no_sites_failure(make_fleet):
    fleet = make_fleet("entry", "one", "two")
    for name in ("one", "two"):
        deploy(fleet.start(name), "loop", "loop")
    entry = fleet.start("entry")
    ready_at(entry, "loop", {"one", "two"})
    inputs = [
        {"name": "times", "datatype": "INT64", "shape": [], "data": [2_000_000]},
        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]},
    ]
    # In the body, which the entry does not read: the site alone knows how long the client waits. In a header both know.
    told = {"inputs": inputs, "parameters": {"timeout": 2_000}}
    for body, headers in ((told, {}), ({"inputs": inputs}, {"windrose_timeout_ms": "2"})):
        attempts = []
        for _ in range(8):
            late = answers(entry, "loop", body, windrose_hedge="never", **headers)
            assert (late.status, late.headers["windrose-error"]) == (504, "deadline"), late.body
            attempts.append(late.headers.get("windrose-attempts", "1"))
        # Nobody else has more time. A machine that pauses makes a site so late that it is given up.
        assert statistics.median_low(attempts) == "1", attempts
    assert metric(entry, "windrose_site_attempts", ended="too_late") >= 8
    assert metric(entry, "windrose_site_attempts", ended="failed") == 0 == metric(entry, "windrose_site_ejections")


def test_attempts_are_counted_and_decisions_explained(trio):
    fleet, entry = trio
    for _ in range(10):
        assert answers(entry, MODEL, BODY).status == 200
    wait_until(lambda: metric(entry, "windrose_site_attempts", ended="answered") >= 10, 5, "counts")
    found = explained(entry, MODEL)
    assert found["repeatable"] and found["chosen"] in {"aws/one", "gcp/two"}
    assert {c["kind"] for c in found["candidates"]} == {"peer"}
    assert found["decisions"] and found["decisions"][0]["purpose"] == "first"
    text = entry.cli("explain", MODEL).stdout
    assert "goes to" in text and "aws/one" in text
    # One request of several is found again, and nothing about another.
    named = "a+b/c&d=1"
    assert answers(entry, MODEL, BODY, x_request_id=named).headers["x-request-id"] == named
    assert answers(entry, MODEL, BODY).status == 200
    found = json.loads(entry.cli("explain", MODEL, "--request", named, "--json").stdout)["decisions"]
    assert {(made["request"], made["tenant"]) for made in found} == {(named, "default")} and found[-1]["purpose"] == "first"
    assert f"for {named}  of default" in entry.cli("explain", MODEL, "--request", named).stdout
    assert "no decision about the request" in entry.cli("explain", MODEL, "--request", "other").stdout
    assert entry.cli("explain", "nothing", check=False).returncode == 1


def unlawful(entry, **headers) -> str:
    """Why no site may answer, or nothing."""
    answer = answers(entry, MODEL, BODY, **headers)
    return answer.json()["error"] if answer.headers.get("windrose-error") == "unlawful" else ""


def test_the_law_holds_everywhere(make_fleet):
    fleet = make_fleet("entry", "a", "b", jurisdictions={"entry": "eu", "a": "eu", "b": "us"})
    for name in ("a", "b"):
        deploy(fleet.start(name))
    entry = fleet.start("entry")
    ready_at(entry, MODEL, {"a", "b"})
    eu = {answers(entry, MODEL, BODY, windrose_allow="EU").headers["windrose-site"] for _ in range(20)}
    us = {answers(entry, MODEL, BODY, windrose_deny="eu").headers["windrose-site"] for _ in range(20)}
    assert (eu, us) == ({"a"}, {"b"})
    before = metric(entry, "windrose_site_attempts")
    none = answers(entry, MODEL, BODY, windrose_allow="ch")
    assert none.status == 503 and none.headers["windrose-error"] == "unlawful"
    assert "not allowed by the request" in none.json()["error"]
    assert metric(entry, "windrose_site_attempts") == before
    # Each site's own reason, by the name of who gave it.
    fleet.write('[model.identity]\ndeny = ["us"]\n')
    said = "b: denied by the fleet file; a: denied by the request"
    wait_until(lambda: unlawful(entry, windrose_deny="eu").endswith(said), 10, "the rule of the fleet file")
    assert "denied by the fleet file" in entry.cli("explain", MODEL).stdout
    fleet.write("")
    wait_until(lambda: not unlawful(entry, windrose_deny="eu"), 10, "the rule to be gone")
    assert answers(entry, MODEL, BODY, windrose_allow="e u").status == 400
    # What is told of a model comes from where its calls may go.
    path = f"/v2/models/{MODEL}"
    told = {entry.get(path, headers={"windrose-allow": "us"}).headers["windrose-site"] for _ in range(5)}
    assert told == {"b"}
    assert entry.get(path, headers={"windrose-allow": "ch"}).headers["windrose-error"] == "unlawful"
    text = entry.cli("explain", MODEL, "--deny", "us").stdout
    assert "denied by the request" in text
    # A manifest binds wherever the model is asked for; a client cannot loosen it.
    folder = fleet.folder / "bound"
    folder.mkdir()
    (folder / "windrose.toml").write_text(
        'name = "bound"\n[graphs.model]\nfile = "m.onnx"\n[jurisdictions]\nallow = ["eu"]\n'
    )
    (folder / "m.onnx").write_bytes((ADD / "identity_fp32.onnx").read_bytes())
    for name in ("a", "b"):
        fleet.gateways[name].deploy(folder)
    ready_at(entry, "bound", {"a", "b"})
    assert {answers(entry, "bound", BODY).headers["windrose-site"] for _ in range(20)} == {"a"}
    assert answers(entry, "bound", BODY, windrose_allow="us").status == 503
    assert {answers(fleet.gateways["b"], "bound", BODY).headers["windrose-site"] for _ in range(5)} == {"a"}
    fleet.gateways["a"].stop()
    gone = answers(entry, "bound", BODY)
    assert gone.status == 503


def test_a_gateway_alone_keeps_the_law_too(make_gateway):
    gateway = make_gateway()
    deploy(gateway)
    assert answers(gateway, MODEL, BODY).status == 200
    bound = answers(gateway, MODEL, BODY, windrose_allow="eu")
    assert bound.status == 503 and bound.headers["windrose-error"] == "unlawful"


def test_a_foreign_server_answers_only_what_the_file_names(make_fleet, tmp_path):
    foreign = Gateway(tmp_path / "foreign").start()
    try:
        deploy(foreign)
        deploy(foreign, "other")
        fleet = make_fleet("entry")
        fleet.write(
            f'[[site]]\nname = "lab/triton"\nkind = "oip"\nplain = true\naddresses = ["127.0.0.1:{foreign.port}"]\n'
            f'models = ["{MODEL}"]\n'
        )
        entry = fleet.start("entry")
        answer = answers(entry, MODEL, BODY)
        assert answer.status == 200, answer.body
        assert answer.headers["windrose-site"] == "lab/triton" and answer.headers["windrose-digest"] == "unverified"
        assert answers(entry, MODEL, BODY, windrose_verified="true").status == 503
        assert answers(entry, "other", BODY).status == 404
        assert entry.get(f"/v2/models/{MODEL}").json() == foreign.get(f"/v2/models/{MODEL}").json()
        assert entry.get(f"/v2/models/{MODEL}/ready").status == 200 and entry.get("/v2/models/other").status == 404
        assert not explained(entry, MODEL)["repeatable"]
    finally:
        foreign.stop()


def test_a_foreign_server_waits_for_the_law_of_sites_that_were_never_heard_of(make_fleet, tmp_path):
    """A server in the US, and a site in the EU whose manifest keeps the model's data there."""
    foreign = Gateway(tmp_path / "foreign").start()
    try:
        deploy(foreign)
        fleet = make_fleet("entry", "home", jurisdictions={"entry": "eu", "home": "eu"})
        triton = (
            f'[[site]]\nname = "lab/triton"\nkind = "oip"\nplain = true\naddresses = ["127.0.0.1:{foreign.port}"]\n'
            f'jurisdiction = "us"\nmodels = ["{MODEL}"]\n'
        )
        fleet.write(triton)
        entry = fleet.start("entry")

        def refused(because: str) -> bool:
            answer = answers(entry, MODEL, BODY)
            assert (answer.status, answer.headers["windrose-error"]) == (503, "unlawful"), answer
            return because in answer.json()["error"]

        assert refused("lab/triton: gateways that may bind the model have not been heard of (home)")
        assert "have not been heard of" in entry.cli("explain", MODEL).stdout
        # The operator can say it in their place.
        fleet.write(f'{triton}[model.{MODEL}]\ndeny = ["ch"]\n')
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 10, "the fleet file's word", 0.1)
        fleet.write(triton)
        wait_until(lambda: answers(entry, MODEL, BODY).status == 503, 10, "the word to be gone", 0.1)

        home, folder = fleet.start("home"), tmp_path / "bound"
        folder.mkdir()
        file = f'[graphs.model]\nfile = "{ADD / "identity_fp32.onnx"}"\n'
        (folder / "windrose.toml").write_text(f'name = "{MODEL}"\n{file}[jurisdictions]\nallow = ["eu"]\n')
        home.deploy(folder)
        asked = metric(foreign, "windrose_requests", model=MODEL)
        ready_at(entry, MODEL, {"home"})
        assert {answers(entry, MODEL, BODY).headers["windrose-site"] for _ in range(20)} == {"home"}
        home.stop(signal.SIGKILL)
        # Whoever starts now knows what was heard before.
        entry.stop(signal.SIGKILL)
        entry.start()
        assert refused("lab/triton: not allowed by the manifest")
        assert metric(foreign, "windrose_requests", model=MODEL) == asked
        fleet.start("home").cli("delete", MODEL, "--yes")
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 10, "the site to be heard of", 0.1)
    finally:
        foreign.stop()


def test_a_fleet_file_that_is_wrong_stops_the_start_and_later_changes_nothing(make_fleet):
    fleet = make_fleet("entry", "one")
    entry = fleet.start("entry")
    fleet.file.write_text("[[site]]\nname = 1\n")
    wait_until(lambda: "the one before stays in force" in entry.tail(), 10, "the log to say so")
    entry.stop()
    done = entry.cli("serve", check=False)
    assert done.returncode == 2 and "fleet.toml" in done.stderr


def test_the_fleet_file_says_what_chooses_and_is_followed(make_fleet):
    """A gateway that serves the model, and two sites of which one costs half as much."""
    fleet = make_fleet("home", "dear", "cheap")
    sites = fleet.file.read_text()
    for name, price in (("home", 3), ("dear", 2), ("cheap", 1)):
        sites = sites.replace(f'name = "{name}"\n', f'name = "{name}"\nprice = {{ request = {price} }}\nweight = {price - 1}\n')

    def gave() -> set[str]:
        """Without hedges: a busy machine makes any site late, and another then answers."""
        return {answers(home, MODEL, BODY, windrose_hedge="never").headers["windrose-site"] for _ in range(30)}

    def chooses(policy: str, expected: set[str]):
        fleet.file.write_text(f"{sites}[model.{MODEL}]\n{policy}\n")
        wait_until(lambda: gave() == expected, 10, f"{policy} to be followed")
        assert gave() == expected

    fleet.file.write_text(sites)
    for name in fleet.names:
        deploy(fleet.start(name))
    home = fleet.gateways["home"]
    ready_at(home, MODEL, set(fleet.names))
    chooses('policy = "local-first"', {"home"})
    chooses('policy = "cheapest"\np99 = "5s"', {"cheap"})
    # The weight of the cheap one is 0.
    chooses('policy = "weights"', {"home", "dear"})
