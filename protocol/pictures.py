"""Which picture files are taken, said once for the gateway, which looks at headers, and the worker, which decodes."""

from __future__ import annotations

from typing import Literal

PictureFormat = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]
"""Formats with a small, well-tested decoder, by Pillow's names."""

FORMATS_IN_WORDS = "PNG, JPEG, WEBP, GIF or BMP"

MAX_PICTURE_PIXELS = 50_000_000
"""Width times height. Cameras have so many; more than about a gigabyte is never needed to decode one."""


def picture_format(data: bytes) -> PictureFormat | None:
    """The format of a file by its content, whatever a name or a header says; ``None`` if it is not taken."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None
