"""The gateway as a process: it starts, and a signal ends it cleanly, answers in flight included."""

import asyncio
import signal

import httpx
import pytest

from tests.app.conftest import GENERATE, process, until
from tests.app.scripted_worker import ScriptedWorker


@pytest.mark.parametrize("flags", [(), ("--workers=2",)], ids=["one process", "two processes"])
async def test_sigterm_lets_answers_end(worker: ScriptedWorker, flags: tuple[str, ...]) -> None:
    async with process(worker, *flags) as (gateway, client):
        words = " ".join("word" for _ in range(20))
        asking = asyncio.create_task(client.post(GENERATE, json={"prompt": f"slowly {words}", "stream": True}))
        await until(lambda: worker.running)
        gateway.send_signal(signal.SIGTERM)
        assert (await asking).text.endswith("data: [DONE]\n\n")
        _, log = await asyncio.wait_for(gateway.communicate(), 10)
        assert gateway.returncode == 0, log
        assert b"raceback" not in log
        assert worker.cancelled == []


@pytest.mark.parametrize("flags", [(), ("--workers=2",)], ids=["one process", "two processes"])
async def test_sigint_ends_what_takes_too_long(worker: ScriptedWorker, flags: tuple[str, ...]) -> None:
    async with process(worker, "--shutdown_seconds=0", *flags) as (gateway, client):
        whole = asyncio.create_task(client.post(GENERATE, json={"prompt": "hang"}))
        stream = asyncio.create_task(client.post(GENERATE, json={"prompt": "start_and_hang", "stream": True}))
        await until(lambda: worker.running == 2)
        await asyncio.sleep(0.1)
        gateway.send_signal(signal.SIGINT)
        _, log = await asyncio.wait_for(gateway.communicate(), 10)
        assert gateway.returncode == 0, log
        assert b"raceback" not in log
        assert set(worker.cancelled) == {submit.request_id for submit in worker.submits}
        assert (await whole).status_code == 503
        assert "shutting down" in (await stream).text


async def test_while_it_drains_it_is_not_ready_but_serves(worker: ScriptedWorker) -> None:
    async with process(worker, "--drain_delay_seconds=1.5") as (gateway, client):
        gateway.send_signal(signal.SIGTERM)
        while (answer := await client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.02)
        assert answer.status_code == 503
        assert "shutting down" in answer.json()["error"]["message"]
        assert (await client.get("/health/live")).status_code == 200
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as newcomer:
            assert (await newcomer.post(GENERATE, json={"prompt": "still served"})).status_code == 200
        await asyncio.wait_for(gateway.communicate(), 10)
        assert gateway.returncode == 0
