"""The law of a model's data where sites say different things about it: an entry and a site in the EU, one in the US."""

import signal

import pytest
from fleet import ADD, Fleet, answers, explained, metric
from harness import wait_until

MODEL = "identity"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}


@pytest.fixture
def fleet(tmp_path):
    """The entry is not started. Data of version 1 stays in the EU, as the manifest at `home` says."""
    fleet = Fleet(tmp_path / "fleet", ["entry", "home", "abroad"], {"entry": "eu", "home": "eu", "abroad": "us"})
    try:
        folder = fleet.folder / "bound"
        folder.mkdir()
        file = f'[graphs.model]\nfile = "{ADD / "identity_fp32.onnx"}"\n'
        law = '[jurisdictions]\nallow = ["eu"]\n'
        (folder / "windrose.toml").write_text(f'name = "{MODEL}"\nversion = "1"\n{file}{law}')
        fleet.start("home").deploy(folder)
        fleet.start("abroad")
        yield fleet
    finally:
        fleet.stop()


def deploy_unbound(gateway, version: str):
    gateway.cli("deploy", ADD / "identity_fp32.onnx", "--name", MODEL, "--model-version", version)


def gave(gateway, model: str = MODEL) -> set[tuple]:
    """Which sites and versions answer."""
    heads = [answers(gateway, model, BODY).headers for _ in range(10)]
    return {(head.get("windrose-site"), head.get("windrose-version")) for head in heads}


def is_unlawful(gateway, model: str = MODEL, **headers) -> bool:
    return answers(gateway, model, BODY, **headers).headers.get("windrose-error") == "unlawful"


def test_a_version_that_is_added_loosens_no_law_and_takes_nothing_that_it_cannot_answer(fleet):
    home, abroad = fleet.gateways["home"], fleet.gateways["abroad"]
    deploy_unbound(abroad, "2")
    entry = fleet.start("entry")
    for gateway in (entry, home, abroad):
        for version, site in (("1", "home"), ("2", "abroad")):
            named = f"{MODEL}/versions/{version}"
            wait_until(lambda: gave(gateway, named) == {(site, version)}, 30, f"version {version}")  # noqa: B023
        assert gave(gateway) == {("home", "1")}, gateway.folder
    asked = metric(abroad, "windrose_requests", model=MODEL)
    # A client cannot loosen it either, and it holds while nobody answers for the version that says it.
    assert is_unlawful(entry, windrose_allow="us")
    home.stop(signal.SIGKILL)
    wait_until(lambda: is_unlawful(entry), 30, "the site to be gone")
    assert metric(abroad, "windrose_requests", model=MODEL) == asked


def test_a_gateway_that_starts_while_a_site_is_silent_hears_of_its_law_from_others(fleet):
    home, abroad = fleet.gateways["home"], fleet.gateways["abroad"]
    deploy_unbound(abroad, "1")
    wait_until(lambda: gave(abroad) == {("home", "1")}, 30, "the law of home abroad")
    home.stop(signal.SIGKILL)
    asked = metric(abroad, "windrose_requests", model=MODEL)
    entry = fleet.start("entry")

    def known() -> bool:
        try:
            return bool(explained(entry, MODEL)["candidates"])
        except AssertionError:
            return False

    wait_until(known, 10, "the model at the entry", 0.1)
    assert is_unlawful(entry) and is_unlawful(entry, f"{MODEL}/versions/1")
    assert metric(abroad, "windrose_requests", model=MODEL) == asked
    fleet.start("home")
    wait_until(lambda: gave(entry) == {("home", "1")}, 30, "home to be back")
