"""Speech or not: the same probabilities as the package's own ONNX file under Python's ONNX Runtime, its state carried."""

import inputs
import numpy as np
import onnxruntime
import pytest
from harness import ROOT
from sending import close, infer

WINDOW, CONTEXT = 512, 64


@pytest.fixture(scope="module")
def reference():
    """The package's own loop over windows: each is seen behind the last 64 samples of the one before."""
    session = onnxruntime.InferenceSession(ROOT / "target" / "models" / "silero-vad" / "model.onnx")

    def run(samples: np.ndarray) -> np.ndarray:
        state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32), []
        for start in range(0, len(samples), WINDOW):
            window = np.concatenate([context, samples[start : start + WINDOW]])
            feed = {"input": window[None], "state": state, "sr": np.array(16000, np.int64)}
            output, state = session.run(None, feed)
            context = window[-CONTEXT:]
            found.append(output[0, 0])
        return np.array(found, np.float32)

    return run


def whole_windows(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) // WINDOW * WINDOW]


def stream(gateway, model: str, samples: np.ndarray, windows_a_call: int) -> np.ndarray:
    """The probabilities of a stream that is sent in pieces; the caller carries the state."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
    found, step = [], windows_a_call * WINDOW
    for start in range(0, len(samples), step):
        audio = samples[None, start : start + step]
        answer = infer(gateway, model, audio=audio, context=context, state=state)
        found.append(answer["speech"][0])
        state, context = answer["state"], answer["context"]
    return np.concatenate(found)


def test_every_sound_gets_the_same_probabilities(deployed, reference):
    model, sounds = deployed.example("vad"), inputs.sounds()
    assert len(sounds) >= 20
    for name, samples in sounds.items():
        samples = whole_windows(samples)
        expected = reference(samples)
        close(stream(deployed.gateway, model, samples, windows_a_call=40), expected, scale=1)
        spoken = expected.max() > 0.5
        assert spoken == name.startswith(("speech", "noisy")), (name, expected.max())


def test_pieces_give_what_the_whole_gives(deployed, reference):
    model, samples = deployed.example("vad"), whole_windows(inputs.sounds()["speech0_en"])
    for windows_a_call in (1, 7, 1000):
        close(stream(deployed.gateway, model, samples, windows_a_call), reference(samples), scale=1)


def test_two_streams_in_one_request_do_not_mix(deployed, reference):
    model, sounds = deployed.example("vad"), inputs.sounds()
    pair = [whole_windows(sounds[name][:16000]) for name in ("speech1_de", "noise")]
    fresh = {"context": np.zeros((2, CONTEXT), np.float32), "state": np.zeros((2, 2, 128), np.float32)}
    answer = infer(deployed.gateway, model, audio=np.stack(pair), **fresh)
    for row, samples in enumerate(pair):
        close(answer["speech"][row], reference(samples), scale=1)
