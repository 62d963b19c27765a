"""Fleets for tests: several gateways on loopback that know each other by certificates."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import BINARY, ROOT, Gateway, free_ports, wait_until

ADD = ROOT / "models" / "test"


class Fleet:
    """Sites by name. `entries` are sites without a model of their own; `foreign` are tables of the fleet file as text."""

    def __init__(self, folder: Path, names: list[str], jurisdictions: dict[str, str] | None = None):
        self.folder = folder
        self.names = names
        self.jurisdictions = jurisdictions or {}
        self.more = ""
        self.certificates = folder / "certificates"
        self.file = folder / "fleet.toml"
        self.gateways: dict[str, Gateway] = {}
        self.ports = dict(zip(names, free_ports(len(names))))
        self.windrose("fleet", "init", self.certificates)
        for name in names:
            self.certify(name)
        self.write()

    def windrose(self, *arguments) -> str:
        done = subprocess.run([str(BINARY), *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def certify(self, name: str, days: int = 30, lifetime: str = ""):
        how_long = f"--lifetime={lifetime}" if lifetime else f"--days={days}"
        self.windrose("fleet", "cert", self.certificates, name, how_long)

    def write(self, more: str | None = None):
        """Writes the fleet file; `more` is put behind the sites."""
        self.more = self.more if more is None else more
        text = ""
        for name in self.names:
            text += f'[[site]]\nname = "{name}"\naddresses = ["127.0.0.1:{self.ports[name]}"]\ndistance = "1ms"\n'
            if name in self.jurisdictions:
                text += f'jurisdiction = "{self.jurisdictions[name]}"\n'
        self.file.write_text(text + self.more)

    def settings(self, name: str) -> dict[str, str]:
        file = name.replace("/", "-")
        return {
            "fleet.file": str(self.file),
            "fleet.site": name,
            "fleet.listen": f"127.0.0.1:{self.ports[name]}",
            "fleet.certificate": str(self.certificates / f"{file}.pem"),
            "fleet.key": str(self.certificates / f"{file}-key.pem"),
            "fleet.authority": str(self.certificates / "authority.pem"),
        }

    def start(self, name: str, **settings) -> Gateway:
        """Starts a site; one that was there before keeps its ports and its store."""
        gateway = self.gateways.get(name)
        if gateway is None:
            gateway = Gateway(self.folder / name.replace("/", "-"), "rten", self.settings(name) | settings)
            self.gateways[name] = gateway
        return gateway.start()

    def stop(self):
        for gateway in self.gateways.values():
            gateway.stop()


def explained(gateway: Gateway, model: str) -> dict:
    """What `windrose explain` says about a model."""
    import json

    return json.loads(gateway.cli("explain", model, "--json").stdout)


def digest_of(gateway: Gateway, model: str) -> str:
    """What the gateway serves under a model's name, once it is in its table."""

    def known():
        try:
            return explained(gateway, model)["candidates"][0]["digest"]
        except AssertionError:
            return None

    return wait_until(known, 30, f"{model} in the table", 0.1)


def metric(gateway, name: str, **labels) -> float:
    """The sum of a metric over all of its series with these labels."""
    token = (gateway.folder / "data" / "token").read_text().strip()
    text = gateway.call("GET", gateway.control_url + "/metrics", headers={"authorization": f"Bearer {token}"}).body
    total = 0.0
    for line in text.decode().splitlines():
        if line.startswith((name + "{", name + "_total{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def answers(gateway: Gateway, model: str, body: dict, **headers):
    """One inference with headers of the test's own."""
    import json

    headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return gateway.call("POST", f"/v2/models/{model}/infer", json.dumps(body).encode(), headers)


def until_site(gateway: Gateway, model: str, body: dict, sites: set[str], seconds: float = 10):
    """Asks until every one of these sites has answered. Several at a time: one request after the other goes to the site that
    was quicker of late, for as long as that stays so."""
    seen = set()

    def all_seen():
        for answer in together.map(lambda _: answers(gateway, model, body), range(12)):
            if answer.status == 200:
                seen.add(answer.headers["windrose-site"])
        return sites <= seen

    with ThreadPoolExecutor(12) as together:
        wait_until(all_seen, seconds, f"answers from {sites}")
