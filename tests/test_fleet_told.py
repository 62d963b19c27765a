"""What a gateway tells a site about a request, as a site that is a test hears it."""

import json
import socket
import ssl
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest
from fleet import ADD, Fleet, answers, digest_of
from harness import wait_until

MODEL = "identity"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
OUTPUTS = [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]


class Listener:
    """A site of a fleet that offers what another does, and keeps the headers of what it is asked."""

    def __init__(self, fleet: Fleet, name: str, catalog: bytes):
        self.catalog, self.heard, self.catalogs, self.load = catalog, [], [], None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(fleet.certificates / f"{name}.pem", fleet.certificates / f"{name}-key.pem")
        context.load_verify_locations(fleet.certificates / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        self.standing = json.dumps({"generation": json.loads(catalog)["generation"], "ready": []}).encode()
        self.context, self.server = context, socket.create_server(("127.0.0.1", fleet.ports[name]))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                plain, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[plain], daemon=True).start()

    def _serve(self, plain):
        try:
            with self.context.wrap_socket(plain, server_side=True) as stream:
                said = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
                said.initiate_connection()
                while True:
                    stream.sendall(said.data_to_send())
                    received = stream.recv(65536)
                    if not received:
                        return
                    for event in said.receive_data(received):
                        if isinstance(event, h2.events.RequestReceived):
                            self._answer(said, event.stream_id, dict(event.headers))
        except (OSError, h2.exceptions.ProtocolError):
            pass

    def _answer(self, said, stream: int, headers: dict[str, str]):
        path = headers[":path"]
        if path.startswith("/windrose/catalog"):
            self.catalogs.append(path)
            if path != "/windrose/catalog":
                return  # Nothing changes.
            body = self.catalog
        elif path.startswith("/windrose/"):
            body = self.standing
        else:
            self.heard.append(headers)
            body = json.dumps({"model_name": MODEL, "outputs": OUTPUTS}).encode()
        answer = [(":status", "200"), ("content-type", "application/json"), ("content-length", str(len(body)))]
        if self.load and not path.startswith("/windrose/"):
            answer.append(("windrose-load", self.load))
        said.send_headers(stream, answer)
        said.send_data(stream, body, end_stream=True)

    def stop(self):
        self.server.close()


@pytest.fixture
def listener(tmp_path):
    """An entry, and the one site that serves a model."""
    fleet = Fleet(tmp_path / "fleet", ["entry", "one", "two"])
    listener = None
    try:
        one = fleet.start("one")
        one.cli("deploy", ADD / "identity_fp32.onnx", "--name", MODEL, "--model-version", "1")
        digest = digest_of(one, MODEL)
        context = ssl.create_default_context(cafile=fleet.certificates / "authority.pem")
        context.check_hostname = False
        context.load_cert_chain(fleet.certificates / "entry.pem", fleet.certificates / "entry-key.pem")
        with httpx.Client(http1=False, http2=True, verify=context) as client:
            catalog = client.get(f"https://127.0.0.1:{fleet.ports['one']}/windrose/catalog").content
        one.stop()
        listener = Listener(fleet, "two", catalog)
        entry = fleet.start("entry")
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 30, "an answer of the listener")
        listener.heard.clear()
        yield entry, listener, digest
    finally:
        fleet.stop()
        if listener:
            listener.stop()


def test_an_answer_or_a_probe_of_another_catalogue_has_it_fetched_at_once(listener):
    """Whatever became of the question that waits for a change: here it is never answered."""
    entry, site, _ = listener
    known = json.loads(site.catalog)["generation"]
    whole = lambda: site.catalogs.count("/windrose/catalog")  # noqa: E731
    waiting = lambda: site.catalogs[-1] == f"/windrose/catalog?after={known}"  # noqa: E731

    site.load = f"0 0 1 5 {known} ready"
    wait_until(waiting, 10, "the entry to wait for a change")
    before = whole()
    assert answers(entry, MODEL, BODY).status == 200 and waiting() and whole() == before

    site.catalog = json.dumps(json.loads(site.catalog) | {"generation": known + 1}).encode()
    site.load = f"0 0 1 5 {known + 1} ready"
    assert answers(entry, MODEL, BODY).status == 200
    wait_until(lambda: whole() > before, 10, "the catalogue to be fetched after an answer")
    known += 1
    site.standing = json.dumps({"generation": known, "ready": []}).encode()
    wait_until(waiting, 10, "the entry to wait for a change")

    before, known = whole(), known + 1
    site.catalog = json.dumps(json.loads(site.catalog) | {"generation": known}).encode()
    site.load = None
    site.standing = json.dumps({"generation": known, "ready": []}).encode()
    wait_until(lambda: whole() > before, 10, "the catalogue to be fetched after a probe")


def test_what_travels_along(listener):
    entry, site, digest = listener
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = answers(
        entry,
        MODEL,
        BODY,
        x_request_id="one-of-many",
        traceparent=f"00-{trace}-00f067aa0ba902b7-01",
        tracestate="vendor=1",
        windrose_timeout_ms="5000",
    )
    assert answer.status == 200 and answer.headers["windrose-site"] == "two"
    (heard,) = site.heard
    assert heard["x-request-id"] == "one-of-many" and heard["tracestate"] == "vendor=1"
    version, carried, span, flags = heard["traceparent"].split("-")
    assert (version, carried, flags) == ("00", trace, "01") and span != "00f067aa0ba902b7"
    assert heard["traceparent"] == answer.headers["traceparent"]
    # Some of the five seconds are gone; half of them would be too many.
    assert 2500 < int(heard["windrose-remaining-ms"]) <= 5000
    said = {name: heard.get(f"windrose-{name}") for name in ("tenant", "attempt", "hops", "digest", "rules", "probe")}
    assert said == {
        "tenant": "default", "attempt": "0", "hops": "1", "digest": digest, "rules": None, "probe": None
    }  # fmt: skip
    # Without a word of the client's it is what the model's manifest says.
    assert answers(entry, MODEL, BODY).status == 200
    assert 25_000 < int(site.heard[1]["windrose-remaining-ms"]) <= 30_000


def test_a_site_that_claims_what_its_module_does_not_ask_for_is_not_used(listener):
    entry, site, _ = listener
    told = json.loads(site.catalog)
    known = told["generation"] + 1
    for offer in told["ready"]:
        offer["granted"] = 1
    site.catalog = json.dumps(told | {"generation": known}).encode()
    site.standing = json.dumps({"generation": known, "ready": []}).encode()
    # The model is known, and nobody may answer for it.
    wait_until(lambda: answers(entry, MODEL, BODY).status == 503, 10, "the offer to be gone")
    assert "does not ask for" in entry.log.read_text()
