"""Fetches pictures by URL: from allowed hosts, at public addresses, within bounds."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from app.errors import ApiError
from app.media.address import Address, Resolver, is_public
from app.media.download import FetchFailure, Redirect, download
from app.media.url import AllowedDomains, MediaUrl, UrlError
from app.metrics import Metrics
from app.pictures import LinkedPicture
from app.settings import MIB, Settings

MAX_REDIRECTS = 3

logger = logging.getLogger(__name__)


@dataclass
class Allowance:
    """Bytes that are left for the fetched pictures of one request together."""

    bytes_left: int


@dataclass(frozen=True)
class Network:
    """Where pictures are fetched from: how names are resolved there, which addresses count, whom TLS trusts."""

    resolve: Callable[[str, int], Awaitable[list[Address]]]
    is_public: Callable[[Address], bool]
    ssl_context: ssl.SSLContext

    @classmethod
    def public(cls, fetches: int) -> Network:
        """The public internet, with so many names resolved at once."""
        return cls(Resolver(fetches), is_public, ssl.create_default_context())


class MediaFetcher:
    def __init__(self, settings: Settings, metrics: Metrics, network: Network) -> None:
        self._allowed = AllowedDomains(settings.allowed_media_domains)
        self._metrics = metrics
        self._network = network
        self._max_bytes = settings.max_picture_bytes
        self._seconds = settings.media_seconds
        self._places = asyncio.Semaphore(settings.media_fetches)

    async def fetch(self, picture: LinkedPicture, allowance: Allowance) -> bytes:
        """The file. Raises :class:`ApiError`."""
        url = self._checked(picture)
        try:
            await asyncio.wait_for(self._places.acquire(), self._seconds)
        except asyncio.TimeoutError:
            message = "Too many pictures are being fetched. Try again shortly."
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, "queue_full", message, picture.field) from None
        began = time.monotonic()
        try:
            return await asyncio.wait_for(self._follow(url, allowance), self._seconds)
        except asyncio.TimeoutError:
            failure = FetchFailure("timeout")
        except FetchFailure as error:
            failure = error
        finally:
            self._places.release()
            self._metrics.media_fetch_seconds.observe(time.monotonic() - began)
        self._metrics.media_fetch_failures.labels(failure.reason).inc()
        logger.info("picture not fetched", extra={"host": url.host, "reason": failure.reason})
        why = f": {failure.complaint}." if failure.complaint else "."
        message = f"The picture in {picture.field} could not be fetched{why}"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "media_unavailable", message, picture.field)

    def _checked(self, picture: LinkedPicture) -> MediaUrl:
        """What can be said of a URL without asking anybody."""
        try:
            url = MediaUrl.parse(picture.url)
        except UrlError as error:
            raise not_allowed(f'"{picture.field}" {error}', picture.field) from None
        if url not in self._allowed:
            message = f'"{picture.field}" has a host or port that this server fetches no pictures from.'
            raise not_allowed(message, picture.field)
        return url

    async def _follow(self, url: MediaUrl, allowance: Allowance) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._answer(url, allowance)
            if not isinstance(answer, Redirect):
                return answer
            try:
                url = url.join(answer.location)
            except UrlError:
                raise FetchFailure("redirect") from None
            if url not in self._allowed:
                raise FetchFailure("redirect")
        raise FetchFailure("redirect", f"its server redirects more than {MAX_REDIRECTS} times")

    async def _answer(self, url: MediaUrl, allowance: Allowance) -> bytes | Redirect:
        """The one place where a name becomes addresses: those that were checked are those that are connected to."""
        try:
            addresses = await self._network.resolve(url.host, url.port)
        except (OSError, UnicodeError):
            raise FetchFailure("unresolved") from None
        if not addresses or not all(map(self._network.is_public, addresses)):
            raise FetchFailure("not_public")
        size = 0

        def spend(count: int) -> None:
            nonlocal size
            size += count
            allowance.bytes_left -= count
            if size > self._max_bytes:
                raise FetchFailure("too_large", f"it is larger than {self._max_bytes / MIB:.4g} MiB")
            if allowance.bytes_left < 0:
                raise FetchFailure("too_large", "the pictures of this request are too large together")

        return await download(url, addresses, self._network.ssl_context, spend)


def not_allowed(message: str, field: str) -> ApiError:
    """For what a URL says by itself."""
    return ApiError(HTTPStatus.BAD_REQUEST, "media_not_allowed", message, field)
