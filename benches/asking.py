"""What the benches in Python share: connections to a gateway's listeners, and figures of many numbers."""

import hashlib
import http.client
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import Gateway  # noqa: E402


class Client:
    """One connection to a listener."""

    def __init__(self, port: int, headers: dict[str, str] | None = None):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self.headers = {"content-type": "application/json"} | (headers or {})

    def call(self, method: str, path: str, body=None):
        """With a body that becomes JSON."""
        return self.send(method, path, None if body is None else json.dumps(body))

    def send(self, method: str, path: str, body):
        self.connection.request(method, path, body, self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content) if content else None

    def upload(self, content: bytes) -> str:
        """Puts a blob; its digest."""
        digest = hashlib.sha256(content).hexdigest()
        self.send("PUT", f"/v1/blobs/{digest}", content)
        return digest


def control_of(gateway: Gateway) -> Client:
    """A connection to the control API."""
    token = (gateway.folder / "data" / "token").read_text().strip()
    return Client(gateway.control_port, {"authorization": f"Bearer {token}"})


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
