"""Fetching from a server that means no good."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from app.errors import ApiError
from app.media.fetcher import Allowance, MediaFetcher, Network
from app.metrics import Metrics
from app.pictures import LinkedPicture
from app.settings import Settings
from tests.app.conftest import until
from tests.app.media.hostile import HERE, PNG, HostileServer, certificate, hostile_server

NOT_FETCHED = "The picture in image[0] could not be fetched."


def fetcher(server: HostileServer, network: Network | None = None, **settings: Any) -> MediaFetcher:
    settings = {
        "allowed_media_domains": f"*:{server.port}",
        "max_picture_bytes": 100_000,
        "media_seconds": 5,
    } | settings
    return MediaFetcher(Settings(_env_file=None, **settings), Metrics(lambda: None), network or server.network())


async def fetch(server: HostileServer, path: str, host: str = "a.example", **settings: Any) -> bytes:
    url = f"http://{host}:{server.port}{path}"
    return await fetcher(server, **settings).fetch(LinkedPicture(url, "image[0]"), Allowance(10**6))


async def refusal(server: HostileServer, path: str, host: str = "a.example", **settings: Any) -> str:
    with pytest.raises(ApiError) as refused:
        await fetch(server, path, host, **settings)
    assert (refused.value.status, refused.value.code, refused.value.param) == (422, "media_unavailable", "image[0]")
    return refused.value.message


async def test_the_file_comes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with hostile_server() as server:
        assert await fetch(server, "/one-hop") == PNG
        assert server.resolved == ["a.example"] * 2, "once for each hop"
        assert [request.split()[1] for request in server.requests] == [b"/one-hop", b"/picture-"]
        for request in server.requests:
            assert f"Host: a.example:{server.port}\r\n".encode() in request
            assert b"Accept-Encoding: identity\r\n" in request
            assert not {b"cookie", b"authorization", b"referer"} & {
                line.split(b":")[0].lower() for line in request.splitlines()
            }


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "The picture in image[0] could not be fetched: its server answered with status 404."),
        ("/compressed", "could not be fetched: its server sent it compressed, which was not asked for."),
        ("/endless", "could not be fetched: it is larger than 0.09537 MiB."),
        ("/huge-by-its-own-account", "larger than"),
        ("/loop", "could not be fetched: its server redirects more than 3 times."),
        ("/nowhere", "redirects more than 3 times"),
        ("/huge-header", NOT_FETCHED),
        ("/cut-short", NOT_FETCHED),
        ("/not-http", NOT_FETCHED),
    ],
)
async def test_tricks(path: str, message: str) -> None:
    async with hostile_server() as server:
        assert message in await refusal(server, path)
        assert server.sent < 10_000_000
        assert len(server.requests) <= 4
        await until(lambda: server.open == 0)


@pytest.mark.parametrize("path", ["/drip", "/silent"])
async def test_what_takes_too_long_is_left(path: str) -> None:
    async with hostile_server() as server:
        assert await refusal(server, path, media_seconds=0.3) == NOT_FETCHED
        if path == "/drip":
            await until(lambda: server.open == 0)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/picture-",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/picture-",
        "http://[::ffff:127.0.0.2]:{port}/picture-",
        "http://2130706433:{port}/picture-",
        "http://inside.example:{port}/picture-",
        "http://a.example:22/picture-",
        "http://a.example\\@inside.example:{port}/",
        "http://user:password@a.example:{port}/picture-",
        "file:///etc/passwd",
        "gopher://a.example:{port}/",
        "//inside.example:{port}/picture-",
    ],
)
async def test_redirects_are_checked_like_the_first(location: str) -> None:
    async with hostile_server() as server:
        server.elsewhere = location.format(port=server.port)
        server.answers = {
            "inside.example": [[ip_address("127.0.0.2")]],
            **{host: [[ip_address(host)]] for host in ("127.0.0.2", "169.254.169.254", "::1", "::ffff:7f00:2")},
        }
        domains = f"*:{server.port},169.254.169.254"
        assert await refusal(server, "/elsewhere", allowed_media_domains=domains) == NOT_FETCHED
        assert len(server.requests) == 1


async def test_a_redirect_to_a_host_that_is_not_allowed() -> None:
    async with hostile_server() as server:
        server.elsewhere = f"http://b.example:{server.port}/picture-"
        domains = f"a.example:{server.port}"
        assert await refusal(server, "/elsewhere", allowed_media_domains=domains) == NOT_FETCHED
        assert server.resolved == ["a.example"]


async def test_a_name_is_resolved_once_and_the_answer_is_connected_to() -> None:
    """A second answer, had anybody asked, would have led inside; to ask the system is to find no such name."""
    async with hostile_server() as server:
        server.answers = {"rebind.invalid": [[HERE], [ip_address("127.0.0.2")]]}
        assert await fetch(server, "/picture-", "rebind.invalid") == PNG
        assert server.resolved == ["rebind.invalid"]
        assert await refusal(server, "/picture-", "rebind.invalid") == NOT_FETCHED
        assert len(server.requests) == 1


async def test_all_addresses_must_be_public() -> None:
    async with hostile_server() as server:
        server.answers = {"mixed.example": [[HERE, ip_address("10.0.0.1")]], "gone.example": [[]]}
        not_public = await refusal(server, "/picture-", "mixed.example")
        assert not_public == await refusal(server, "/picture-", "gone.example") == NOT_FETCHED
        assert server.requests == []


async def test_the_next_address_is_tried() -> None:
    async with hostile_server() as server:
        nobody = ip_address("127.0.0.3")
        server.answers = {"two.example": [[nobody, HERE]], "one.example": [[nobody]]}
        network = Network(server.resolve, lambda _: True, server.network().ssl_context)
        assert await fetch(server, "/picture-", "two.example", network=network) == PNG
        assert await refusal(server, "/picture-", "one.example", network=network) == NOT_FETCHED


async def test_tls_is_checked_against_the_name(tmp_path: Path) -> None:
    server_side, trusting = certificate(tmp_path, "good.example")
    async with hostile_server(ssl=server_side) as server:
        for host, network, fetched in (
            ("good.example", server.network(trusting), True),
            ("other.example", server.network(trusting), False),
            ("good.example", server.network(), False),
        ):
            picture = LinkedPicture(f"https://{host}:{server.port}/picture-", "image[0]")
            fetching = fetcher(server, network).fetch(picture, Allowance(10**6))
            if fetched:
                assert await fetching == PNG
            else:
                with pytest.raises(ApiError) as refused:
                    await fetching
                assert refused.value.message == NOT_FETCHED
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://b.example/x", '"image[0]" has a host or port that this server fetches no pictures from.'),
        ("http://a.example:22/x", "fetches no pictures from"),
        ("http://u:p@a.example/x", '"image[0]" must not contain credentials.'),
        ("http://a.example\\b.example/x", "backslashes"),
        ("http://0x7f.1/x", "neither a name nor an address"),
    ],
)
async def test_what_the_url_alone_forbids(url: str, message: str) -> None:
    async with hostile_server() as server:
        fetching = fetcher(server, allowed_media_domains="a.example")
        with pytest.raises(ApiError) as refused:
            await fetching.fetch(LinkedPicture(url, "image[0]"), Allowance(10**6))
        assert message in refused.value.message
        assert (refused.value.status, refused.value.code) == (400, "media_not_allowed")
        assert server.resolved == []


async def test_so_many_at_once() -> None:
    async with hostile_server() as server:
        busy = fetcher(server, media_fetches=1, media_seconds=1.0)
        silent = LinkedPicture(f"http://a.example:{server.port}/silent", "image[0]")
        first = asyncio.create_task(busy.fetch(silent, Allowance(10**6)))
        await until(lambda: server.open == 1)
        waiting = asyncio.create_task(busy.fetch(silent, Allowance(10**6)))
        await asyncio.sleep(0.2)
        assert len(server.requests) == 1
        first.cancel()
        await until(lambda: len(server.requests) == 2)
        waiting.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)


async def test_the_pictures_of_a_request_are_bounded_together() -> None:
    async with hostile_server() as server:
        allowance = Allowance(len(PNG) + 1)
        fetching = fetcher(server)
        picture = LinkedPicture(f"http://a.example:{server.port}/picture-", "image[0]")
        assert await fetching.fetch(picture, allowance) == PNG
        with pytest.raises(ApiError, match="too large together"):
            await fetching.fetch(picture, allowance)
