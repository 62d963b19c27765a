"""Who calls: keys, what each tenant shares with nobody, and the law that binds it."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import flooding
import pytest
from fleet import ADD, Fleet, answers, explained, metric
from harness import BINARY, wait_until

MODEL = "rows"
MANIFEST = f"""
name = "{MODEL}"
[graphs.model]
file = "{ADD / "rows.onnx"}"
"""
# Two rows run as soon as they are there; one waits for company, longer than any pause of a busy machine.
TOGETHER = "batching = { max_size = 2, max_delay_us = 1000000 }\n"
BODY = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]},
        {"name": "ids", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
}


class Keys:
    """A file of tenants, and their keys."""

    def __init__(self, file):
        self.file, self.keys, self.entries = file, {}, {}

    def add(self, gateway, name: str, *arguments: str):
        made = json.loads(gateway.cli("tenant", name, *arguments, "--json").stdout)
        text = f'[[tenant]]\nname = "{name}"\nkeys = ["{made["sha256"]}"]\n'
        text += f"allow = {json.dumps(made['allow'])}\n" if made["allow"] is not None else ""
        self.keys[name], self.entries[name] = made["key"], text + f"deny = {json.dumps(made['deny'])}\n"
        self.write()

    def write(self):
        self.file.write_text("".join(self.entries.values()))

    def of(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}


def model(folder, more: str = ""):
    folder.mkdir(exist_ok=True)
    (folder / "windrose.toml").write_text(MANIFEST + more)
    return folder


@pytest.fixture
def gateway(make_gateway, tmp_path):
    (tmp_path / "tenants.toml").write_text("")
    gateway = make_gateway(data__tenants=str(tmp_path / "tenants.toml"))
    gateway.deploy(model(tmp_path / "model"))
    return gateway


def let_in(gateway, keys, *names):
    for name in names:
        wait_until(lambda: answers(gateway, MODEL, BODY, **keys.of(name)).status == 200, 10, f"{name} to be let in")


def test_a_call_needs_a_key(gateway, tmp_path):
    keys = Keys(tmp_path / "tenants.toml")
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert gateway.get(path).status == 200
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}/stats"):
        assert gateway.get(path).status == 401
    keys.add(gateway, "acme")
    let_in(gateway, keys, "acme")
    for headers in ({}, {"authorization": "Bearer nobody"}, {"authorization": keys.keys["acme"]}):
        answer = answers(gateway, MODEL, BODY, **headers)
        assert answer.status == 401 and answer.headers["windrose-error"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer" and "key" in answer.json()["error"]
    assert gateway.get(f"/v2/models/{MODEL}", headers=keys.of("acme")).status == 200
    # A file that is wrong changes nothing; a key that has gone lets nobody in.
    keys.file.write_text("[[tenant]]\nnome = 1\n")
    wait_until(lambda: "the file of tenants is wrong" in gateway.tail(), 10, "the log")
    assert answers(gateway, MODEL, BODY, **keys.of("acme")).status == 200
    keys.file.write_text('[[tenant]]\nname = "acme"\n')
    wait_until(lambda: answers(gateway, MODEL, BODY, **keys.of("acme")).status == 401, 10, "the key to be void")


def test_the_command_line_has_a_key(gateway, tmp_path):
    keys = Keys(tmp_path / "tenants.toml")
    ask = ("infer", MODEL, "-i", "x=[[1, 1, 1, 1]]", "-i", "ids=[1]")
    refused = gateway.cli(*ask, check=False)
    assert refused.returncode == 4 and "WINDROSE_KEY" in refused.stderr
    keys.add(gateway, "acme")
    let_in(gateway, keys, "acme")
    environment = gateway.environment() | {"WINDROSE_KEY": keys.keys["acme"]}
    done = subprocess.run([BINARY, *ask], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "41" in done.stdout, done


def test_tenants_share_no_batch(gateway, tmp_path):
    gateway.deploy(model(tmp_path / "model", TOGETHER))
    keys = Keys(tmp_path / "tenants.toml")
    for name in ("acme", "bolt"):
        keys.add(gateway, name)
    let_in(gateway, keys, "acme", "bolt")

    def executions(*names: str) -> int:
        def count() -> int:
            stats = gateway.get(f"/v2/models/{MODEL}/stats", headers=keys.of("acme")).json()
            return stats["model_stats"][0]["execution_count"]

        before = count()
        with ThreadPoolExecutor(len(names)) as pool:
            done = list(pool.map(lambda name: answers(gateway, MODEL, BODY, **keys.of(name)).status, names))
        assert done == [200] * len(names)
        return count() - before

    assert executions("acme", "acme") == 1
    assert executions("acme", "bolt") == 2


def quiet_beside_a_flood(gateway, keys) -> tuple[list[int], set[int]]:
    """The statuses of a quiet tenant's calls, and of those of another that floods the same model meanwhile."""
    for name in ("loud", "quiet"):
        keys.add(gateway, name)
    wait_until(lambda: answers(gateway, flooding.MODEL, flooding.BODY, **keys.of("quiet")).status == 200, 30, "an answer")
    flood = []
    with flooding.flooded(gateway, flood, **keys.of("loud")):
        wait_until(lambda: sum(status == 429 for status, _ in flood) > 100, 30, "the flood to be refused")
        quiet = [answers(gateway, flooding.MODEL, flooding.BODY, **keys.of("quiet")).status for _ in range(100)]
    return quiet, {status for status, _ in flood}


def test_a_flood_is_not_refused_at_the_cost_of_another_tenant(gateway, tmp_path):
    """Both call the same model."""
    gateway.deploy(flooding.project(tmp_path / "loop"))
    assert quiet_beside_a_flood(gateway, Keys(tmp_path / "tenants.toml")) == ([200] * 100, {200, 429})


def test_nor_in_a_fleet(tmp_path):
    """At an entry that serves nothing, and at the site itself."""
    fleet = Fleet(tmp_path / "fleet", ["entry", "one"])
    try:
        for name in ("one", "entry"):
            keys = Keys(tmp_path / f"{name}.toml")
            keys.write()
            gateway = fleet.start(name, **{"data.tenants": str(keys.file)})
            if name == "one":
                gateway.deploy(flooding.project(tmp_path / "loop"))
            assert quiet_beside_a_flood(gateway, keys) == ([200] * 100, {200, 429}), name
    finally:
        fleet.stop()


# The shortest time for which a site that refuses wants to be left alone.
REST_S = 0.1


def test_what_every_site_refuses_a_tenant_is_refused_at_the_entry(tmp_path):
    fleet = Fleet(tmp_path / "fleet", ["entry", "one"])
    keys = Keys(tmp_path / "tenants.toml")
    keys.write()
    long = {"inputs": [flooding.BODY["inputs"][0] | {"data": [2_000_000_000]}, flooding.BODY["inputs"][1]]}
    try:
        fleet.start("one").deploy(flooding.project(tmp_path / "loop"))
        entry = fleet.start("entry", **{"data.tenants": str(keys.file)})
        for name in ("loud", "quiet"):
            keys.add(entry, name)
        wait_until(lambda: answers(entry, flooding.MODEL, flooding.BODY, **keys.of("loud")).status == 200, 30, "an answer")

        def ask(name: str, body: dict = flooding.BODY, **headers):
            return answers(entry, flooding.MODEL, body, **keys.of(name), **headers)

        def tries(**how) -> float:
            return metric(entry, "windrose_site_attempts", site="one", **how)

        with ThreadPoolExecutor(16) as busy:
            held = [busy.submit(ask, "loud", long, windrose_timeout_ms="20000") for _ in range(16)]
            wait_until(lambda: ask("loud", windrose_timeout_ms="20000").status == 429, 15, "a refusal")
            began, before, refused = time.monotonic(), tries(ended="overloaded"), 0
            # None of its own is done meanwhile, so that each word of the site's holds for its time.
            while refused < 3 * (2 + (time.monotonic() - began) / REST_S):
                answer = ask("loud")
                assert (answer.status, answer.headers["retry-after"]) == (429, "1"), answer.body
                refused += 1
                assert time.monotonic() - began < 12, f"{refused} refusals"
            reached = tries(ended="overloaded") - before
            assert reached <= 2 + (time.monotonic() - began) / REST_S, f"{reached} of {refused} reached the site"
            # Another's request reaches it.
            before = tries()
            ask("quiet", windrose_timeout_ms="200")
            assert tries() > before
            for one in held:
                one.cancel()
    finally:
        fleet.stop()


def test_a_tenant_is_bound_by_its_law(tmp_path):
    """At the entry, which serves nothing; the site that answers knows whose request it was."""
    keys = Keys(tmp_path / "tenants.toml")
    keys.file.write_text("")
    fleet = Fleet(tmp_path / "fleet", ["entry", "a", "b"], {"entry": "eu", "a": "eu", "b": "us"})
    try:
        folder = model(tmp_path / "model")
        for name in ("a", "b"):
            fleet.start(name, **{"log.filter": "info,windrose::access=debug"}).deploy(folder)
        entry = fleet.start("entry", **{"data.tenants": str(keys.file)})
        wait_until(lambda: sites(entry) == {"a", "b"}, 30, "both sites")
        keys.add(entry, "free")
        keys.add(entry, "european", "--allow", "eu")
        keys.add(entry, "nowhere", "--deny", "eu,us")
        let_in(entry, keys, "free", "european")
        ask = lambda name, **headers: answers(entry, MODEL, BODY, **keys.of(name), **headers)  # noqa: E731
        assert {ask("european").headers["windrose-site"] for _ in range(10)} == {"a"}
        assert {ask("free", windrose_deny="eu").headers["windrose-site"] for _ in range(3)} == {"b"}
        for answer in (ask("nowhere"), ask("european", windrose_allow="us")):
            assert answer.status == 503 and answer.headers["windrose-error"] == "unlawful"
        assert "by the tenant" in ask("nowhere").json()["error"]
        told = entry.cli("explain", MODEL, "--tenant", "european").stdout
        assert "goes to a" in told and "not allowed by the tenant" in told
        assert entry.cli("explain", MODEL, "--tenant", "nobody", check=False).returncode == 1
        wait_until(lambda: "tenant=\"european\"" in log(fleet, "a"), 5, "the tenant in the log")
        assert "european" not in log(fleet, "b")
        for name in ("a", "b"):
            assert keys.keys["free"] not in log(fleet, name)
    finally:
        fleet.stop()


def sites(entry) -> set[str]:
    try:
        return {candidate["site"] for candidate in explained(entry, MODEL)["candidates"]}
    except AssertionError:
        return set()


def log(fleet, name: str) -> str:
    return fleet.gateways[name].log.read_text(errors="replace")
