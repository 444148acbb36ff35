"""What the REST client takes as a picture, and what it sends."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clients.rest import PictureError
from clients.rest.pictures import encode_picture


def decoded(picture: Any) -> Image.Image:
    return Image.open(io.BytesIO(encode_picture(picture)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I"])
def test_images_become_png(mode: str) -> None:
    image = decoded(Image.new("RGB", (8, 6), "red").convert("RGB" if mode == "HSV" else "L").convert(mode))
    assert (image.format, image.size) == ("PNG", (8, 6))


def test_other_formats_become_png() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "TIFF")
    image = decoded(file.getvalue())
    assert (image.format, image.getpixel((0, 0))) == ("PNG", (255, 0, 0))


def test_orientation_is_kept() -> None:
    image = Image.new("RGB", (8, 6))
    image.getexif()[0x0112] = 6
    assert decoded(image).size == (6, 8)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (6, 8, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    assert decoded(np.full(shape, 200, np.uint8)).size == (8, 6)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("/nowhere/a.png", "'/nowhere/a.png' cannot be read: No such file"),
        (b"text", "not a picture that Pillow can read"),
        (np.zeros((2, 2), np.float32), "not float32 of 2 x 2"),
        (np.zeros((2, 2, 2, 2), np.uint8), "not uint8 of 2 x 2 x 2 x 2"),
        (7, "not <class 'int'>"),
    ],
)
def test_unreadable_pictures(wrong: Any, complaint: str) -> None:
    with pytest.raises(PictureError, match=complaint):
        encode_picture(wrong)
