"""Pictures by URL in each form that a request can name them in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from protocol.messages import PicturePart, TextPart
from tests.app.conftest import GENERATE, Gateway, gateway_with, picture, until
from tests.app.media.hostile import PNG, HostileServer, hostile_server
from tests.app.test_metrics import samples
from tests.app.test_openai_chat import CHAT, data_url

pytestmark = pytest.mark.asyncio(loop_scope="session")

BLUE = picture("JPEG", color="blue")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fetching(server: HostileServer) -> AsyncIterator[Gateway]:
    domains = f"a.example:{server.port}"
    async with gateway_with(network=server.network(), allowed_media_domains=domains, max_pictures=3) as gateway:
        yield gateway


def requests(link: str) -> list[tuple[str, dict[str, Any], str]]:
    """Route, request, and the name of the field that holds the link."""
    chat = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    image_url = {**chat, "content": [*chat["content"], {"type": "image_url", "image_url": {"url": link}}]}  # type: ignore[misc]
    image = {**chat, "content": [{"type": "image", "image": link}, *chat["content"]]}  # type: ignore[misc]
    return [
        (GENERATE, {"json": {"prompt": "x", "images": [{"url": link}]}}, "images[0].url"),
        (GENERATE, {"json": {"prompts": ["x"], "images": [[{"url": link}]]}}, "images[0][0].url"),
        (GENERATE, {"files": [("prompt", (None, "x")), ("image_url", (None, link))]}, "image_url[0]"),
        (CHAT, {"json": {"messages": [image_url]}}, "messages[0].content[1].image_url.url"),
        (CHAT, {"json": {"messages": [image]}}, "messages[0].content[0].image"),
    ]


@pytest.mark.parametrize("form", range(5))
async def test_each_form(fetching: Gateway, server: HostileServer, form: int) -> None:
    path, request, _ = requests(f"http://a.example:{server.port}/one-hop")[form]
    answer = await fetching.client.post(path, **request)
    assert answer.status_code == 200, answer.text
    assert fetching.worker.submits[-1].pictures == (PNG,)


@pytest.mark.parametrize("form", range(5))
@pytest.mark.parametrize(
    ("trick", "status", "code"),
    [
        ("http://a.example:{port}/missing", 422, "media_unavailable"),
        ("http://a.example:{port}/not-a-picture", 422, "invalid_picture"),
        ("http://b.example:{port}/picture-", 400, "media_not_allowed"),
    ],
)
async def test_each_refusal(
    fetching: Gateway, server: HostileServer, form: int, trick: str, status: int, code: str
) -> None:
    path, request, field = requests(trick.format(port=server.port))[form]
    known = len(fetching.worker.submits)
    answer = await fetching.client.post(path, **request)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, field)
    assert field in error["message"]
    assert len(fetching.worker.submits) == known


@pytest.mark.parametrize("form", range(5))
async def test_off_unless_allowed(gateway: Gateway, form: int) -> None:
    path, request, field = requests("https://example.com/x.png")[form]
    answer = await gateway.client.post(path, **request)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert answer.json()["error"]["message"] == "Picture URLs are off on this server: send the picture itself."


async def test_files_and_links_keep_their_order(fetching: Gateway, server: HostileServer) -> None:
    link = f"http://a.example:{server.port}/picture-"
    parts: Any = [("image", ("b.jpg", BLUE)), ("image_url", (None, link)), ("image_url", (None, data_url(BLUE)))]
    parts += [("image_url", (None, "")), ("prompt", (None, "x"))]
    assert (await fetching.client.post(GENERATE, files=parts)).status_code == 200
    assert fetching.worker.submits[-1].pictures == (BLUE, PNG, BLUE)
    assert fetching.worker.submits[-1].messages[0].content == (*map(PicturePart, range(3)), TextPart("x"))


async def test_too_many_are_not_fetched(fetching: Gateway, server: HostileServer) -> None:
    known = len(server.requests)
    images = [{"url": f"http://a.example:{server.port}/picture-"}] * 4
    answer = await fetching.client.post(GENERATE, json={"prompt": "x", "images": images})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "images[3].url")
    assert len(server.requests) == known


@pytest.mark.parametrize(
    "source", [{}, {"data": "QUJD", "url": "https://a.example"}, {"file": "/etc/passwd"}, "x", None]
)
async def test_either_data_or_url(fetching: Gateway, source: Any) -> None:
    answer = await fetching.client.post(GENERATE, json={"prompt": "x", "images": [source]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("images[0]")


@pytest.mark.parametrize("form", [0, 1, 3])
async def test_a_caller_that_goes_away_ends_the_fetch(fetching: Gateway, server: HostileServer, form: int) -> None:
    path, request, _ = requests(f"http://a.example:{server.port}/drip")[form]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{fetching.port}", trust_env=False) as client:
        asking = asyncio.create_task(client.post(path, **request))
        await until(lambda: server.open == 1)
        asking.cancel()
    await until(lambda: server.open == 0)


async def test_fetches_are_counted(server: HostileServer) -> None:
    async with gateway_with(network=server.network(), allowed_media_domains=f"*:{server.port}") as gateway:
        for path in ("/picture-", "/missing"):
            images = [{"url": f"http://a.example:{server.port}{path}"}]
            await gateway.client.post(GENERATE, json={"prompt": "x", "images": images})
        found = await samples(gateway.client)
    assert found["media_fetch_seconds_count"] == 2
    assert found['media_fetch_failure_total{reason="status"}'] == 1
