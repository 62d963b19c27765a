"""The control API does what its OpenAPI page says, whatever it is sent: schemathesis against a real gateway."""

import pytest
import schemathesis
from harness import ROOT, Gateway
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

# Nothing that only this machine's speed decides.
CALM = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("control"), "rten").start()
    try:
        yield gateway
    finally:
        assert gateway.stop() == 0, gateway.tail()


@pytest.fixture(scope="module")
def authorization(gateway):
    token = (gateway.folder / "data" / "token").read_text().strip()
    return {"authorization": f"Bearer {token}"}


def test_every_operation_keeps_its_word(gateway, authorization):
    # So that there is something to find.
    gateway.deploy(ROOT / "models" / "iris" / "model.onnx", "--name", "flowers")
    page = schemathesis.openapi.from_url(gateway.control_url + "/v1/openapi.json", headers=authorization)
    operations = [found.ok() for found in page.get_all_operations()]
    assert len(operations) >= 10
    failures = []
    for operation in operations:

        @CALM
        @given(operation.as_strategy())
        def keeps_its_word(case):
            # What goes without the token is refused: test_lifecycle.py. No schema can say which digests were uploaded.
            case.call_and_validate(headers=authorization, excluded_checks=[ignored_auth, positive_data_acceptance])

        try:
            keeps_its_word()
        except BaseExceptionGroup as failure:
            failures.append(f"{operation.label}\n" + "\n".join(map(str, failure.exceptions)))
    assert not failures, "\n\n".join(failures)
    # And it is well afterwards.
    gateway.deploy(ROOT / "models" / "iris" / "model.onnx", "--name", "flowers")
    status = gateway.get(gateway.control_url + "/v1/status", headers=authorization).json()
    assert status["ready"] and status["models_failed"] == 0
