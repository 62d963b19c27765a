"""One inference with the unmodified Triton client."""

import numpy as np
import tritonclient.http as triton
from harness import Gateway

DATATYPES = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.uint8): "UINT8",
    np.dtype(bool): "BOOL",
    np.dtype(object): "BYTES",
}


def strings(*values: bytes | str) -> np.ndarray:
    """Byte strings as the client takes them."""
    array = np.empty(len(values), object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


def infer(gateway: Gateway, model: str, binary: bool = True, parameters: dict | None = None, **inputs) -> dict[str, np.ndarray]:
    """All outputs of one inference by name; tensors travel as JSON where `binary` is false."""
    items = []
    for name, value in inputs.items():
        item = triton.InferInput(name, value.shape, DATATYPES[value.dtype])
        item.set_data_from_numpy(value, binary_data=binary)
        items.append(item)
    address = gateway.url.removeprefix("http://")
    with triton.InferenceServerClient(address, network_timeout=120, connection_timeout=120) as client:
        outputs = client.get_model_metadata(model)["outputs"]
        wanted = [triton.InferRequestedOutput(output["name"], binary_data=binary) for output in outputs]
        answer = client.infer(model, items, outputs=wanted, parameters=parameters)
        return {output["name"]: answer.as_numpy(output["name"]) for output in outputs}


def texts(values: np.ndarray) -> list[str]:
    """Byte strings of an answer as text."""
    return [value.decode() if isinstance(value, bytes) else value for value in values.ravel().tolist()]


def close(answer: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4, scale: float = 0.0) -> None:
    """Same shape, and equal within the tolerance relative to the value or to a hundredth of the largest value; `scale`
    is how large values can be, where that is known (1 for probabilities).

    What is small beside the rest is a difference of large numbers, and as inexact as those.
    """
    assert answer.shape == expected.shape, (answer.shape, expected.shape)
    largest = max(scale, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance * 1e-2 * largest)
