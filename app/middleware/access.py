"""One log line and one count for each request: who asked what, how it went. Never what was said."""

from __future__ import annotations

import logging
import time

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROBES = frozenset({"/v1/health", "/v1/triton_health", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines; logged only when debugging."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNKNOWN_ROUTE = "unknown"
"""Paths that no route has: one label for all, whatever callers make up."""

logger = logging.getLogger("app.access")


class Access:
    """``requests`` counts by method, route and status; ``by_key`` by the name of the key and status."""

    def __init__(self, app: ASGIApp, requests: Counter, by_key: Counter) -> None:
        self._app = app
        self._requests = requests
        self._by_key = by_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499  # stays so when the caller hung up before there was an answer

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._requests.labels(*_labels(scope, status)).inc()
            if key_name := scope["state"].get("key_name"):
                self._by_key.labels(key_name, str(status)).inc()
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            logger.log(level, "request", extra=_fields(scope, status, time.perf_counter() - started))


def _labels(scope: Scope, status: int) -> tuple[str, str, str]:
    method = scope["method"] if scope["method"] in METHODS else "other"
    return method, getattr(scope.get("route"), "path", UNKNOWN_ROUTE), str(status)


def _fields(scope: Scope, status: int, seconds: float) -> dict[str, object]:
    state = scope.get("state", {})
    client = scope.get("client")
    return {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
        "client": client[0] if client else None,
        "key_name": state.get("key_name"),
        "request_id": state.get("request_id"),
        "generation_id": state.get("generation_id"),
        "trace_id": state.get("trace_id"),
    }
