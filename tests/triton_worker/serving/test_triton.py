"""The callables behind Triton's models, called as PyTriton calls them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol import wire
from protocol.messages import DeltaBatch, OpenSession, TokenDelta, WorkerStatus
from tests.app.scripted_worker import ScriptedWorker
from triton_worker.serving import triton
from triton_worker.serving.session import Session
from triton_worker.serving.settings import TritonAddresses
from triton_worker.serving.triton import TritonServer


async def test_a_probe_takes_only_its_own_reply(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    await worker.start()
    addresses = TritonAddresses("127.0.0.1", 1, "127.0.0.1", worker.port, 3)
    front: Any = None
    server = TritonServer(front, asyncio.get_running_loop(), addresses, tmp_path / "workspace")
    assert await asyncio.to_thread(server.probe, 5.0)
    worker.mixes_up_replies = True
    assert not await asyncio.to_thread(server.probe, 5.0)
    await worker.stop()
    assert not await asyncio.to_thread(server.probe, 5.0)


async def test_a_long_stream_gives_way_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_STREAM_BYTES", 4 * triton._RESPONSE_BYTES)
    session = Session(lambda: WorkerStatus(ready=True, model="demo", context_length=64))
    front: Any = SimpleNamespace(open_session=lambda opening: session)
    addresses = TritonAddresses("127.0.0.1", 1, "127.0.0.1", 2, 3)
    server = TritonServer(front, asyncio.get_running_loop(), addresses, tmp_path / "workspace")

    async def stream(resume: bool) -> list[DeltaBatch]:
        request = SimpleNamespace(data={wire.MESSAGE_TENSOR: wire.to_tensor(OpenSession("s", resume=resume))})
        batches = []
        async for (reply,) in server._deltas([request]):
            batches.append(wire.from_tensor(reply[wire.MESSAGE_TENSOR], DeltaBatch))
            session.push(TokenDelta(request_id="r", text=f"{next(texts)} "))
        return batches

    texts = iter(range(100))
    streams = [await asyncio.wait_for(stream(resume), 5) for resume in (False, True, True)]
    assert all([batch.resume for batch in batches] == [False] * (len(batches) - 1) + [True] for batches in streams)
    said = "".join(delta.text for batches in streams for batch in batches for delta in batch.deltas)  # type: ignore[union-attr]
    count = sum(map(len, streams))
    assert count > 9
    assert said.split() == [str(number) for number in range(count - 1)]
