"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.disconnect import unless_disconnected
from app.errors import ApiError, ClientGone

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def event(document: str) -> bytes:
    return f"data: {document}\n\n".encode()


def error_event(error: ApiError) -> bytes:
    return event(json.dumps(error.envelope()))


class EventStream(Response):
    """Sends events as they come, and a comment when none came for a while, so that proxies keep the line open.

    The events are closed when the caller goes away.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], *, ping_seconds: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._write(send))
        except ClientGone:
            pass
        finally:
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = _Body(send)
        pinging = asyncio.create_task(body.keep_alive(self._ping_seconds))
        try:
            async for data in self._events:
                await body.write(data)
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """The response body: events and pings, one at a time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._written_at = self._clock()

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._written_at = self._clock()

    async def keep_alive(self, seconds: float) -> None:
        while True:
            quiet = self._clock() - self._written_at
            if quiet >= seconds:
                await self.write(PING)
            else:
                await asyncio.sleep(seconds - quiet)
