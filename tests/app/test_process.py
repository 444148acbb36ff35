"""The gateway as a process: it starts, and a signal ends it cleanly, answers in flight included."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.conftest import GENERATE, until
from tests.app.scripted_worker import ScriptedWorker

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(
    worker: ScriptedWorker, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "--host=127.0.0.1", f"--port={port}", f"--triton-grpc-url={worker.url}", *flags),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            await answers(client)
            yield gateway, client
    finally:
        if gateway.returncode is None:
            gateway.kill()
        await gateway.wait()


async def answers(client: httpx.AsyncClient) -> None:
    for _ in range(400):
        try:
            if (await client.get("/health/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.05)
    pytest.fail("the gateway did not become ready")


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker()
    await worker.start()
    yield worker
    await worker.stop()


async def test_sigterm_lets_answers_end(worker: ScriptedWorker) -> None:
    async with process(worker) as (gateway, client):
        words = " ".join("word" for _ in range(20))
        asking = asyncio.create_task(client.post(GENERATE, json={"prompt": f"slowly {words}", "stream": True}))
        await until(lambda: worker.running)
        gateway.send_signal(signal.SIGTERM)
        assert (await asking).text.endswith("data: [DONE]\n\n")
        _, log = await asyncio.wait_for(gateway.communicate(), 10)
        assert gateway.returncode == 0, log
        assert b"raceback" not in log
        assert worker.cancelled == []


async def test_sigint_ends_what_takes_too_long(worker: ScriptedWorker) -> None:
    async with process(worker, "--shutdown_seconds=0") as (gateway, client):
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
