"""The two clients. They differ in how they wait and in nothing else."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from clients.rest.answers import Completion, CompletionChunk, EventDecoder, read_completion
from clients.rest.errors import MultimodalError, api_error, own_errors
from clients.rest.pictures import Picture
from clients.rest.requests import GENERATE, FormFields, Sampling, generate_form
from clients.rest.retry import RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

DEFAULT_URL = "http://localhost:8080"

DEFAULT_TIMEOUT = httpx.Timeout(connect=10, write=60, read=310, pool=None)
"""A whole answer is silent until it is complete: read for longer than the server's own limit of 300 seconds."""


class MultimodalClient:
    """Asks a gateway, blocking. May be shared by threads."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
    ) -> None:
        """``timeout`` bounds each wait for the server, not the whole request; ``api_key`` is sent as bearer token."""
        self._http = httpx.Client(**_http_options(url, api_key, timeout))
        self._retry = retry or RetryPolicy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, prompt: str, images: Sequence[Picture] = (), *, model: str | None = None, **sampling: Unpack[Sampling]
    ) -> Completion:
        """The whole answer. Raises :class:`MultimodalError`."""
        response = self._send(generate_form(prompt, images, model, sampling, stream=False))
        with closing(response), own_errors():
            response.read()
        return read_completion(response)

    @contextmanager
    def stream(
        self, prompt: str, images: Sequence[Picture] = (), *, model: str | None = None, **sampling: Unpack[Sampling]
    ) -> Iterator[Iterator[CompletionChunk]]:
        """The answer in pieces as it is generated; leaving the ``with`` block early cancels the rest."""
        response = self._send(generate_form(prompt, images, model, sampling, stream=True))
        with closing(response):
            yield _chunks(response)

    def _send(self, form: FormFields) -> httpx.Response:
        """The response, its body not yet read, of the first attempt that succeeds."""
        for attempt in itertools.count():
            try:
                return self._try(form)
            except MultimodalError as error:
                pause = self._retry.pause(attempt, error)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _try(self, form: FormFields) -> httpx.Response:
        with own_errors():
            response = self._http.send(self._http.build_request("POST", GENERATE, files=form), stream=True)
            if response.is_success:
                return response
            with closing(response):
                response.read()
        raise api_error(response)


class AsyncMultimodalClient:
    """Asks a gateway, for asyncio. May be shared by tasks."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
    ) -> None:
        """``timeout`` bounds each wait for the server, not the whole request; ``api_key`` is sent as bearer token."""
        self._http = httpx.AsyncClient(**_http_options(url, api_key, timeout))
        self._retry = retry or RetryPolicy()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: str, images: Sequence[Picture] = (), *, model: str | None = None, **sampling: Unpack[Sampling]
    ) -> Completion:
        """The whole answer. Raises :class:`MultimodalError`."""
        form = await asyncio.to_thread(generate_form, prompt, images, model, sampling, stream=False)
        response = await self._send(form)
        async with aclosing(response):
            with own_errors():
                await response.aread()
        return read_completion(response)

    @asynccontextmanager
    async def stream(
        self, prompt: str, images: Sequence[Picture] = (), *, model: str | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[AsyncIterator[CompletionChunk]]:
        """The answer in pieces as it is generated; leaving the ``async with`` block early cancels the rest."""
        form = await asyncio.to_thread(generate_form, prompt, images, model, sampling, stream=True)
        response = await self._send(form)
        async with aclosing(response):
            yield _chunks_async(response)

    async def _send(self, form: FormFields) -> httpx.Response:
        """The response, its body not yet read, of the first attempt that succeeds."""
        for attempt in itertools.count():
            try:
                return await self._try(form)
            except MultimodalError as error:
                pause = self._retry.pause(attempt, error)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _try(self, form: FormFields) -> httpx.Response:
        with own_errors():
            response = await self._http.send(self._http.build_request("POST", GENERATE, files=form), stream=True)
            if response.is_success:
                return response
            async with aclosing(response):
                await response.aread()
        raise api_error(response)


def _http_options(url: str, api_key: str | None, timeout: float | httpx.Timeout) -> dict[str, Any]:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        base_url = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MultimodalError(f"{url!r} is not a URL: {error}") from None
    # Whoever opens many requests at once has them sent: how many are answered at once is the server's affair.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return {"base_url": base_url, "headers": headers, "timeout": timeout, "limits": limits}


def _chunks(response: httpx.Response) -> Iterator[CompletionChunk]:
    events = EventDecoder(response)
    with own_errors():
        for data in response.iter_bytes():
            yield from events.feed(data)
    events.end()


async def _chunks_async(response: httpx.Response) -> AsyncIterator[CompletionChunk]:
    events = EventDecoder(response)
    with own_errors():
        async for data in response.aiter_bytes():
            for chunk in events.feed(data):
                yield chunk
    events.end()
