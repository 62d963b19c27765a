"""Clients that nobody here wrote, unmodified, over graphs of every element type: tritonclient and kserve."""

import asyncio

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from harness import ROOT
from tritonclient.utils import InferenceServerException

GRAPHS = ROOT / "models" / "test"

VALUES = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    "UINT8": np.array([[0, 1, 255], [7, 8, 9]], np.uint8),
    "UINT16": np.array([[0, 1, 65535], [7, 8, 9]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1], [7, 8, 9]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1], [7, 8, 9]], np.uint64),
    "INT8": np.array([[-128, 127, 0], [1, -1, 5]], np.int8),
    "INT16": np.array([[-32768, 32767, 0], [1, -1, 5]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1, 0], [1, -1, 5]], np.int32),
    "INT64": np.array([[-(2**31), 2**31 - 1, 0], [1, -1, 5]], np.int64),
    "FP16": np.array([[0.5, -65504, 0], [1e-4, 1, 2]], np.float16),
    "BF16": np.array([[0.5, -2.0, 0], [3.140625, 1, 2]], ml_dtypes.bfloat16),
    "FP32": np.array([[3.14159274, -1e38, 1e-30], [0, 1, 2]], np.float32),
    "FP64": np.array([[3.141592653589793, -1e300, 1e-300], [0, 1, 2]], np.float64),
    "BYTES": np.array([["hello", "", "grüße"], ["日本", "a\nb", '"']], object),
}
# The built-in engine holds these; a graph of another type is refused when it is deployed.
RTEN_TYPES = {"BOOL", "UINT8", "INT8", "INT32", "INT64", "FP32"}
# JSON has no way to write them: binary only.
BINARY_ONLY = {"FP16", "BF16"}


@pytest.fixture
def client(deployed):
    with triton.InferenceServerClient(deployed.gateway.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


def identity(deployed, datatype: str) -> str:
    if deployed.gateway.engine == "rten" and datatype not in RTEN_TYPES:
        pytest.skip(f"rten has no {datatype}: test_rten_refuses_what_it_lacks")
    return deployed.graph(GRAPHS / f"identity_{datatype.lower()}.onnx")


def as_sent(datatype: str, values: np.ndarray) -> np.ndarray:
    """Strings as the bytes that come back."""
    return np.vectorize(lambda text: text.encode(), otypes=[object])(values) if datatype == "BYTES" else values


def ask(datatype: str, values: np.ndarray, binary: bool = True):
    """The one input of an identity graph."""
    item = triton.InferInput("x", values.shape, datatype)
    item.set_data_from_numpy(values, binary_data=binary)
    return [item]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", VALUES)
def test_every_type_comes_back_as_it_went(client, deployed, datatype, binary):
    if not binary and datatype in BINARY_ONLY:
        pytest.skip("JSON tensors of this type are refused: test_half_floats_need_the_binary_extension")
    name, values = identity(deployed, datatype), VALUES[datatype]
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    answer = client.infer(name, ask(datatype, values, binary), outputs=outputs, request_id="one").as_numpy("y")
    expected = as_sent(datatype, values)
    assert answer.shape == values.shape
    if datatype == "BYTES" and not binary:
        answer = np.vectorize(lambda text: text if isinstance(text, bytes) else text.encode(), otypes=[object])(answer)
    assert (answer == expected).all(), (answer, expected)


@pytest.mark.parametrize("datatype", VALUES)
def test_an_empty_tensor_comes_back_empty(client, deployed, datatype):
    name, values = identity(deployed, datatype), VALUES[datatype][:0]
    outputs = [triton.InferRequestedOutput("y", binary_data=True)]
    answer = client.infer(name, ask(datatype, values), outputs=outputs)
    assert answer.get_output("y")["shape"] == [0, 3]
    assert answer.get_output("y")["datatype"] == datatype


@pytest.mark.parametrize("datatype", sorted(VALUES.keys() - RTEN_TYPES))
def test_rten_refuses_what_it_lacks(deployed, datatype):
    if deployed.gateway.engine != "rten":
        pytest.skip("about rten")
    graph = GRAPHS / f"identity_{datatype.lower()}.onnx"
    refused = deployed.gateway.cli("deploy", graph, "--name", "lacking", check=False)
    assert refused.returncode != 0
    assert "ONNX Runtime" in refused.stdout + refused.stderr


@pytest.mark.parametrize("datatype", sorted(BINARY_ONLY))
def test_half_floats_need_the_binary_extension(deployed, datatype):
    name = identity(deployed, datatype)
    refused = deployed.gateway.infer(name, [{"name": "x", "datatype": datatype, "shape": [1], "data": [0.5]}])
    assert refused.status == 400
    assert "binary" in refused.json()["error"]


def test_a_value_that_the_engine_cannot_hold_is_refused(client, deployed):
    """rten has 32-bit integers: never wrapped, never saturated."""
    name, values = identity(deployed, "INT64"), np.array([2**31, -(2**40)], np.int64)
    for binary in (True, False):
        if deployed.gateway.engine == "rten":
            with pytest.raises(InferenceServerException) as refused:
                client.infer(name, ask("INT64", values, binary))
            assert refused.value.status() == "400", refused.value
            assert "x" in refused.value.message()
        else:
            assert (client.infer(name, ask("INT64", values, binary)).as_numpy("y") == values).all()


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compressed_bodies_both_ways(client, deployed, request_coding, response_coding):
    name = identity(deployed, "FP32")
    values = np.arange(40_000, dtype=np.float32).reshape(200, 200)
    for binary in (True, False):
        answer = client.infer(
            name,
            ask("FP32", values, binary),
            outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        assert (answer.as_numpy("y") == values).all()


def two_in_two_out(binary: bool):
    pixels, labels = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([10, 20], np.int64)
    inputs = [triton.InferInput("pixels", pixels.shape, "FP32"), triton.InferInput("labels", labels.shape, "INT64")]
    inputs[0].set_data_from_numpy(pixels, binary_data=binary)
    inputs[1].set_data_from_numpy(labels, binary_data=not binary)
    return inputs, pixels * 2, labels + 1


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_and_outputs_half_binary_half_json(client, deployed, binary):
    name = deployed.graph(GRAPHS / "two_in_two_out.onnx")
    inputs, doubled, following = two_in_two_out(binary)
    outputs = [triton.InferRequestedOutput("next", binary_data=binary), triton.InferRequestedOutput("doubled", binary_data=not binary)]
    answer = client.infer(name, inputs, outputs=outputs)
    assert (answer.as_numpy("doubled") == doubled).all()
    assert (answer.as_numpy("next") == following).all()
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["next", "doubled"]


def test_only_the_outputs_that_were_asked_for(client, deployed):
    name = deployed.graph(GRAPHS / "two_in_two_out.onnx")
    inputs, doubled, _ = two_in_two_out(True)
    answer = client.infer(name, inputs, outputs=[triton.InferRequestedOutput("doubled")])
    assert (answer.as_numpy("doubled") == doubled).all()
    assert answer.as_numpy("next") is None
    with pytest.raises(InferenceServerException, match="nosuch"):
        client.infer(name, inputs, outputs=[triton.InferRequestedOutput("nosuch")])


def test_inputs_in_any_order_and_no_outputs_named(client, deployed):
    name = deployed.graph(GRAPHS / "two_in_two_out.onnx")
    inputs, doubled, following = two_in_two_out(True)
    answer = client.infer(name, inputs[::-1])
    assert (answer.as_numpy("doubled") == doubled).all() and (answer.as_numpy("next") == following).all()


def test_health_and_metadata(client, deployed):
    name = deployed.graph(GRAPHS / "two_in_two_out.onnx")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
    assert not client.is_model_ready("nosuch")
    server = client.get_server_metadata()
    assert server["name"] == "windrose" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata(name)
    assert model["name"] == name and model["platform"]
    assert model["inputs"] == [
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "labels", "datatype": "INT64", "shape": [-1]},
    ]
    assert model["outputs"] == [
        {"name": "doubled", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "next", "datatype": "INT64", "shape": [-1]},
    ]


def test_versions(client, deployed):
    gateway = deployed.gateway
    for version, graph in (("1", "identity_fp32"), ("10", "add_fp32"), ("9", "identity_int32")):
        gateway.deploy(GRAPHS / f"{graph}.onnx", "--name", "versions", "--version", version)
    try:
        assert sorted(client.get_model_metadata("versions")["versions"]) == ["1", "10", "9"]
        assert [i["name"] for i in client.get_model_metadata("versions")["inputs"]] == ["a", "b"]
        assert client.get_model_metadata("versions", "9")["inputs"][0]["datatype"] == "INT32"
        assert client.is_model_ready("versions", "1") and not client.is_model_ready("versions", "2")
        values = np.array([[1, 2]], np.float32)
        answer = client.infer("versions", ask("FP32", values), model_version="1")
        assert (answer.as_numpy("y") == values).all() and answer.get_response()["model_version"] == "1"
        with pytest.raises(InferenceServerException):
            client.infer("versions", ask("FP32", values), model_version="2")
    finally:
        gateway.cli("delete", "versions", "--yes")
    assert not client.is_model_ready("versions")


def test_errors_reach_the_client(client, deployed):
    name = deployed.graph(GRAPHS / "add_fp32.onnx")
    a = triton.InferInput("a", [1, 2], "FP32")
    a.set_data_from_numpy(np.zeros((1, 2), np.float32))
    for inputs, words in (([a], "b"), (ask("FP32", np.zeros((1, 2), np.float32)), "x")):
        with pytest.raises(InferenceServerException) as refused:
            client.infer(name, inputs)
        assert refused.value.status() == "400" and words in refused.value.message()
    with pytest.raises(InferenceServerException) as refused:
        client.infer("nosuch", [a])
    assert refused.value.status() == "404"


def test_two_hundred_at_once(deployed):
    name = identity(deployed, "FP32")
    address = deployed.gateway.url.removeprefix("http://")
    with triton.InferenceServerClient(address, concurrency=16, network_timeout=60) as client:
        sent = [np.full((3, 5), index, np.float32) for index in range(200)]
        waiting = [client.async_infer(name, ask("FP32", values)) for values in sent]
        for values, answer in zip(sent, waiting):
            assert (answer.get_result().as_numpy("y") == values).all()


def kserve_infer(gateway, name: str, datatype: str, values: np.ndarray, binary: bool):
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    async def run():
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=0))
        item = InferInput("x", list(values.shape), datatype)
        item.set_data_from_numpy(values, binary_data=binary)
        request = InferRequest(model_name=name, infer_inputs=[item], request_id="kserve")
        answer = await client.infer(gateway.url, request, model_name=name)
        ready = await client.is_model_ready(gateway.url, name)
        live = await client.is_server_live(gateway.url)
        await client.close()
        return answer, ready, live

    return asyncio.run(run())


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT32", "INT64", "FP32", "FP64", "BYTES"])
def test_kserve(deployed, datatype, binary):
    name, values = identity(deployed, datatype), VALUES[datatype]
    answer, ready, live = kserve_infer(deployed.gateway, name, datatype, values, binary)
    assert ready and live and answer.model_name == name and answer.id == "kserve"
    came = answer.outputs[0].as_numpy()
    texts = [x.decode() if isinstance(x, bytes) else x for x in came.ravel().tolist()]
    assert texts == values.ravel().tolist()


def test_triton_statistics(deployed, client):
    assert "statistics" in client.get_server_metadata()["extensions"]
    name = deployed.graph(GRAPHS / "tiny.onnx")

    def counted():
        (statistics,) = client.get_inference_statistics(name)["model_stats"]
        return statistics

    before = counted()
    rows = [1, 3, 8]
    for count in rows:
        item = triton.InferInput("x", [count, 16], "FP32")
        item.set_data_from_numpy(np.zeros([count, 16], np.float32))
        client.infer(name, [item])
    with pytest.raises(InferenceServerException):
        client.infer(name, ask("FP32", VALUES["FP32"]))
    after = counted()
    assert after["name"] == name and after["last_inference"] > 1_600_000_000_000
    assert after["inference_count"] - before["inference_count"] == sum(rows)
    assert after["execution_count"] - before["execution_count"] == len(rows)

    def grew(what):
        (old, new) = (which["inference_stats"][what] for which in (before, after))
        return new["count"] - old["count"], new["ns"] - old["ns"]

    for what in ("success", "queue", "compute_infer"):
        count, nanoseconds = grew(what)
        assert count == len(rows) and 0 < nanoseconds < 60e9, what
    assert grew("fail")[0] == 1 and grew("success")[1] >= grew("compute_infer")[1]
    sizes = {each["batch_size"]: each["compute_infer"] for each in after["batch_stats"]}
    assert set(rows) <= set(sizes) and all(sizes[count]["ns"] > 0 for count in rows)
    names = {statistics["name"] for statistics in client.get_inference_statistics()["model_stats"]}
    assert name in names
    with pytest.raises(InferenceServerException, match="nobody"):
        client.get_inference_statistics("nobody")
