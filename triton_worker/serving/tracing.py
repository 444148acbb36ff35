"""The worker's part of a gateway's traces, where a collector is named: where each request's time went.

Below the gateway's span there is one for the worker, and below that one for each of its parts that are known
(:class:`protocol.messages.Timings`). Nothing that a request says is in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from protocol.messages import Delta, EndDelta, Outcome, Submit
from protocol.tracing import SpanExport

SERVICE = "multimodal-worker"
PARTS = ("prepare", "queue", "prefill", "decode")
"""In this order, each where the one before it ends; fields of ``Timings``."""


class Tracing(SpanExport):
    """Makes spans and sends them."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, service=SERVICE, scope="triton_worker")

    def traced(self, submit: Submit, emit: Callable[[Delta], None]) -> Callable[[Delta], None]:
        """The same ``emit``; the spans are made with the terminal delta. Without a gateway's span there are none."""
        if submit.trace_parent is None:
            return emit
        began = time.time_ns()
        headers = {"traceparent": submit.trace_parent}

        def emit_and_trace(delta: Delta) -> None:
            emit(delta)
            if isinstance(delta, EndDelta):
                self._make_spans(headers, began, delta)

        return emit_and_trace

    def _make_spans(self, headers: dict[str, str], began: int, end: EndDelta) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        gateway = self.propagator.extract(headers)
        attributes = {"multimodal.generation_id": end.request_id, "multimodal.outcome": end.outcome.value}
        worker = self.tracer.start_span(
            "worker", context=gateway, kind=SpanKind.SERVER, attributes=attributes, start_time=began
        )
        if end.outcome is Outcome.FAILED:
            worker.set_status(StatusCode.ERROR)
        if end.timings is not None:
            context = set_span_in_context(worker)
            until = began
            for part in PARTS:
                since, until = until, until + round(getattr(end.timings, part) * 1e9)
                if until > since:
                    self.tracer.start_span(part, context=context, start_time=since).end(until)
        worker.end()
