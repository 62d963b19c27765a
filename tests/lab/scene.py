"""Four sites that serve a model, the nearest behind a front that can misbehave, and the place where clients enter."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import BINARY, wait_until

from . import proxies
from .link import ROOT, Network, Site
from .load import Load, Record
from .sites import DATA_PORT, Front, SiteGateway

# One way, milliseconds. The round trip to the next site is what a failover costs at least.
SITES = [Site("near", 1), Site("mid", 15), Site("far", 40), Site("edge", 90)]
CLIENTS = Site("clients", 0, hosts=3)
NAMES = [site.name for site in SITES]
MODEL = ROOT / "tests" / "lab" / "model"
# What clients connect to, and what the nearest site's own gateway listens on behind its front.
FRONT_PORT = 8100
PEER_PORT, BEHIND_PORT = 8002, 8102
# A name with the addresses of both entries.
ENTRY_NAME = "models.lab"
JURISDICTIONS = {"clients": "eu", "near": "eu", "mid": "ch", "far": "us", "edge": "us"}


def question(values: int = 2) -> list[dict]:
    """Inputs of the sites' model."""
    return [{"name": name, "datatype": "FP32", "shape": [1, values], "data": [1.5] * values} for name in ("a", "b")]


class Sites:
    """The sites' gateways with the model on each, and the front of the nearest. A context manager."""

    def __init__(self, folder: Path, seed: int = 1):
        self.folder = folder
        self.network = Network([CLIENTS, *SITES], seed)
        self.gateways: dict[str, SiteGateway] = {}
        self.front: Front | None = None

    def __enter__(self):
        self.network.__enter__()
        try:
            self.begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def begin(self) -> None:
        """Starts what runs at the sites."""
        for name in NAMES:
            self.gateways[name] = SiteGateway(self.folder / name, self.network.spaces[name], self.settings(name))
        with ThreadPoolExecutor(len(NAMES)) as several:
            list(several.map(self._deploy, NAMES))
        self.start_front()

    def _deploy(self, name: str) -> None:
        self.gateways[name].start().deploy(MODEL)

    def settings(self, name: str) -> dict[str, str]:
        """Settings of a site's gateway beyond its listeners."""
        return {}

    def start_front(self) -> None:
        address = self.network.address("near")
        self.front = Front(self.network.spaces["near"], f"{address}:{FRONT_PORT}", f"{address}:{DATA_PORT}")

    def kill(self, site: str) -> None:
        """Ends a site's gateway at once, and its front with it."""
        if site == "near" and self.front:
            self.front.stop()
            self.front = None
        self.gateways[site].kill()

    def start(self, site: str) -> None:
        """Starts what was killed."""
        self.gateways[site].start()
        if site == "near":
            self.start_front()

    def restart(self, site: str) -> None:
        """Restarts a site's gateway as an upgrade does: it finishes what it has."""
        self.gateways[site].stop()
        self.gateways[site].start()

    def close(self) -> None:
        if self.front:
            self.front.stop()
        for gateway in self.gateways.values():
            gateway.stop()
        self.network.close()

    def target(self) -> str:
        """What clients connect to."""
        return f"{self.network.address('clients')}:{DATA_PORT}"

    def load(self, seconds: float, name: str, **options) -> Load:
        """Starts the clients' load."""
        folder = self.folder / "records"
        folder.mkdir(parents=True, exist_ok=True)
        return Load(self.network.spaces["clients"], self.target(), seconds, folder / name, **options)


class Fleet(Sites):
    """The sites as one fleet over mutual TLS, and two gateways where clients enter that serve no model themselves."""

    def __init__(self, folder: Path, seed: int = 1, rules: str = ""):
        super().__init__(folder, seed)
        self.rules, self.entries = rules, []
        self.keys = folder / "keys"
        self.hosts = folder / "hosts"

    def begin(self) -> None:
        self._make_certificates()
        self._write_file()
        super().begin()
        space = self.network.spaces["clients"]
        for host in (0, 1):
            folder = self.folder / f"entry{host}"
            self.entries.append(SiteGateway(folder, space, self.settings("clients"), host).start())
        addresses = [entry.address for entry in self.entries]
        self.hosts.write_text("".join(f"{address} {ENTRY_NAME}\n" for address in addresses))

    def _make_certificates(self) -> None:
        subprocess.run([BINARY, "fleet", "init", self.keys], check=True, capture_output=True)
        for name in ["clients", *NAMES]:
            self.certify(name, self.keys, days=365)

    def certify(self, name: str, folder: Path, **how_long) -> dict[str, Path]:
        """Makes a certificate of a site, good for so many `days` or a `lifetime`; returns its files."""
        command = [BINARY, "fleet", "cert", self.keys, name, *(f"--{key}={value}" for key, value in how_long.items())]
        subprocess.run(command, check=True, capture_output=True)
        made = {"cert": self.keys / f"{name}.pem", "key": self.keys / f"{name}-key.pem"}
        if folder == self.keys:
            return made
        folder.mkdir(parents=True, exist_ok=True)
        return {kind: path.rename(folder / path.name) for kind, path in made.items()}

    def _write_file(self) -> None:
        sites = [f'[[site]]\nname = "clients"\njurisdiction = "{JURISDICTIONS["clients"]}"\naddresses = []\n']
        for name in NAMES:
            address = f"{self.network.address(name)}:{PEER_PORT}"
            sites.append(
                f'[[site]]\nname = "{name}"\njurisdiction = "{JURISDICTIONS[name]}"\naddresses = ["{address}"]\n'
            )
        (self.folder / "fleet.toml").write_text("\n".join([*sites, self.rules]))

    def settings(self, name: str) -> dict[str, str]:
        # The nearest listens behind its front.
        port = BEHIND_PORT if name == "near" else PEER_PORT
        return {
            "fleet.file": str(self.folder / "fleet.toml"),
            "fleet.site": name,
            "fleet.listen": "" if name == "clients" else f"{self.network.address(name)}:{port}",
            "fleet.certificate": str(self.keys / f"{name}.pem"),
            "fleet.key": str(self.keys / f"{name}-key.pem"),
            "fleet.authority": str(self.keys / "authority.pem"),
        }

    def start_front(self, identity: dict[str, Path] | None = None) -> None:
        identity = identity or {"cert": self.keys / "near.pem", "key": self.keys / "near-key.pem"}
        files = identity | {
            "ca": self.keys / "authority.pem",
            "client_cert": self.keys / "clients.pem",
            "client_key": self.keys / "clients-key.pem",
        }
        address = self.network.address("near")
        self.front = Front(self.network.spaces["near"], f"{address}:{PEER_PORT}", f"{address}:{BEHIND_PORT}", files)

    def until_served_by(self, site: str, seconds: float = 30) -> None:
        """Waits until both entries have their answers from a site, again and again."""

        def asked(entry) -> bool:
            answers = [entry.infer("add", question()) for _ in range(10)]
            return all(answer.headers.get("windrose-site") == site for answer in answers)

        for entry in self.entries:
            wait_until(lambda entry=entry: asked(entry), seconds, f"{site} to serve", 0.1)

    def target(self) -> str:
        return f"{ENTRY_NAME}:{DATA_PORT}"

    def load(self, seconds: float, name: str, **options) -> Load:
        return super().load(seconds, name, hosts=self.hosts, **options)

    def story(self, record: Record) -> str:
        """Everything that may explain the failed requests of a record, for a test's message."""
        lines = [str(record.between()), *record.kinds(), *record.problems()]
        for number, entry in enumerate(self.entries):
            lines += [f"--- the entry {number}:", entry.tail()]
        return "\n".join(lines)

    def close(self) -> None:
        for entry in self.entries:
            entry.stop()
        super().close()


class BehindProxy(Sites):
    """The sites, with Envoy or HAProxy in the place of our entry gateways."""

    def __init__(self, folder: Path, kind: str, tuned: bool):
        super().__init__(folder)
        self.kind, self.tuned, self.proxy = kind, tuned, None

    def begin(self) -> None:
        super().begin()
        ports = {name: FRONT_PORT if name == "near" else DATA_PORT for name in NAMES}
        backends = [proxies.Backend(name, self.network.address(name), ports[name]) for name in NAMES]
        space = self.network.spaces["clients"]
        self.proxy = proxies.start(self.kind, self.tuned, space, self.folder / "proxy", DATA_PORT, backends)

    def close(self) -> None:
        if self.proxy:
            self.proxy.kill()
            self.proxy.wait(10)
        super().close()
