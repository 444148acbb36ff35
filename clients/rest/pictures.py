"""From whatever a caller has as a picture to the bytes of a file that the API takes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image, ImageOps

from clients.rest.errors import PictureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Picture: TypeAlias = "Image.Image | str | os.PathLike[str] | bytes | BinaryIO | NDArray[Any]"
"""An image of Pillow's, a path, the bytes of a file, an open file, or uint8 pixels [height, width(, channels)]."""

_SENT_AS_THEY_ARE = frozenset({"PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP"})  # MPO: JPEG with more pictures behind it
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


def encode_picture(picture: Picture) -> bytes:
    """The picture as a file: as it is where the API takes its format, or else as PNG. Raises :class:`PictureError`."""
    if isinstance(picture, Image.Image):
        return _png(picture)
    if hasattr(picture, "__array_interface__"):
        return _png(_from_pixels(picture))
    if isinstance(picture, bytes):
        return _as_file(picture, "The picture")
    if isinstance(picture, (str, os.PathLike)):
        return _as_file(_read(Path(picture)), f"{os.fspath(picture)!r}")
    if hasattr(picture, "read"):
        return _as_file(picture.read(), "The picture")
    raise PictureError(f"A picture is an image of Pillow's, a path, bytes, a file or an array, not {type(picture)}.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"The picture {os.fspath(path)!r} cannot be read: {reason}.") from None


def _as_file(data: bytes, name: str) -> bytes:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return data if image.format in _SENT_AS_THEY_ARE else _png(image)
    except Exception:  # Pillow's plugins raise many types on bytes they cannot read
        raise PictureError(f"{name} is not a picture that Pillow can read.") from None


def _from_pixels(pixels: Any) -> Image.Image:
    try:
        if pixels.dtype == "uint8":
            return Image.fromarray(pixels)
    except (TypeError, ValueError):
        pass
    shape = " x ".join(map(str, pixels.shape))
    expected = "uint8 pixels [height, width] or [height, width, 3 or 4]"
    raise PictureError(f"A picture as an array is {expected}, not {pixels.dtype} of {shape}.")


def _png(image: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(image)
    pixels = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
    file = io.BytesIO()
    pixels.save(file, "PNG", compress_level=1)  # fast: it is read once
    return file.getvalue()
