"""The gateway's spans, as a collector gets them."""

from __future__ import annotations

import asyncio
import logging
import sys

import httpx
import pytest

from app import cli
from protocol.messages import ErrorCode, RequestError
from tests.app.conftest import GENERATE, gateway_with, until
from tests.app.test_pool import fleet
from tests.otlp_collector import collecting

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_and_its_parts(png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.access")
    with collecting() as collector:
        async with gateway_with(otlp_endpoint=collector.endpoint) as gateway:
            answer = await gateway.client.post(
                GENERATE,
                files={"image": png},
                data={"prompt": "secret words"},
                headers={"traceparent": CALLER, "X-Request-Id": "find-me"},
            )
            assert answer.status_code == 200
            (submit,) = gateway.worker.submits
            await gateway.client.get("/health/live")
        spans = {span.name: span for span in collector.spans}
        request, intake, generate = spans[f"POST {GENERATE}"], spans["intake"], spans["generate"]
    assert len(collector.spans) == 3
    assert {span.service for span in collector.spans} == {"multimodal-gateway"}
    assert {span.trace_id for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert request.parent_id == "b7ad6b7169203331"
    assert intake.parent_id == generate.parent_id == request.span_id
    assert submit.trace_parent == f"00-{generate.trace_id}-{generate.span_id}-01"
    assert submit.http_request_id == "find-me"
    assert request.start <= intake.start <= intake.end <= generate.end <= request.end
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": GENERATE,
        "http.response.status_code": 200,
        "multimodal.request_id": "find-me",
    }
    assert generate.attributes["gen_ai.usage.output_tokens"] == 2
    assert generate.attributes["multimodal.outcome"] == "finished"
    assert generate.events == ["first token"]
    assert b"secret" not in collector.raw
    assert png not in collector.raw
    (line,) = [record for record in caplog.records if getattr(record, "request_id", None) == "find-me"]
    assert line.trace_id == request.trace_id  # type: ignore[attr-defined]


async def test_failures_and_callers_that_go_away() -> None:
    with collecting() as collector:
        async with gateway_with(otlp_endpoint=collector.endpoint) as gateway:
            assert (await gateway.generate("fail internal")).status_code == 500
            assert (await gateway.generate("x", temperature=-1)).status_code == 400
            with pytest.raises(httpx.ReadTimeout):
                await gateway.client.post(GENERATE, json={"prompt": "hang"}, timeout=0.3)
            await until(lambda: gateway.worker.cancelled)
        requests = [span for span in collector.spans if span.name.startswith("POST")]
        failed, cancelled = [span for span in collector.spans if span.name == "generate"]
    assert failed.failed
    assert failed.attributes["error.type"] == "internal"
    assert "multimodal.outcome" not in cancelled.attributes
    assert [(span.attributes.get("http.response.status_code"), span.failed) for span in requests] == [
        (500, True),
        (400, False),
        (499, False),
    ]


async def test_a_second_try_is_of_the_same_trace_and_what_the_caller_does_not_sample_is_not_sent() -> None:
    with collecting() as collector:
        async with fleet(otlp_endpoint=collector.endpoint) as gateway:
            for worker in gateway.workers:
                worker.refuses = RequestError(ErrorCode.QUEUE_FULL, "full")
            await asyncio.wait_for(gateway.ask("x"), 5)
            first, second = (worker.submits[0] for worker in gateway.workers)
            assert first.trace_parent == second.trace_parent
            unsampled = {"traceparent": CALLER[:-2] + "00"}
            await gateway.client.post(GENERATE, json={"prompt": "x"}, headers=unsampled)
            assert gateway.workers[0].submits[1].trace_parent.endswith("-00")  # type: ignore[union-attr]
    assert sorted(span.name for span in collector.spans) == [f"POST {GENERATE}", "generate", "intake"]


async def test_a_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.tracing.CLOSE_SECONDS", 0.2)
    async with gateway_with(otlp_endpoint="http://127.0.0.1:9") as gateway:
        assert (await gateway.generate("x")).status_code == 200


async def test_off_nothing_is_said_to_the_worker() -> None:
    async with gateway_with() as gateway:
        headers = {"traceparent": CALLER}
        assert (await gateway.client.post(GENERATE, json={"prompt": "x"}, headers=headers)).status_code == 200
        assert gateway.worker.submits[0].trace_parent is None


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SystemExit, match=r"nemo-multimodal-serving\[tracing\]"):
        cli.main(["--otlp_endpoint=http://127.0.0.1:4317"])


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://x:1", "http://x:4317/v1/traces"])
def test_endpoint(endpoint: str) -> None:
    with pytest.raises(SystemExit, match="otlp_endpoint must have the form http://host:port"):
        cli.main([f"--otlp_endpoint={endpoint}"])
