"""A caller that goes away ends its generation."""

import asyncio
import json

import httpx
import pytest

from tests.app.conftest import GENERATE, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_while_streaming(gateway: Gateway) -> None:
    body = {"prompt": "start_and_hang", "stream": True}
    async with gateway.client.stream("POST", GENERATE, json=body) as answer:
        assert await anext(answer.aiter_lines())
        request_id = gateway.worker.submits[-1].request_id
    await until(lambda: request_id in gateway.worker.cancelled)
    await until(lambda: gateway.worker.running == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hang", "start_and_hang"])
async def test_while_waiting(gateway: Gateway, prompt: str, stream: bool) -> None:
    known = len(gateway.worker.submits)
    body = json.dumps({"prompt": prompt, "stream": stream})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
        headers = {"Content-Type": "application/json"}
        asking = asyncio.create_task(client.post(GENERATE, content=body, headers=headers))
        await until(lambda: len(gateway.worker.submits) > known)
        asking.cancel()
    await until(lambda: gateway.worker.submits[-1].request_id in gateway.worker.cancelled)


async def test_finished_requests_are_not_cancelled(gateway: Gateway) -> None:
    await gateway.generate("hello")
    await gateway.generate("hello", stream=True)
    await asyncio.sleep(0.05)
    assert not {submit.request_id for submit in gateway.worker.submits[-2:]} & set(gateway.worker.cancelled)
