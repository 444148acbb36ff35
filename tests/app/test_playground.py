"""The playground's files over HTTP."""

import re
from pathlib import Path

import pytest

from app.routes.docs import STATIC
from tests.app.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

FILES = sorted((STATIC / "playground").iterdir())
TYPES = {".css": "text/css", ".html": "text/html", ".js": "javascript", ".svg": "image/svg+xml"}


async def test_the_page_is_at_the_root(gateway: Gateway) -> None:
    page = await gateway.client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert 'href="docs"' in page.text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page.text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_files_have_their_types_and_are_asked_for_again(gateway: Gateway, file: Path) -> None:
    path = f"/playground/{file.name}"
    answer = await gateway.client.get(path)
    assert answer.status_code == 200
    assert TYPES[file.suffix] in answer.headers["content-type"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = await gateway.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/playground/none.js", "/playground/..%2fdocs.html", "/playground/%2e%2e/docs.js"])
async def test_nothing_else_is_served(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_what_the_page_names_is_there(gateway: Gateway) -> None:
    names = set()
    for file in FILES:
        names |= set(re.findall(r'(?:src|href)="playground/([^"]+)"|from "\./([^"]+)"', file.read_text()))
    assert {"".join(pair) for pair in names} == {file.name for file in FILES} - {"index.html"}


async def test_no_file_names_another_host() -> None:
    for file in FILES:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|wss?:|[\"'(]//|@import|: url\(", text), file.name
