"""Pictures are refused here by format, bytes and pixels, from their header; nothing is decoded."""

from __future__ import annotations

import base64
import io
import string
from collections.abc import Callable, Sequence
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
from protocol.pictures import FORMATS_IN_WORDS, PictureFormat, picture_format

HEADER_READERS: dict[PictureFormat, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
"""Pillow's own. Used directly: ``Image.open`` would try every format it knows."""

BLANKS = string.whitespace.encode()


class Picture(NamedTuple):
    """An encoded picture, and the request field it came in."""

    data: bytes
    field: str


class LinkedPicture(NamedTuple):
    """The http or https URL of a picture, and the request field it came in."""

    url: str
    field: str


AskedPicture = Picture | LinkedPicture


def from_base64(text: str, field: str) -> bytes:
    """The file in ``text``, whose lines may be wrapped."""
    try:
        return base64.b64decode(text.encode("ascii").translate(None, BLANKS), validate=True)
    except ValueError:
        raise bad_request(f'"{field}" is not valid base64.', field) from None


def check_pictures(pictures: list[Picture], settings: Settings) -> None:
    """Raises :class:`ApiError` for the first picture that cannot be taken. Reads headers, which may take a while."""
    for picture in pictures:
        check_bytes(len(picture.data), picture.field, settings)
        width, height = _size(picture)
        if width < 1 or height < 1:
            raise refused_picture(picture.field, "has no pixels.")
        if width * height > settings.max_picture_pixels:
            limit = settings.max_picture_pixels
            raise refused_picture(picture.field, f"has {width} by {height} pixels; at most {limit:,} in all are taken.")


def check_count(pictures: Sequence[AskedPicture], settings: Settings) -> None:
    if len(pictures) > settings.max_pictures:
        raise bad_request(f"At most {settings.max_pictures} pictures are taken.", pictures[-1].field)


def check_bytes(size: int, field: str, settings: Settings) -> None:
    if size > settings.max_picture_bytes:
        limit = settings.max_picture_bytes / MIB
        message = f"The picture in {field} is too large: at most {limit:.4g} MiB are taken."
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "picture_too_large", message, field)


def _size(picture: Picture) -> tuple[int, int]:
    kind = picture_format(picture.data)
    if kind is None:
        raise refused_picture(picture.field, f"is not a {FORMATS_IN_WORDS} file.")
    try:
        with HEADER_READERS[kind](io.BytesIO(picture.data)) as header:
            width, height = header.size
            return width, height
    except Exception:  # whatever a hostile file makes Pillow raise; its words stay here
        raise refused_picture(picture.field, "cannot be read: it is damaged or incomplete.") from None


def refused_picture(field: str, complaint: str) -> ApiError:
    message = f"The picture in {field} {complaint}"
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, ErrorCode.INVALID_PICTURE.value, message, field)
