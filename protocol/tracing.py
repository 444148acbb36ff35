"""How both sides of Triton send their spans, and read the context that :attr:`Submit.trace_parent` carries.

Nothing of OpenTelemetry is imported before it is asked for: its packages are an extra.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading

CLOSE_SECONDS = 3.0
"""For the last spans to leave."""
NEEDED = "--otlp_endpoint needs OpenTelemetry's packages: install nemo-multimodal-serving[tracing]."


def installed() -> bool:
    """Whether the packages are there; :data:`NEEDED` says which."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


class SpanExport:
    """Sends spans over OTLP/gRPC in the background; OpenTelemetry's own ``OTEL_*`` variables apply."""

    def __init__(self, endpoint: str, *, service: str, scope: str) -> None:
        """``service``: the process as traces name it. ``scope``: the package that makes the spans."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service = os.environ.get("OTEL_SERVICE_NAME", service)
        resource = Resource.create({"service.name": service, "host.name": socket.gethostname()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self.tracer = self._provider.get_tracer(scope)
        self.propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left; a collector that is away does not hold us up."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
