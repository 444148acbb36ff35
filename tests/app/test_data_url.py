"""Which URLs of pictures are taken."""

import base64
from urllib.parse import quote

import pytest

from app.data_url import from_picture_url
from app.errors import ApiError
from app.pictures import LinkedPicture, Picture

DATA = bytes(range(256))
ENCODED = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:IMAGE/PNG;BASE64,{ENCODED}",
        f"data:image/png;name=x.png;base64,{ENCODED}",
        f"data:image;base64,{ENCODED}",
        f" data:image/jpeg;base64,{ENCODED}\n",
        f"data:image/png; base64, {ENCODED}",
        f"data:image/png;base64,{base64.encodebytes(DATA).decode()}",
        f"data:image/png;base64,{quote(ENCODED, safe='')}",
        f"data:image/png;base64,{ENCODED.replace('+', '%2b').replace('/', '%2f').replace('=', '%3d')}",
        f"data:image/png;base64,{quote(base64.encodebytes(DATA).decode(), safe='')}",
    ],
)
def test_forms_that_are_taken(url: str) -> None:
    assert from_picture_url(url, "url") == Picture(DATA, "url")


def test_empty_data_is_for_the_picture_check_to_refuse() -> None:
    assert from_picture_url("data:image/png;base64,", "url") == Picture(b"", "url")


@pytest.mark.parametrize(
    "url", ["http://example.org/x.png", "HTTPS://example.org/x.png", " https://example.org/x.png\n"]
)
def test_links_are_for_the_fetcher(url: str) -> None:
    assert from_picture_url(url, "url") == LinkedPicture(url.strip(), "url")


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("", 400, "must be a data URL"),
        ("x.png", 400, "must be a data URL"),
        (ENCODED, 400, "must be a data URL"),
        ("file:///etc/passwd", 400, "must be a data URL"),
        ("ftp://example.org/x.png", 400, "must be a data URL"),
        ("data:", 400, "must be a data URL"),
        ("data:image/png;base64", 400, "must be a data URL"),
        ("data:image/png,%89PNG", 400, "must be a data URL"),
        ("data:image/png;base64;name=x.png,QUJD", 400, "must be a data URL"),
        ("data:image/png;base64,QUJ", 400, "not valid base64"),
        ("data:image/png;base64,QU?D", 400, "not valid base64"),
        ("data:image/png;base64,QUJD%zz", 400, "not valid base64"),
        ("data:image/png;base64,QUJD%FF", 400, "not valid base64"),
        ("data:image/png;base64,QUJD%41", 400, "not valid base64"),  # no encoder escapes a letter
        ("data:image/png;base64,QUJD§", 400, "not valid base64"),
        ("data:text/plain;base64,QUJD", 422, "by its type"),
        ("data:application/pdf;base64,QUJD", 422, "by its type"),
        ("data:;base64,QUJD", 422, "by its type"),
    ],
)
def test_what_is_not_taken(url: str, status: int, message: str) -> None:
    with pytest.raises(ApiError, match=message) as refusal:
        from_picture_url(url, "url")
    assert (refusal.value.status, refusal.value.param) == (status, "url")
