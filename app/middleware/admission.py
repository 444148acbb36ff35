"""Requests that make work are counted before they are read, and refused when there are too many."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError
from app.limits import Limits, Rate, address_of_caller
from app.middleware.authentication import OPEN_PATHS


class Admission:
    """Counts POST requests; what only reads is free."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            try:
                rate = held.enter_context(self._limits.admitted(_caller(scope)))
            except ApiError as refusal:
                await refusal.response()(scope, receive, send)
                return
            await self._app(scope, receive, send if rate is None else _telling(rate, send))


def _caller(scope: Scope) -> str:
    """A key's name, or an address, which cannot be taken for a name."""
    name: str | None = scope["state"].get("key_name")
    if name is not None:
        return name
    client = scope.get("client")
    return f"from {address_of_caller(client[0])}" if client else ""


def _telling(rate: Rate, send: Send) -> Send:
    async def send_with_rate(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(rate.headers())
        await send(message)

    return send_with_rate
