"""Traces, where a collector is named: when a request did what, and never what it said.

A request is a span; ``intake``, until the worker is asked, and ``generate`` are its children. The worker's own spans
hang below ``generate`` (:attr:`protocol.messages.Submit.trace_parent`). Without ``--otlp_endpoint`` none of this runs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.middleware.access import METHODS, PROBES
from protocol.messages import Delta, EndDelta, Outcome, Submit
from protocol.tracing import SpanExport

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

SERVICE = "multimodal-gateway"


@dataclass
class _Request:
    """A request on its way, as a parent of spans."""

    context: Context
    began: int
    taken_in: bool = False


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


class Tracing(SpanExport):
    """Makes spans and sends them."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, service=SERVICE, scope="app")

    def request_span(self, scope: Scope) -> Span:
        """The span of a request, below the caller's own if it sent one in ``traceparent``."""
        from opentelemetry.trace import SpanKind

        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes = {"http.request.method": method, "multimodal.request_id": scope["state"]["request_id"]}
        caller = self.propagator.extract(Headers(scope=scope))
        return self.tracer.start_span(method, context=caller, kind=SpanKind.SERVER, attributes=attributes)

    async def generation(
        self, submit: Submit, generate: Callable[[Submit], AsyncGenerator[Delta, None]]
    ) -> AsyncGenerator[Delta, None]:
        """What ``generate`` yields, in a span of its own."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        request = _request.get()
        if request is not None and not request.taken_in:
            request.taken_in = True
            self.tracer.start_span("intake", context=request.context, start_time=request.began).end()
        span = self.tracer.start_span(
            "generate",
            context=None if request is None else request.context,
            kind=SpanKind.CLIENT,
            attributes={"gen_ai.request.model": submit.model, "multimodal.pictures": len(submit.pictures)},
        )
        headers: dict[str, str] = {}
        self.propagator.inject(headers, set_span_in_context(span))
        try:
            async with aclosing(generate(replace(submit, trace_parent=headers["traceparent"]))) as deltas:
                begun = False
                async for delta in deltas:
                    if isinstance(delta, EndDelta):
                        _note_end(span, delta)
                    elif not begun:
                        begun = True
                        del submit  # nobody needs its pictures any more
                        span.add_event("first token")
                    yield delta
        finally:
            span.end()


def _note_end(span: Span, end: EndDelta) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("multimodal.outcome", end.outcome.value)
    if end.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", end.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", end.usage.completion_tokens)
    if end.error is not None:
        span.set_attribute("error.type", end.error.code.value)
    if end.outcome is Outcome.FAILED:
        span.set_status(StatusCode.ERROR)


class Traced:
    """Middleware: each request is a span, those of probes excepted."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import StatusCode, format_trace_id, set_span_in_context

        span = self._tracing.request_span(scope)
        scope["state"]["trace_id"] = format_trace_id(span.get_span_context().trace_id)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        token = _request.set(_Request(set_span_in_context(span), time.time_ns()))
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _request.reset(token)
            if route := getattr(scope.get("route"), "path", None):
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.end()
