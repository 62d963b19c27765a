"""Every example of the Open Inference Protocol with the clients that nobody here wrote: one answer, in whatever way and
form it is asked for."""

import asyncio

import kserve
import numpy as np
import pytest
import tritonclient.http as triton
from questions import NOT_ASKED, PAGES, examples, inferences


def test_every_example_is_asked():
    assert inferences().keys() | PAGES.keys() | NOT_ASKED == set(examples())


def as_bytes(value: np.ndarray) -> np.ndarray:
    """JSON has texts where binary data has bytes."""
    if value.dtype != object:
        return value
    return np.vectorize(lambda text: text if isinstance(text, bytes) else text.encode(), otypes=[object])(value)


def with_triton(gateway, model: str, question, binary: bool) -> dict[str, np.ndarray]:
    items = []
    for name, datatype, value in question:
        items.append(triton.InferInput(name, value.shape, datatype))
        items[-1].set_data_from_numpy(value, binary_data=binary)
    with triton.InferenceServerClient(gateway.url.removeprefix("http://"), network_timeout=120) as client:
        assert client.is_server_ready() and client.is_model_ready(model) and client.is_model_ready(model, "1")
        told = client.get_model_metadata(model)
        assert told["name"] == model and [(i["name"], i["datatype"]) for i in told["inputs"]] == [q[:2] for q in question]
        wanted = [triton.InferRequestedOutput(output["name"], binary_data=binary) for output in told["outputs"]]
        answer = client.infer(model, items, outputs=wanted, request_id="mine")
        assert answer.get_response()["id"] == "mine"
        for output in told["outputs"]:
            came = answer.get_output(output["name"])
            assert came["datatype"] == output["datatype"] and len(came["shape"]) == len(output["shape"])
        return {output["name"]: as_bytes(answer.as_numpy(output["name"])) for output in told["outputs"]}


def with_kserve(gateway, model: str, question, binary: bool) -> dict[str, np.ndarray]:
    async def ask():
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=120, retries=0))
        try:
            assert await client.is_server_ready(gateway.url) and await client.is_model_ready(gateway.url, model)
            items = []
            for name, datatype, value in question:
                items.append(kserve.InferInput(name, list(value.shape), datatype))
                items[-1].set_data_from_numpy(value, binary_data=binary)
            request = kserve.InferRequest(model_name=model, infer_inputs=items, request_id="mine")
            return await client.infer(gateway.url, request, model_name=model)
        finally:
            await client.close()

    answer = asyncio.run(ask())
    assert answer.id == "mine" and answer.model_name == model
    return {output.name: as_bytes(output.as_numpy()) for output in answer.outputs}


@pytest.mark.parametrize("example", sorted(inferences()))
def test_one_answer_in_every_way(deployed, example):
    model, question = deployed.example(example), inferences()[example]
    expected = with_triton(deployed.gateway, model, question, binary=True)
    assert expected
    # A file that is no UTF-8 has no form in JSON.
    texts = all(is_text(value) for _, _, value in question)
    for client in (with_triton, with_kserve):
        for binary in (True, False) if texts else (True,):
            answer = client(deployed.gateway, model, question, binary)
            assert answer.keys() == expected.keys()
            for name, value in expected.items():
                assert answer[name].dtype == value.dtype and answer[name].shape == value.shape, (client, binary, name)
                assert (answer[name] == value).all(), (client, binary, name)


def is_text(value: np.ndarray) -> bool:
    try:
        return value.dtype != object or all(text.decode() is not None for text in value.ravel())
    except UnicodeDecodeError:
        return False
