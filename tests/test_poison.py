"""Requests that every site fails at, many at a time: they are to blame themselves, and no site is out for them."""

import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet import Fleet, answers, explained
from harness import wait_until

SITES = ["lab/a", "lab/b", "lab/c"]


def body(value: float) -> dict:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}]}


GOOD, POISON = body(1), body(-1)


class Answers(http.server.BaseHTTPRequestHandler):
    """A server of the Open Inference Protocol that fails at one input."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_poison = asked["inputs"] == POISON["inputs"]
        if is_poison:
            # The others come meanwhile.
            time.sleep(0.02)
        answer = json.dumps({"model_name": "m", "outputs": asked["inputs"]}).encode()
        self.send_response(500 if is_poison else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def lab(tmp_path):
    """An entry to three servers."""
    servers = {name: http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) for name in SITES}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    fleet = Fleet(tmp_path / "fleet", ["entry"])
    fleet.write(
        "".join(
            f'[[site]]\nname = "{name}"\nkind = "oip"\nplain = true\nrepeatable = true\nmodels = ["m"]\n'
            f'addresses = ["127.0.0.1:{server.server_address[1]}"]\n'
            for name, server in servers.items()
        )
    )
    try:
        yield fleet.start("entry")
    finally:
        fleet.stop()
        for server in servers.values():
            server.shutdown()


def test_requests_that_fail_everywhere_leave_no_site_out(lab):
    assert answers(lab, "m", GOOD).status == 200
    with ThreadPoolExecutor(3) as pool:
        assert {answer.status for answer in pool.map(lambda _: answers(lab, "m", POISON), range(3))} == {500}

    # Three failures ejected the sites, until it was known whose they were. Nothing is sent that could find out more.
    def is_taken_back() -> bool:
        log = lab.log.read_text()
        return log.count("a replica is ejected") == log.count("a replica is back") > 0

    wait_until(is_taken_back, 10, "the sites to be back")
    assert all("refused" not in one for one in explained(lab, "m")["candidates"])
    assert answers(lab, "m", GOOD).status == 200
