"""What is refused for the sake of the connection that it came on, which is closed then."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ApiError
from app.middleware.authentication import OPEN_PATHS

CROWDED = "crowded"
"""In ``scope["state"]`` of requests that came on a connection beyond the limit."""

LENGTHS = {b"content-length", b"transfer-encoding"}
CLOSE = {"Connection": "close"}


class ConnectionRules:
    """Refuses what came on one connection too many, probes excepted, and requests that a proxy may read otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope) if scope["type"] == "http" else None
        await (self._app if refusal is None else refusal.response())(scope, receive, send)


def _refusal(scope: Scope) -> ApiError | None:
    if {name for name, _ in scope["headers"]} >= LENGTHS:
        # Two lengths: RFC 9112, section 6.3. What else may be wrong with framing, the HTTP server refuses itself.
        message = "Content-Length and Transfer-Encoding exclude each other."
        return ApiError(HTTPStatus.BAD_REQUEST, "invalid_request", message, headers=CLOSE)
    if scope["state"].get(CROWDED) and scope["path"] not in OPEN_PATHS:
        message = "The server has all the connections that it takes. Try again shortly."
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", message, headers=CLOSE)
    return None
