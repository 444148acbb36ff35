"""The worker's part of a gateway's traces, where a collector is named: where each request's time went.

Below the gateway's span there is one for the worker, and below that one for each of its parts that are known
(:class:`protocol.messages.Timings`). Nothing that a request says is in them.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable

from protocol.messages import Delta, EndDelta, Outcome, Submit

SERVICE = "multimodal-worker"
CLOSE_SECONDS = 3.0
"""For the last spans to leave."""
NEEDED = "--otlp_endpoint needs OpenTelemetry's packages: install nemo-multimodal-serving[tracing]."
PARTS = ("prepare", "queue", "prefill", "decode")
"""In this order, each where the one before it ends; fields of ``Timings``."""


def installed() -> bool:
    """Whether the packages are there; :data:`NEEDED` says which."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


class Tracing:
    """Makes spans and sends them over OTLP/gRPC in the background; OpenTelemetry's own ``OTEL_*`` variables apply."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
        resource = Resource.create({"service.name": service, "host.name": socket.gethostname()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("triton_worker")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left; a collector that is away does not hold us up."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

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

        gateway = self._propagator.extract(headers)
        attributes = {"multimodal.generation_id": end.request_id, "multimodal.outcome": end.outcome.value}
        worker = self._tracer.start_span(
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
                    self._tracer.start_span(part, context=context, start_time=since).end(until)
        worker.end()
