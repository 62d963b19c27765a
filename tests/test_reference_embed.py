"""Sentence embeddings: the same vectors as an independent forward pass in NumPy."""

import inputs
import numpy as np
import pytest
from harness import ROOT
from references.minilm import MiniLM
from sending import close, infer, strings


@pytest.fixture(scope="module")
def reference():
    model = MiniLM(ROOT / "target" / "models" / "minilm")
    return {text: model.embed(text) for text in inputs.SENTENCES}


def test_every_sentence_gets_the_same_vector(deployed, reference):
    model = deployed.example("embed")
    assert len(reference) >= 20
    for text, expected in reference.items():
        close(infer(deployed.gateway, model, text=strings(text))["embedding"], expected[None])


def test_padding_does_not_change_a_vector(deployed, reference):
    model, pair = deployed.example("embed"), [inputs.SENTENCES[0], inputs.SENTENCES[21]]
    answer = infer(deployed.gateway, model, text=strings(*pair))["embedding"]
    close(answer, np.stack([reference[text] for text in pair]))


def test_like_means_near(deployed):
    model = deployed.example("embed")
    cat, kitten, stocks = infer(deployed.gateway, model, text=strings(*inputs.SENTENCES[:3]))["embedding"]
    assert cat @ kitten > cat @ stocks + 0.2
