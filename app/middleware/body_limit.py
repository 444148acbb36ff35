"""Bounds bodies while they stream in: by size, by time, and by what all of them hold together."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.body_budget import BodyBudget, BodyShare
from app.errors import ApiError

BODY_SHARE = "body_share"
"""In ``scope["state"]``: the request's :class:`BodyShare`."""


class BodyLimit:
    """Sizes are refused by what they are announced to be, then by what they are."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float, budget: BodyBudget) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _announced(scope) > self._max_bytes:
            await self._too_large().response()(scope, receive, send)
        else:
            share = scope["state"][BODY_SHARE] = BodyShare(self._budget)
            try:
                await self._app(scope, self._counted(receive, share), send)
            finally:
                share.end()

    def _counted(self, receive: Receive, share: BodyShare) -> Receive:
        received = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # what is still to come is the hang-up, whenever it comes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                raise self._too_slow() from None
            size = len(message.get("body", b""))
            complete = not message.get("more_body", False)
            received += size
            if received > self._max_bytes:
                raise self._too_large()
            share.take(size)
            return message

        return counted

    def _too_large(self) -> ApiError:
        message = f"The request body is too large: at most {self._max_bytes:,} bytes are taken."
        return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", message)

    def _too_slow(self) -> ApiError:
        message = f"The request body was not complete within {self._seconds:g} seconds."
        return ApiError(HTTPStatus.REQUEST_TIMEOUT, "body_timeout", message, headers={"Connection": "close"})


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)  # the HTTP server has checked that it is a number
    return 0
