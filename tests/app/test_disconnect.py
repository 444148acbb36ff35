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


@pytest.mark.parametrize("framing", ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n9\r\n"])
async def test_in_mid_body_is_no_failure_of_ours(
    gateway: Gateway, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}{framing}{{"prompt"'.encode())
    await asyncio.sleep(0.2)
    writer.close()
    await until(lambda: any(getattr(record, "request_id", None) == "gone" for record in caplog.records))
    records = [record for record in caplog.records if getattr(record, "request_id", None) == "gone"]
    assert [(record.name, vars(record)["status"]) for record in records] == [("app.access", 499)]
