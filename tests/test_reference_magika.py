"""What kind of file is this: the same answers as the Python package `magika`."""

import inputs
import pytest
from magika import Magika
from sending import close, infer, strings, texts

TOLERANCE = 1e-4
# The net normalises by a variance that it computes as a small difference of two sums over 512 positions. rten adds them up
# one after the other in single precision, which is 4e-6 off; where the variance is small, that is 0.6% of the score.
INEXACT = {("rten", "utf16.txt"): 1e-2, ("rten", "eight_bytes"): 1e-2}


@pytest.fixture(scope="module")
def reference():
    magika = Magika()
    return {name: magika.identify_bytes(content) for name, content in inputs.files().items()}


def test_every_file_gets_the_same_label_and_score(deployed, reference):
    model, differing = deployed.example("magika"), []
    assert len(reference) >= 20
    for name, content in inputs.files().items():
        answer, expected = infer(deployed.gateway, model, file=strings(content)), reference[name]
        if texts(answer["label"]) != [str(expected.output.label)]:
            differing.append((name, texts(answer["label"]), expected.output.label, expected.score))
            continue
        tolerance = INEXACT.get((deployed.gateway.engine, name), TOLERANCE)
        close(answer["score"][0], answer["score"].dtype.type(expected.score), tolerance)
        assert texts(answer["mime_type"]) == [expected.output.mime_type]
        assert texts(answer["description"]) == [expected.output.description]
    assert not differing


def test_many_files_in_one_request(deployed, reference):
    model, files = deployed.example("magika"), inputs.files()
    answer = infer(deployed.gateway, model, file=strings(*files.values()))
    assert texts(answer["label"]) == [str(reference[name].output.label) for name in files]
