"""The gateway over real sockets, in front of a scripted worker."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from app.cli import build_server
from app.media.fetcher import Network
from app.settings import Settings
from tests.app.scripted_worker import ScriptedWorker

GENERATE = "/v1/multimodal/generate"
ROOT = Path(__file__).parents[2]


@dataclass
class Gateway:
    """A running gateway, its worker and a client for it."""

    worker: ScriptedWorker
    client: httpx.AsyncClient
    port: int

    async def generate(self, prompt: str, **params: Any) -> httpx.Response:
        return await self.client.post(GENERATE, json={"prompt": prompt, "params": params})


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def ready(client: httpx.AsyncClient, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while (await client.get("/health/ready")).status_code != 200:
        assert time.monotonic() < deadline, "the gateway did not become ready"
        await asyncio.sleep(0.02)


def worker_settings(worker: ScriptedWorker, **settings: Any) -> Settings:
    settings.setdefault("shutdown_seconds", 1)
    return Settings(_env_file=None, triton_grpc_url=worker.url, **settings)


@asynccontextmanager
async def serving(settings: Settings, network: Network | None = None) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = build_server(settings, network=network)
    # Without TLS there is no need to read the certificates of authorities, which takes long.
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False, verify=False)
    async with client:
        running = asyncio.create_task(server.serve([listener]))
        try:
            await until(lambda: server.started)
            yield client, port
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def gateway_with(
    worker: ScriptedWorker | None = None, network: Network | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    worker = worker or ScriptedWorker()
    await worker.start()
    try:
        async with serving(worker_settings(worker, **settings), network) as (client, port):
            await ready(client)
            yield Gateway(worker, client, port)
    finally:
        await worker.stop()


@contextmanager
def gateway_in_a_thread(worker: ScriptedWorker, **settings: Any) -> Iterator[str]:
    """The gateway's URL, for tests that block: the gateway has a loop of its own."""
    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with gateway_with(worker, **settings) as gateway:
            started.set_result((gateway.port, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    port, end = started.result(timeout=20)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        end()
        thread.join()


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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway() -> AsyncIterator[Gateway]:
    """Shared by the tests that leave it as they found it."""
    limits: dict[str, Any] = {"max_body_bytes": 200_000, "max_picture_bytes": 50_000, "max_picture_pixels": 1_000_000}
    async with gateway_with(max_pictures=4, max_prompt_characters=10_000, deadline_seconds=60, **limits) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker()
    await worker.start()
    yield worker
    await worker.stop()


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 6), color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def png() -> bytes:
    return picture()
