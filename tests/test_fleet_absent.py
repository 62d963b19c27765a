"""A site that cannot be reached for a while: what it has is neither forgotten at once nor said not to exist."""

import contextlib
import signal
import socket
import threading
import time

import pytest
from fleet import ADD, Fleet, answers
from harness import wait_until

MODEL = "identity"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
CHANGED = "what a peer serves has changed"


class Line:
    """The line to a site's peer listener. What goes over it can be cut."""

    def __init__(self, to: int):
        self.to, self.ends, self.lock = to, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    near.close()
                    continue
                with self.lock:
                    self.ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """Ends every connection; new ones may be made. How many there were."""
        with self.lock:
            ends, self.ends = self.ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return len(ends) // 2


@pytest.fixture
def distant(tmp_path):
    """An entry that serves nothing, the only site that has the model, and the line between them."""
    fleet = Fleet(tmp_path / "fleet", ["entry", "one"])
    line = Line(fleet.ports["one"])
    fleet.file.write_text(fleet.file.read_text().replace(f":{fleet.ports['one']}", f":{line.port}"))
    try:
        fleet.start("one").cli("deploy", ADD / "identity_fp32.onnx", "--name", MODEL, "--model-version", "1")
        entry = fleet.start("entry")
        wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 20, "the model at the entry", 0.1)
        yield fleet, entry, line
    finally:
        fleet.stop()
        line.listener.close()
        line.cut()


def changes(entry) -> int:
    """How often another content of the site's catalogue became known at the entry, its end among them."""
    return entry.log.read_text(errors="replace").count(CHANGED)


def test_a_quiet_site_is_not_forgotten_when_its_connections_break(distant):
    """The question what it serves was asked a while ago: it is answered when there is news, or after twenty seconds."""
    _, entry, line = distant
    known = changes(entry)
    time.sleep(12)
    assert line.cut() > 0
    statuses, end = [], time.monotonic() + 3
    while time.monotonic() < end:
        statuses.append(answers(entry, MODEL, BODY).status)
    assert set(statuses) <= {200, 503} and statuses[-1] == 200, set(statuses)
    assert changes(entry) == known


def test_a_model_whose_only_site_is_gone_is_unavailable_and_not_unknown(distant):
    fleet, entry, _ = distant
    path = f"/v2/models/{MODEL}"

    def refused():
        answer = answers(entry, MODEL, BODY)
        assert (answer.status, answer.headers["windrose-error"]) == (503, "unavailable"), answer.body

    def gone() -> bool:
        refused()
        return changes(entry) > known

    known = changes(entry)
    fleet.gateways["one"].stop(signal.SIGKILL)
    wait_until(gone, 30, "what the site said to be believed no more", 0.1)
    for _ in range(2):
        refused()
        for end in ("", "/ready", "/versions/1", "/versions/1/ready"):
            told = entry.get(path + end)
            assert (told.status, told.headers["windrose-error"]) == (503, "unavailable"), (end, told.body)
        # What nobody ever had is not there.
        assert answers(entry, "nothing", BODY).status == 404 == entry.get(f"{path}/versions/2").status
        # Nor does an entry that starts now say more than it knows.
        entry.stop(signal.SIGKILL)
        entry.start()
    one = fleet.start("one")
    wait_until(lambda: answers(entry, MODEL, BODY).status == 200, 20, "the site to be back", 0.1)
    # What is deleted is not there any more.
    one.cli("delete", MODEL, "--yes")
    wait_until(lambda: answers(entry, MODEL, BODY).status == 404, 10, "the model to be gone", 0.1)
