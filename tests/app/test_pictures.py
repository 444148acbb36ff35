"""Which pictures are taken."""

import base64
import struct
import zlib
from typing import Any

import pytest

from app.errors import ApiError
from app.pictures import Picture, check_pictures
from app.settings import Settings
from tests.app.conftest import GENERATE, Gateway, picture

SETTINGS = Settings(_env_file=None, max_picture_pixels=1_000_000)


def check(*pictures: bytes) -> None:
    check_pictures([Picture(data, f"image[{i}]") for i, data in enumerate(pictures)], SETTINGS)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_taken(kind: str) -> None:
    check(picture(kind))


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000"])
def test_formats_that_are_not(kind: str) -> None:
    with pytest.raises(ApiError, match="not a PNG") as refusal:
        check(picture(), picture(kind))
    assert refusal.value.status == 422
    assert refusal.value.param == "image[1]"


@pytest.mark.parametrize("data", [b"", b"x", b"<svg/>", b"%PDF-1.7", b"GIF", b"RIFF1234WAVE"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ApiError, match="not a PNG"):
        check(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_headers_cut_off_or_damaged(kind: str) -> None:
    whole = picture(kind)
    for data in (whole[:12], whole[:6] + b"\xff" * 40, whole[:12] + b"\0" * 40):
        with pytest.raises(ApiError) as refusal:
            check(data)
        assert refusal.value.status == 422
        assert "PIL" not in refusal.value.message


def test_pixel_bombs() -> None:
    check(png_header(1000, 1000))
    for size in ((1001, 1000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ApiError, match="pixels") as refusal:
            check(png_header(*size))
        assert refusal.value.status == 422


@pytest.mark.asyncio(loop_scope="session")
async def test_over_http(gateway: Gateway) -> None:
    files: Any = {"prompt": (None, "x"), "image": ("innocent.png", png_header(50_000, 50_000))}
    answer = await gateway.client.post(GENERATE, files=files)
    assert answer.status_code == 422
    assert answer.json()["error"] == {
        "message": "The picture in image[0] has 50000 by 50000 pixels; at most 1,000,000 in all are taken.",
        "type": "invalid_request_error",
        "param": "image[0]",
        "code": "invalid_picture",
    }
    images = [{"data": base64.b64encode(picture("TIFF")).decode()}]
    answer = await gateway.client.post(GENERATE, json={"prompt": "x", "images": images})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "images[0]"
