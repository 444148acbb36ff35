"""A collector of traces on a port of the loopback interface, as far as tests need one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class CollectedSpan:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    start: int
    end: int


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What it was sent, as it came."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.raw = b""
        self.endpoint = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.raw += request.SerializeToString()
        for resource in request.resource_spans:
            service = _attributes(resource.resource)["service.name"]
            self.spans += [_span(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, name: str, seconds: float = 10.0) -> CollectedSpan:
        deadline = time.monotonic() + seconds
        while True:
            for span in self.spans:
                if span.name == name:
                    return span
            assert time.monotonic() < deadline, f"no span {name!r} among {[span.name for span in self.spans]}"
            time.sleep(0.02)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def _span(service: str, span: Any) -> CollectedSpan:
    return CollectedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span),
        events=[event.name for event in span.events],
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


def _attributes(owner: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in owner.attributes}
