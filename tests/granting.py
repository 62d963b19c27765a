"""Modules of the examples as models that ask for grants."""

import json

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
