from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.messages import EngineCounters, WorkerStatus
from tests.app.conftest import GENERATE, gateway_with, until
from tests.app.scripted_worker import MODEL, ScriptedWorker


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    """Every sample by its name and labels: ``name{a="b"}``."""
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("multimodal:")
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("multimodal:") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


async def test_requests_and_tokens_are_counted(png: bytes) -> None:
    async with gateway_with() as gateway:
        await gateway.generate("slowly one two three")
        await gateway.client.post(GENERATE, files={"image": png}, data={"prompt": "one two"})
        await gateway.generate("fail queue_full")
        await gateway.generate("x", temperature=-1)
        await gateway.client.get("/no/such/route")
        found = await samples(gateway.client)
    assert found['request_success_total{finished_reason="stop"}'] == 2
    assert found['request_failure_total{code="queue_full"}'] == 1
    assert found["prompt_tokens_total"] == 10 + 14
    assert found["image_tokens_total"] == 4
    assert found["generation_tokens_total"] == 5
    assert found["time_to_first_token_seconds_count"] == 2
    assert found["inter_token_latency_seconds_count"] >= 2
    assert 0.06 <= found["e2e_request_latency_seconds_sum"] < 5
    assert found["request_generation_tokens_count"] == 2
    assert found["cached_tokens_total"] == 4
    parts = [found[f"request_{part}_time_seconds_sum"] for part in ("prepare", "queue", "prefill", "decode")]
    assert parts == [1, 0.5, 4, 8]
    assert found["request_queue_time_seconds_count"] == 2
    route = f'method="POST",route="{GENERATE}"'
    assert found[f'http_requests_total{{{route},status="200"}}'] == 2
    assert found[f'http_requests_total{{{route},status="429"}}'] == 1
    assert found[f'http_requests_total{{{route},status="400"}}'] == 1
    assert found['http_requests_total{method="GET",route="unknown",status="404"}'] == 1


async def test_time_between_tokens_is_that_of_each_choice() -> None:
    async with gateway_with() as gateway:
        await gateway.generate("slowly one two three four", n=4, stream=True)
        found = await samples(gateway.client)
    latency = "inter_token_latency_seconds"
    assert found[f"{latency}_count"] == 3 + 3 * 4
    assert found[f"{latency}_sum"] >= 0.09 * 4, "the choices' deltas come together, but not their tokens"
    assert found["time_to_first_token_seconds_count"] == 1


async def test_a_caller_that_goes_away_is_counted_once() -> None:
    async with gateway_with() as gateway:
        with pytest.raises(httpx.ReadTimeout):
            await gateway.client.post(GENERATE, json={"prompt": "hang"}, timeout=0.2)
        await until(lambda: gateway.worker.cancelled)
        await asyncio.sleep(0.05)
        found = await samples(gateway.client)
    assert found["request_cancelled_total"] == 1
    assert not [name for name in found if name.startswith("request_success_total{")]


async def test_the_worker_s_own_state_is_shown() -> None:
    worker = ScriptedWorker()
    worker.status = WorkerStatus(
        ready=True,
        model=MODEL,
        context_length=64,
        running=3,
        waiting=2,
        kv_cache_usage=0.25,
        counters=EngineCounters(7, 10, 2.5, 300, 40, 50, 25, 6, 5),
    )
    async with gateway_with(worker) as gateway:
        found = await samples(gateway.client)
        label = f'{{worker="{worker.url}"}}'
        assert (found[f"num_requests_running{label}"], found[f"num_requests_waiting{label}"]) == (3, 2)
        assert (found[f"kv_cache_usage_perc{label}"], found[f"num_preemptions_total{label}"]) == (0.25, 7)
        assert (found[f"engine_steps_total{label}"], found[f"engine_step_seconds_total{label}"]) == (10, 2.5)
        assert (found[f"engine_prefill_tokens_total{label}"], found[f"engine_decode_tokens_total{label}"]) == (300, 40)
        assert (found[f"prefix_cache_queries_total{label}"], found[f"prefix_cache_hits_total{label}"]) == (50, 25)
        assert (found[f"mm_cache_queries_total{label}"], found[f"mm_cache_hits_total{label}"]) == (6, 5)
        assert found[f"worker_ready{label}"] == 1
        await worker.stop()
        while (await gateway.client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.05)
        found = await samples(gateway.client)
    assert found[f"worker_ready{label}"] == 0
    assert f"num_requests_running{label}" not in found


async def test_made_up_paths_and_methods_make_no_labels() -> None:
    async with gateway_with() as gateway:
        for i in range(5):
            await gateway.client.request(f"MADE{i}", f"/made/up/{i}")
        text = (await gateway.client.get("/metrics")).text
    assert not re.search("MADE|made", text)
