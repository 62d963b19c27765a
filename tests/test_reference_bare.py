"""ONNX files with no module: the same numbers as ONNX Runtime under Python."""

import numpy as np
import onnxruntime
import pytest
from harness import ROOT
from sending import close, infer

MODELS = ROOT / "target" / "models"


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def compare(deployed, path, feeds, close=close):
    """Every feed, sent to a model of this name and to ONNX Runtime; `close` judges the floats of each output."""
    reference = session(path)
    names = [output.name for output in reference.get_outputs()]
    model = deployed.graph(path)
    count = 0
    for feed in feeds:
        answer = infer(deployed.gateway, model, **feed)
        for name, expected in zip(names, reference.run(names, feed)):
            if expected.dtype.kind == "f":
                close(answer[name], expected)
            else:
                assert (answer[name] == expected).all()
        count += 1
    assert count >= 20


def test_tiny(deployed):
    rng = np.random.default_rng(1)
    compare(deployed, ROOT / "models/tiny/model.onnx", ({"x": rng.normal(size=(n, 16)).astype(np.float32)} for n in range(1, 26)))


@pytest.mark.parametrize("datatype", [np.float32, np.int32])
def test_sums(deployed, datatype):
    rng = np.random.default_rng(2)
    name = "add_fp32" if datatype is np.float32 else "add_int32"

    def pair(n):
        return {key: rng.integers(-1000, 1000, (n, 7)).astype(datatype) for key in "ab"}

    compare(deployed, ROOT / f"models/test/{name}.onnx", (pair(n) for n in range(1, 25)))


def test_control_flow(deployed):
    rng = np.random.default_rng(3)
    feeds = [{"times": np.array(n, np.int64), "x": rng.normal(size=3).astype(np.float32)} for n in range(20)]
    compare(deployed, ROOT / "models/test/loop.onnx", feeds)
    feeds = [{"double": np.array(n % 2 == 0), "x": rng.normal(size=3).astype(np.float32)} for n in range(20)]
    compare(deployed, ROOT / "models/test/if.onnx", feeds)


def test_mobilenet_on_pictures(deployed):
    import inputs
    from PIL import Image
    import io

    def pixels(content):
        picture = Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224))
        return {"input": (np.asarray(picture, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None].copy()}

    def close(actual, expected):
        # A score near zero is what is left of large sums: ONNX Runtime without its optimisations differs from itself by
        # a hundredth there. The noise is one of the whole vector, and is measured against its largest score.
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
        assert actual.argmax() == expected.argmax()

    compare(deployed, MODELS / "mobilenet" / "model.onnx", [pixels(c) for c in inputs.pictures().values()], close)


def test_minilm_without_its_module(deployed):
    rng = np.random.default_rng(4)

    def tokens(n):
        ids = rng.integers(1000, 30000, (1 + n % 3, 5 + n)).astype(np.int64)
        mask = np.ones_like(ids)
        mask[0, 3:] = 0
        return {"input_ids": ids, "attention_mask": mask}

    compare(deployed, MODELS / "minilm" / "model.onnx", [tokens(n) for n in range(20)])
