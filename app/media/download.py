"""One GET request to an address that was chosen beforehand."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import httpcore

from app import __version__
from app.media.address import Address
from app.media.url import MediaUrl

REDIRECTS = frozenset({301, 302, 303, 307, 308})
HEADERS = [
    (b"User-Agent", f"multimodal-gateway/{__version__}".encode()),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]


class FetchFailure(Exception):
    """A picture that did not come. ``reason`` is for metrics and the log.

    ``complaint`` is for the caller, and only about what a public server answered. Whether a name resolves, leads inside
    or is silent is never told: such answers would map the network that this gateway stands in.
    """

    def __init__(self, reason: str, complaint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.complaint = complaint


@dataclass(frozen=True)
class Redirect:
    """An answer that names another place."""

    location: bytes


async def download(
    url: MediaUrl, addresses: Sequence[Address], ssl_context: ssl.SSLContext, spend: Callable[[int], None]
) -> bytes | Redirect:
    """What ``url`` answers at one of ``addresses``. ``spend`` sees the bytes as they come and raises when it is enough.

    No proxies, cookies or credentials: httpcore knows none of them. Headers of more than 100 kB are an error there.

    Raises:
        FetchFailure: the server cannot be reached, or does not answer with a file.
    """
    target = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
    headers = [(b"Host", url.authority.encode()), *HEADERS]
    backend = _PinnedBackend(addresses)
    try:
        async with (
            httpcore.AsyncConnectionPool(ssl_context, max_connections=1, network_backend=backend) as pool,
            pool.stream("GET", target, headers=headers) as response,
        ):
            return await _body(response, spend)
    except (httpcore.ConnectError, httpcore.ConnectTimeout, ssl.SSLError):
        raise FetchFailure("connect") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        raise FetchFailure("broken_answer") from None


async def _body(response: httpcore.Response, spend: Callable[[int], None]) -> bytes | Redirect:
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in REDIRECTS:
        return Redirect(headers.get(b"location", b""))
    if response.status != 200:
        raise FetchFailure("status", f"its server answered with status {response.status}")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise FetchFailure("encoding", "its server sent it compressed, which was not asked for")
    data = bytearray()
    async for chunk in response.aiter_stream():
        spend(len(chunk))
        data += chunk
    return bytes(data)


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses whatever name it is asked for; the name stays that of TLS and the Host header."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        for address in self._addresses:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        raise httpcore.ConnectError
