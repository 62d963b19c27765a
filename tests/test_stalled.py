"""A foreign server that stops within an answer, and clients that read one slowly."""

import http.client
import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet import Fleet, answers, metric
from harness import wait_until

SITE = "lab/foreign"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
# More than any buffer on the way takes, and more than a gateway holds.
LONG, PIECE = 48 << 20, 1 << 20


class Answers(http.server.BaseHTTPRequestHandler):
    """A server of the Open Inference Protocol whose answers stop in the middle where the test wants that."""

    protocol_version = "HTTP/1.1"
    stalls = threading.Event()
    over = threading.Event()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        stalls = self.stalls.is_set()
        self.send_response(200)
        self.send_header("content-type", "application/octet-stream")
        self.send_header("content-length", str(LONG))
        self.end_headers()
        for _ in range((2 << 20 if stalls else LONG) // PIECE):
            self.wfile.write(bytes(PIECE))
        if stalls:
            self.over.wait(60)
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def lab(tmp_path):
    """An entry to that server."""
    Answers.stalls.clear()
    Answers.over.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fleet = Fleet(tmp_path / "fleet", ["entry"])
    fleet.write(
        f'[[site]]\nname = "{SITE}"\nkind = "oip"\nplain = true\nmodels = ["m"]\n'
        f'addresses = ["127.0.0.1:{server.server_address[1]}"]\n'
    )
    try:
        yield fleet.start("entry")
    finally:
        Answers.over.set()
        fleet.stop()
        server.shutdown()


def stalled(entry) -> float:
    """How long a client that gives it a second and a half is held by an answer that stops."""
    began = time.monotonic()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answers(entry, "m", BODY, windrose_timeout_ms="1500")
    return time.monotonic() - began


def test_an_answer_that_stops_in_the_middle_ends_with_the_deadline_and_is_held_against_its_server(lab):
    Answers.stalls.set()
    with ThreadPoolExecutor(4) as together:
        took = list(together.map(lambda _: stalled(lab), range(4)))
    assert all(1 < each < 10 for each in took), took
    wait_until(lambda: metric(lab, "windrose_site_ejections", site=SITE) >= 1, 10, "the ejection")


def test_a_client_that_reads_slowly_gets_all_of_an_answer(lab):
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=60)
    headers = {"content-type": "application/json", "windrose-timeout-ms": "3000"}
    connection.request("POST", "/v2/models/m/infer", json.dumps(BODY), headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["windrose-site"]) == (200, SITE)
    assert len(answer.read(PIECE)) == PIECE
    # The server is done with what fits between it and the client, and waits.
    time.sleep(5)
    assert len(answer.read()) == LONG - PIECE
    connection.close()
