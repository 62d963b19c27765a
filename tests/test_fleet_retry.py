"""`Retry-After`: respected where a site says it, and told to clients."""

import http.server
import threading

import pytest
from fleet import Fleet, answers
from harness import wait_until

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
LATER_S = 4


@pytest.fixture
def busy():
    """A server of the Open Inference Protocol that has too much to do; how often it was asked."""
    asked = []

    class Busy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.path)
            self.send_response(429)
            self.send_header("retry-after", str(LATER_S))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()


def test_a_site_is_left_alone_for_as_long_as_it_says_and_clients_are_told(busy, tmp_path):
    port, asked = busy
    fleet = Fleet(tmp_path / "fleet", ["entry"])
    site = f'[[site]]\nname = "lab/busy"\nkind = "oip"\nplain = true\naddresses = ["127.0.0.1:{port}"]\nmodels = ["m"]\n'
    fleet.write(site)
    try:
        entry = fleet.start("entry")
        told = []
        while len(told) < 20:
            answer = answers(entry, "m", BODY)
            assert (answer.status, answer.headers["windrose-error"]) == (429, "overloaded"), (answer.body, told, entry.tail())
            told.append(int(answer.headers["retry-after"]))
        assert len(asked) == 1 and told[0] == LATER_S and all(1 <= seconds <= LATER_S for seconds in told), told
        wait_until(lambda: answers(entry, "m", BODY) and len(asked) > 1, LATER_S + 5, "the site to be asked again", 0.1)
    finally:
        fleet.stop()
