"""The soak tells what is wrong: a server that answers by rote, with one fault of each kind."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from benchmarks import soak
from benchmarks.soak import Findings, Soak

CONVERSATIONS = [{"messages": [{"role": "user", "content": word}]} for word in ("one", "two", "three")]


class Server:
    """Says the last message back, letter by letter, three times well and then with its fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.asked = 0
        self.log = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked += 1
        fault = self.fault if self.asked > len(CONVERSATIONS) else ""
        word = "two" if fault == "foreign" else body["messages"][-1]["content"]
        letters = {"lost": word[:-1], "doubled": word[0] + word}.get(fault, word)
        if fault == "log":
            self.log += "2026-01-01 ERROR triton_worker: something failed\n"
        response = web.StreamResponse(status=500 if fault == "status" else 200)
        await response.prepare(request)
        for letter in letters:
            await say(response, [{"delta": {"content": letter}}])
        await say(response, [], usage={"completion_tokens": len(word)})
        if fault != "cut":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def metrics(self, request: web.Request) -> web.Response:
        lines = [f'multimodal:{gauge}{{worker="w"}} {1.0 if self.fault == gauge else 0.0}' for gauge in soak.GAUGES]
        return web.Response(text="\n".join(lines))


async def say(response: web.StreamResponse, choices: list[Any], **more: Any) -> None:
    await response.write(f"data: {json.dumps({'choices': choices, **more})}\n\n".encode())


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Any]:
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", server.chat), web.get("/metrics", server.metrics)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    class Deployment:
        url = f"http://127.0.0.1:{port}"
        process = SimpleNamespace(pid=os.getpid())

        @property
        def log(self) -> str:
            return server.log

    try:
        yield Deployment()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("lost", "said ('on', None, 3, 0) in the crowd, and alone ('one'"),
        ("doubled", "said ('oone'"),
        ("foreign", "which is the answer to request 1"),
        ("cut", "ended without [DONE]"),
        ("status", "status 500"),
        ("log", "the log has the line: 2026-01-01 ERROR"),
        ("num_requests_running", "the worker still has {'num_requests_running': 1.0"),
        ("kv_cache_usage_perc", "'kv_cache_usage_perc': 1.0"),
    ],
)
async def test_a_fault_is_told(fault: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EMPTY_SECONDS", 0.2)
    findings = await soaked(fault, lambda found: any(told in failure for failure in found.failures), monkeypatch)
    assert any(told in failure for failure in findings.failures), findings.failures[:3]


async def test_without_a_fault_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = await soaked("", lambda found: found.answered > 0, monkeypatch)
    assert findings.failures == []
    assert findings.answered > 0


async def soaked(fault: str, enough: Callable[[Findings], bool], monkeypatch: pytest.MonkeyPatch) -> Findings:
    """Once, and longer where a machine was so busy that nobody was answered in that time."""
    monkeypatch.setattr(soak, "SAMPLE_SECONDS", 0.1)
    for seconds in (0.4, 4.0, 20.0):
        async with serving(Server(fault)) as deployment:
            findings = await Soak(deployment, streams=3, seconds=seconds, conversations=CONVERSATIONS).run()
        if enough(findings):
            break
    return findings


def test_memory_that_grows_is_told() -> None:
    grown = Soak(None, 1, 1.0, [])  # type: ignore[arg-type]
    grown.findings = Findings(
        memory=[{"gateway": 100 * 2**20 + sample * 2**20, "engine": 2**30} for sample in range(60)]
    )
    grown._expect_flat_memory()
    (failure,) = grown.findings.failures
    assert failure == "memory of gateway grew from 130 MiB in the second third to 150 MiB in the last"
