"""The worker's spans, as a collector gets them."""

from __future__ import annotations

import itertools
import sys
import threading

import pytest

from protocol.messages import (
    ChatMessage,
    Delta,
    EndDelta,
    ErrorCode,
    Outcome,
    RequestError,
    Submit,
    TextPart,
    Timings,
    TokenDelta,
)
from tests.otlp_collector import collecting
from triton_worker.serving import tracing
from triton_worker.serving.flags import parse_worker_flags
from triton_worker.serving.worker import run_worker

GATEWAY = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def submit(trace_parent: str | None) -> Submit:
    messages = (ChatMessage("user", (TextPart("secret"),)),)
    return Submit(request_id="gen-1", model="m", messages=messages, trace_parent=trace_parent)


def test_spans_are_made_of_the_timings() -> None:
    said: list[Delta] = []
    with collecting() as collector:
        traces = tracing.Tracing(collector.endpoint)
        emit = traces.traced(submit(GATEWAY), said.append)
        emit(TokenDelta(request_id="gen-1", text="secret"))
        emit(EndDelta(request_id="gen-1", outcome=Outcome.FINISHED, timings=Timings(0.25, 0.5, 1.0, 2.0)))
        refused = traces.traced(submit(GATEWAY), said.append)
        error = RequestError(ErrorCode.QUEUE_FULL, "full")
        refused(EndDelta(request_id="gen-1", outcome=Outcome.FAILED, error=error))
        traces.close()
    assert len(said) == 3
    worker, *parts, other = sorted(collector.spans, key=lambda span: (span.failed, span.name != "worker", span.start))
    assert worker.parent_id == "b7ad6b7169203331"
    assert {span.trace_id for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert worker.attributes == {"multimodal.generation_id": "gen-1", "multimodal.outcome": "finished"}
    assert [span.name for span in parts] == ["prepare", "queue", "prefill", "decode"]
    assert {span.parent_id for span in parts} == {worker.span_id}
    assert [(span.end - span.start) / 1e9 for span in parts] == [0.25, 0.5, 1.0, 2.0]
    assert parts[0].start == worker.start
    assert all(earlier.end == later.start for earlier, later in itertools.pairwise(parts))
    assert (other.name, other.failed) == ("worker", True)
    assert b"secret" not in collector.raw


def test_without_a_gateway_s_span_there_is_none() -> None:
    with collecting() as collector:
        traces = tracing.Tracing(collector.endpoint)
        traces.traced(submit(None), lambda delta: None)(EndDelta(request_id="gen-1", outcome=Outcome.FINISHED))
        traces.close()
    assert not collector.spans


def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = parse_worker_flags(
        ["--nemo_checkpoint=x", "--triton_model_name=m", "--otlp_endpoint", "http://127.0.0.1:4317"]
    )
    assert run_worker(settings, threading.Event()) == 1
    assert "nemo-multimodal-serving[tracing]" in capsys.readouterr().err


def test_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_worker_flags(["-nc=x", "-tmn=m", "--otlp_endpoint=localhost:4317"])
    assert "http://host:port" in capsys.readouterr().err
