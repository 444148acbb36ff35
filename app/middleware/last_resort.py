"""Turns what nobody foresaw into a plain 500, and puts the traceback into the log, where it belongs."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import internal_error

logger = logging.getLogger(__name__)


class LastResort:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            request_id = scope.get("state", {}).get("request_id")
            logger.exception("request failed", extra={"request_id": request_id})
            if started or scope["type"] != "http":
                raise  # too late for a status; the server cuts the line, which the caller sees
            await internal_error().response()(scope, receive, send)
