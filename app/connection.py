"""HTTP connections that hold a place without using it are cut. uvicorn bounds idle ones only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.errors import bad_request
from app.middleware.connection_rules import CROWDED

LEAST_READ_BYTES = 16 * 1024
"""A caller that takes less of what waits for it within ``write_seconds`` does not read."""
LEAST_CRUMBS_BYTES = 4096
"""Fewer bytes that came together are not looked at: whoever writes a body by hand may send it in crumbs."""
LEAST_LINE_BYTES = 8
"""Of a chunked body, whose chunks begin and end with a line break. Chunks of a byte, which no client sends, take a
second to parse for each 256 KiB that come at once, and nothing else runs meanwhile."""
HARD_LIMIT = 2
"""Times ``max_connections``: so many are closed without a word."""


@dataclass(frozen=True)
class Patience:
    """What a connection may cost."""

    max_connections: int
    head_seconds: float
    """From the connection, or the first byte of a further request, to the end of the request's head."""
    write_seconds: float
    """For a caller to take something of what has been written."""
    on_cut: Callable[[str], None]
    """Told why a connection is cut: ``head``, ``write``, ``crumbs`` or ``crowded``."""


class Config(uvicorn.Config):
    """uvicorn's, with the patience of its connections."""

    def __init__(self, app: Any, patience: Patience, **options: Any) -> None:
        super().__init__(app, http=Connection, **options)
        self.patience = patience


class Connection(H11Protocol):
    """One connection; many requests, one after the other.

    Not with httptools, which is faster: it loses the bodies of requests that offer an upgrade to HTTP/2, as those of
    Java's HttpClient all do (uvicorn's issue 2722).
    """

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, dict(app_state), _loop)
        self._patience = config.patience
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > HARD_LIMIT * self._patience.max_connections:
            self._cut("crowded")
            return
        self.app_state[CROWDED] = len(self.connections) > self._patience.max_connections
        self.app_state["client_certificate"] = bool(transport.get_extra_info("peercert"))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # What is waited for from the caller: a request's head, or the rest of a body that was answered already.

    def data_received(self, data: bytes) -> None:
        if self._is_crumbs(data):
            self._cut("crumbs")
            return
        super().data_received(data)
        if not self._nothing_in_hand:
            self._stop_expecting_head()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def _is_crumbs(self, data: bytes) -> bool:
        if len(data) < LEAST_CRUMBS_BYTES or data.count(b"\r\n") * LEAST_LINE_BYTES < len(data):
            return False
        return (b"transfer-encoding", b"chunked") in (self.headers or ()) or b"chunked" in data.lower()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > 0:
            self._expect_reading()

    @property
    def _nothing_in_hand(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._patience.head_seconds, self._cut, "head")

    def _stop_expecting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # What is waited for from the caller: that it takes what was written.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_expecting_reading()

    def _expect_reading(self) -> None:
        self._stop_expecting_reading()
        unread = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self._patience.write_seconds, self._check_reading, unread)

    def _stop_expecting_reading(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_reading(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left == 0:
            return
        if unread - left < LEAST_READ_BYTES:
            self._cut("write")
        else:
            self._expect_reading()

    def _cut(self, reason: str) -> None:
        """Without waiting for what is still to be written. A request in hand learns that its caller is gone."""
        self._patience.on_cut(reason)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP in our envelope; too late for an answer, the connection is just closed."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(bad_request("This is not valid HTTP.").envelope()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
