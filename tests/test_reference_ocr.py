"""The text in a picture: the same lines as the Python package `rapidocr`, on 95 of 100 pictures."""

import inputs
import pytest
from rapidocr import RapidOCR
from sending import infer, strings, texts


@pytest.fixture(scope="module")
def reference():
    engine = RapidOCR(params={"Global.log_level": "error"})
    return {name: list(engine(content).txts or ()) for name, content in inputs.pictures().items()}


def test_pictures_get_the_same_text(deployed, reference):
    model, differing = deployed.example("ocr"), {}
    assert len(reference) >= 20
    for name, content in inputs.pictures().items():
        answer = texts(infer(deployed.gateway, model, image=strings(content))["text"])
        if answer != reference[name]:
            differing[name] = (answer, reference[name])
    assert len(differing) <= 0.05 * len(reference), differing
