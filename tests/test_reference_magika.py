"""What kind of file is this: the same answers as the Python package `magika`."""

import inputs
import pytest
from harness import ROOT
from magika import Magika
from references.magika import Net
from sending import close, infer, strings, texts

TOLERANCE = 1e-4
# The net normalises by a variance that it computes as a small difference of two sums over 512 positions. Of these files it is
# so small that single precision does not carry the score: the package's own is up to 0.5% off what double precision gives.
ROUNDED = {"utf16.txt", "eight_bytes"}
ROUNDED_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def reference():
    magika = Magika()
    return {name: magika.identify_bytes(content) for name, content in inputs.files().items()}


@pytest.fixture(scope="module")
def exact():
    """The highest score of each file that the net is asked about, in double precision."""
    magika, net, found = Magika(), Net(ROOT / "target" / "models" / "magika" / "model.onnx"), {}
    ask = magika._get_raw_predictions

    def seen(features):
        [(_, file)] = features
        found[name] = net.scores([*file.beg, *file.mid, *file.end]).max()
        return ask(features)

    magika._get_raw_predictions = seen
    for name, content in inputs.files().items():
        magika.identify_bytes(content)
    return found


def test_the_package_is_exact_but_for_files_that_single_precision_does_not_carry(reference, exact):
    off = {name for name, score in exact.items() if abs(reference[name].score / score - 1) > TOLERANCE}
    assert off == ROUNDED and len(exact) >= 40


def test_every_file_gets_the_same_label_and_score(deployed, reference, exact):
    model, differing = deployed.example("magika"), []
    assert len(reference) >= 20
    for name, content in inputs.files().items():
        answer, expected = infer(deployed.gateway, model, file=strings(content)), reference[name]
        if texts(answer["label"]) != [str(expected.output.label)]:
            differing.append((name, texts(answer["label"]), expected.output.label, expected.score))
            continue
        # ONNX Runtime rounds as the package does, since it is what the package runs on.
        rounds = name in ROUNDED and deployed.gateway.engine != "onnxruntime"
        score, tolerance = (exact[name], ROUNDED_TOLERANCE) if rounds else (expected.score, TOLERANCE)
        close(answer["score"][0], answer["score"].dtype.type(score), tolerance)
        assert texts(answer["mime_type"]) == [expected.output.mime_type]
        assert texts(answer["description"]) == [expected.output.description]
    assert not differing


def test_many_files_in_one_request(deployed, reference):
    model, files = deployed.example("magika"), inputs.files()
    answer = infer(deployed.gateway, model, file=strings(*files.values()))
    assert texts(answer["label"]) == [str(reference[name].output.label) for name in files]
