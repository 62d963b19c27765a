"""Modules of the examples as models that ask for grants."""

import http.server
import json
import threading
import time
from contextlib import contextmanager

from harness import ROOT

GRAPH = ROOT / "models" / "test" / "identity_fp32.onnx"


def deploy(gateway, folder, name: str, module: str, network: list[str], load: bool = False) -> dict:
    """Deploys an example's module with these wishes from an empty folder; returns what the control API says of it."""
    (folder / "windrose.toml").write_text(f"""
name = "{name}"
module = "{ROOT / 'target' / 'guests' / module}.wasm"
[graphs.model]
file = "{GRAPH}"
[grants]
network = {json.dumps(network)}
load = {str(load).lower()}
""")
    gateway.deploy(folder)
    return json.loads(gateway.cli("inspect", name, "--json").stdout)["loaded"]


@contextmanager
def secret_page(slow_s: float = 0):
    """A server on this machine, where no module should get by itself: its port, and when requests came to it."""
    arrived = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            arrived.append(time.monotonic())
            time.sleep(slow_s)
            self.send_response(200)
            self.send_header("content-length", "6")
            self.end_headers()
            self.wfile.write(b"secret")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], arrived
    finally:
        server.shutdown()
