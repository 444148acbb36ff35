"""Pictures as URLs: those that carry the picture themselves."""

from __future__ import annotations

from urllib.parse import unquote

from app.errors import bad_request
from app.pictures import from_base64, refused_picture


def from_picture_url(url: str, field: str) -> bytes:
    """The file that a ``data:image/png;base64,…`` URL carries. Raises :class:`ApiError` for any other URL."""
    scheme, _, rest = url.strip().partition(":")
    head, comma, data = rest.partition(",")
    if scheme.lower() in ("http", "https"):
        raise bad_request("Picture URLs are off on this server: send the picture itself, as a data: URL.", field)
    media_type, *attributes = (word.strip().lower() for word in head.split(";"))
    if scheme.lower() != "data" or not comma or attributes[-1:] != ["base64"]:
        raise bad_request(f'"{field}" must be a data URL in base64, as in "data:image/png;base64,iVBORw0...".', field)
    if media_type.partition("/")[0] != "image":  # "data:image;base64," is what the reference implementation sends
        raise refused_picture(field, 'is not one by its type: its URL must begin with "data:image/".')
    return from_base64(unquote(data), field)
