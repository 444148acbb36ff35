"""Pictures by whatever names them on a command line or in a call: also URLs and base64."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TypeAlias

import httpx

from clients.rest.errors import PictureError
from clients.rest.pictures import Picture, encode_picture

Source: TypeAlias = Picture
"""What :func:`encode_picture` takes; a text may also be a URL, a data URL or base64."""

_FETCH_SECONDS = 30.0


def picture_file(source: Source) -> bytes:
    """The bytes of a picture file that the server takes. Raises :class:`PictureError`."""
    if not isinstance(source, str) or os.path.isfile(source):
        return encode_picture(source)
    if source.startswith(("http://", "https://")):
        return encode_picture(_fetch(source))
    encoded = source.partition("base64,")[2] if source.startswith("data:") else source
    try:
        return encode_picture(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):  # PictureError is a ValueError: what looks like base64 may be a missing file
        shown = source if len(source) <= 100 else f"{source[:100]} ..."
        raise PictureError(f"{shown!r} is no picture: neither a file here, nor a URL, nor base64.") from None


def _fetch(url: str) -> bytes:
    try:
        response = httpx.get(url, timeout=_FETCH_SECONDS, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise PictureError(f"The picture at {url} cannot be fetched: HTTP status {status}.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PictureError(f"The picture at {url} cannot be fetched: {error}.") from None
    return response.content
