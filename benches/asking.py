"""What the benches in Python share: connections to a gateway's listeners, and figures of many numbers."""

import hashlib
import http.client
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import Gateway  # noqa: E402


class Refused(RuntimeError):
    """An answer that is no success."""

    def __init__(self, asked: str, status: int, content: bytes):
        super().__init__(f"{asked}: {status} {content[:300]!r}")
        self.status = status


class Client:
    """One connection to a listener."""

    def __init__(self, port: int, headers: dict[str, str] | None = None):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self.headers = {"content-type": "application/json"} | (headers or {})

    def call(self, method: str, path: str, body=None):
        """With a body that becomes JSON."""
        return self.send(method, path, None if body is None else json.dumps(body))

    def send(self, method: str, path: str, body):
        content = self.read(method, path, body)
        return json.loads(content) if content else None

    def read(self, method: str, path: str, body=None) -> bytes:
        """The body of an answer that is a success; any other is a [`Refused`]."""
        self.connection.request(method, path, body, self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise Refused(f"{method} {path}", answer.status, content)
        return content

    def upload(self, content: bytes) -> str:
        """Puts a blob, unless it is there; its digest."""
        digest = hashlib.sha256(content).hexdigest()
        path = f"/v1/blobs/{digest}"
        try:
            self.read("HEAD", path)
        except Refused as refused:
            if refused.status != 404:
                raise
            self.send("PUT", path, content)
        return digest

    def metric(self, name: str, kind: str) -> int:
        """A metric of the control API that has the label `kind`."""
        found = re.search(rf'^{name}{{kind="{kind}"}} (\d+)$', self.read("GET", "/metrics").decode(), re.MULTILINE)
        if found is None:
            raise KeyError(name)
        return int(found[1])


def control_of(gateway: Gateway) -> Client:
    """A connection to the control API."""
    token = (gateway.folder / "data" / "token").read_text().strip()
    return Client(gateway.control_port, {"authorization": f"Bearer {token}"})


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
