"""Pictures are refused here by format, bytes and pixels, from their header; nothing is decoded."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import ApiError, bad_request
from app.settings import MIB, Settings
from protocol.messages import ErrorCode


class Picture(NamedTuple):
    """An encoded picture, and the request field it came in."""

    data: bytes
    field: str


def from_base64(text: str, field: str) -> bytes:
    """The file in ``text``, whose lines may be wrapped."""
    try:
        return base64.b64decode(b"".join(text.encode("ascii").split()), validate=True)
    except ValueError:
        raise bad_request(f'"{field}" is not valid base64.', field) from None


def check_pictures(pictures: list[Picture], settings: Settings) -> None:
    """Raises :class:`ApiError` for the first picture that cannot be taken. Reads headers: not for the event loop."""
    if len(pictures) > settings.max_pictures:
        raise bad_request(f"At most {settings.max_pictures} pictures are taken.", pictures[-1].field)
    for picture in pictures:
        check_bytes(len(picture.data), picture.field, settings)
        width, height = _size(picture)
        if width < 1 or height < 1:
            raise refused_picture(picture.field, "has no pixels.")
        if width * height > settings.max_picture_pixels:
            limit = settings.max_picture_pixels
            raise refused_picture(picture.field, f"has {width} by {height} pixels; at most {limit:,} in all are taken.")


def check_bytes(size: int, field: str, settings: Settings) -> None:
    if size > settings.max_picture_bytes:
        limit = settings.max_picture_bytes / MIB
        message = f"The picture in {field} is too large: at most {limit:.4g} MiB are taken."
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "picture_too_large", message, field)


def _size(picture: Picture) -> tuple[int, int]:
    reader = _header_reader(picture.data)
    if reader is None:
        raise refused_picture(picture.field, "is not a PNG, JPEG, WEBP, GIF or BMP file.")
    try:
        with reader(io.BytesIO(picture.data)) as header:
            width, height = header.size
            return width, height
    except Exception:  # whatever a hostile file makes Pillow raise; its words stay here
        raise refused_picture(picture.field, "cannot be read: it is damaged or incomplete.") from None


def _header_reader(data: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    """Pillow's reader of this format, by content. Used directly: ``Image.open`` would try every format it knows."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    return None


def refused_picture(field: str, complaint: str) -> ApiError:
    message = f"The picture in {field} {complaint}"
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, ErrorCode.INVALID_PICTURE.value, message, field)
