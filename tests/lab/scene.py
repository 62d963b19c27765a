"""Four sites that serve a model, the nearest behind a front that can misbehave, and the place where clients enter."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import proxies
from .link import ROOT, Network, Site
from .load import Load
from .sites import DATA_PORT, Front, SiteGateway

# One way, milliseconds. The round trip to the next site is what a failover costs at least.
SITES = [Site("near", 1), Site("mid", 15), Site("far", 40), Site("edge", 90)]
CLIENTS = Site("clients", 0, hosts=3)
NAMES = [site.name for site in SITES]
MODEL = ROOT / "tests" / "lab" / "model"
# What clients connect to, and what the nearest site's own gateway listens on behind its front.
FRONT_PORT = 8100


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
