"""One trace from the caller through the gateway, one of its two processes, to the worker."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.e2e.deployment import deployed, picture
from tests.otlp_collector import collecting

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_one_request_is_one_trace(tmp_path: Path) -> None:
    environment = {"MULTIMODAL_WORKERS": "2", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with collecting() as collector, deployed(tmp_path, "--otlp_endpoint", collector.endpoint, **environment) as tiny:
        assert httpx.get(f"{tiny.url}/v1/triton_health").json()["workers"] == [
            {"server_ready": True, "models_ready": True}
        ]
        answer = httpx.post(
            f"{tiny.url}/v1/multimodal/generate",
            files={"image": picture()},
            data={"prompt": "Hi", "max_tokens": "4", "ignore_eos": "true"},
            headers={"traceparent": CALLER},
            timeout=60,
        )
        assert answer.status_code == 200
        request = collector.wait_for("POST /v1/multimodal/generate")
        generate = collector.wait_for("generate")
        worker = collector.wait_for("worker")
        assert (worker.service, worker.parent_id) == ("multimodal-worker", generate.span_id)
        assert generate.parent_id == request.span_id
        assert request.parent_id == "b7ad6b7169203331"
        assert {span.trace_id for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
        assert worker.attributes["multimodal.generation_id"] == answer.json()["id"]
        assert tiny.stop() == 0
        assert "raceback" not in tiny.log
