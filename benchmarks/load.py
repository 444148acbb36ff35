"""A load generator: callers that ask over HTTP, each its next request when its last one is answered.

It is light because it shares the machine with what it measures: aiohttp's parser is C, and each event is decoded into
the few fields that matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec

CHAT = "/v1/chat/completions"
LONGEST_ANSWER_SECONDS = 300.0

_KEEP_ALIVE_SECONDS = 2.0
"""Less than the server's: what it closes at the moment of a request would be lost."""

Result = TypeVar("Result")


class Unanswered(Exception):
    """A request that did not get its whole answer; the message says what it got."""


class _Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class Chunk(msgspec.Struct):
    """One event of a streamed chat completion."""

    choices: list[_Choice]
    usage: _Usage | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


@dataclass
class Answer:
    """A streamed answer, and when its parts came."""

    began: float
    arrived: list[float] = field(default_factory=list)
    """When each event with a choice came, by ``time.perf_counter``."""
    text: str = ""
    roles: int = 0
    """Events that named the role: the first one should, and it alone."""
    finish_reason: str | None = None
    completion_tokens: int = 0

    @property
    def first_seconds(self) -> float:
        """Time to first token."""
        return self.arrived[0] - self.began

    @property
    def token_seconds(self) -> float:
        """Mean time between two tokens."""
        return (self.arrived[-1] - self.arrived[0]) / max(1, self.completion_tokens - 1)

    def take(self, chunk: Chunk) -> None:
        """Add one event."""
        if chunk.usage is not None:
            self.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            self.arrived.append(time.perf_counter())
            self.text += choice.delta.content or ""
            self.roles += choice.delta.role is not None
            self.finish_reason = choice.finish_reason or self.finish_reason


def callers(url: str) -> aiohttp.ClientSession:
    """Any number of connections to one server; whatever proxy the environment names is not asked."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=LONGEST_ANSWER_SECONDS),
        trust_env=False,
    )


async def streamed(session: aiohttp.ClientSession, body: dict[str, Any]) -> Answer:
    """Ask for a streamed chat completion and read it to its end. Cancelled, it hangs up.

    Raises:
        Unanswered: there was an error, or the stream ended early.
    """
    answer = Answer(began=time.perf_counter())
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(_chunks(session, body)) as chunks:
        async for chunk in chunks:
            answer.take(chunk)
    return answer


async def whole(session: aiohttp.ClientSession, body: dict[str, Any], path: str = CHAT) -> bytes:
    """Ask for an answer in one piece.

    Raises:
        Unanswered: the status was not 200.
    """
    async with session.post(path, json=body) as response:
        content = await response.read()
        if response.status != 200:
            raise Unanswered(f"status {response.status}: {content.decode(errors='replace')[:500]}")
        return content


async def closed_loop(asks: Iterable[Callable[[], Awaitable[Result]]], in_flight: int) -> tuple[list[Result], float]:
    """Run all of ``asks``, so many at a time; their results, and the seconds that they took together."""
    waiting = iter(asks)
    results: list[Result] = []

    async def caller() -> None:
        for ask in waiting:
            results.append(await ask())

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return results, time.perf_counter() - began


async def _chunks(session: aiohttp.ClientSession, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
    try:
        async with session.post(CHAT, json=body) as response:
            if response.status != 200:
                raise Unanswered(f"status {response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                if line == b"data: [DONE]\n":
                    return
                if line.startswith(b"data: "):
                    yield _decode_chunk(line[len(b"data: ") :])
    except msgspec.ValidationError:
        raise Unanswered(f"an event that is no chunk: {line.decode(errors='replace')}") from None
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    raise Unanswered("the stream ended without [DONE]")
