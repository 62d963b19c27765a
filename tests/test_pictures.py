"""The SDK's helpers for pictures, in the sandbox: what Pillow, OpenCV and NumPy make of the same files."""

import io

import cv2
import inputs
import numpy as np
import pytest
from PIL import Image, ImageOps
from sending import infer, strings

SIDE = (224, 224)


def files() -> dict[str, bytes]:
    """Pictures of many sizes, and in each format."""
    found = dict(inputs.pictures())
    sample = Image.open(io.BytesIO(found["drawn01.png"])).convert("RGB")
    for form, options in (("JPEG", {"quality": 90}), ("WEBP", {"lossless": True}), ("PNG", {})):
        buffer = io.BytesIO()
        sample.crop((0, 0, sample.width - 3, sample.height - 5)).save(buffer, form, **options)
        found[f"cropped.{form.lower()}"] = buffer.getvalue()
    return found


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def made(deployed, content: bytes, helper: str, output: str) -> np.ndarray:
    answer = infer(deployed.gateway, deployed.example("pictures"), parameters={"helper": helper}, file=strings(content))
    return answer[output]


def pillow(filter):
    return lambda pixels: np.asarray(Image.fromarray(pixels).resize(SIDE, filter))


def opencv(filter):
    return lambda pixels: cv2.resize(pixels, SIDE, interpolation=filter)


# Helper -> who makes the same, how far a colour may be apart, and which share of them may be further. Pillow takes the sides
# in the other order, and between them cuts off what is under black or over white: Lanczos has much of that at hard edges.
# A pixel that lies half below two others is counted to either.
RESIZED = {
    "smooth": (pillow(Image.Resampling.BILINEAR), 1, 0),
    "bilinear": (opencv(cv2.INTER_LINEAR), 1, 0),
    "area": (pillow(Image.Resampling.BOX), 1, 0.01),
    "lanczos": (pillow(Image.Resampling.LANCZOS), 3, 0.02),
}


@pytest.mark.parametrize("helper", RESIZED)
def test_pictures_are_resized_as_others_do(deployed, helper):
    other, most, share = RESIZED[helper]
    for name, content in files().items():
        # Of the very pixels that were decoded in the sandbox: how a JPEG is decoded is not fixed to the last bit.
        pixels = made(deployed, content, "decode", "pixels")
        found, wanted = made(deployed, content, helper, "pixels").astype(int), other(pixels).astype(int)
        assert found.shape == (*SIDE, 3)
        apart = np.abs(found - wanted)
        assert (apart > most).mean() <= share and apart.mean() < 0.5, (name, apart.max(), (apart > most).mean())


def test_pictures_are_decoded_as_pillow_does(deployed):
    for name, content in files().items():
        found, wanted = made(deployed, content, "decode", "pixels").astype(int), decoded(content).astype(int)
        assert found.shape == wanted.shape, name
        apart = np.abs(found - wanted)
        if content.startswith(b"\xff\xd8"):
            assert apart.mean() < 1.5, (name, apart.mean())
        else:
            assert apart.max() == 0, name


def test_numbers_are_what_numpy_makes(deployed):
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for name, content in list(files().items())[:5]:
        pixels = made(deployed, content, "decode", "pixels")
        planes = ((pixels / 255.0 - mean) / deviation).transpose(2, 0, 1).ravel()
        np.testing.assert_allclose(made(deployed, content, "normalize", "numbers"), planes, atol=1e-5, err_msg=name)
        scores = np.exp(pixels.ravel() / 255.0 - (pixels / 255.0).max())
        softmax = made(deployed, content, "softmax", "numbers")
        np.testing.assert_allclose(softmax, scores / scores.sum(), rtol=1e-4, err_msg=name)
