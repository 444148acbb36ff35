"""Several workers behind one gateway: which one a request goes to, and what happens when one goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from app.settings import Settings
from protocol.messages import ErrorCode, RequestError
from tests.app.conftest import GENERATE, picture, serving, until
from tests.app.scripted_worker import ScriptedWorker
from tests.app.test_metrics import samples

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass
class Fleet:
    """A gateway and its workers."""

    workers: list[ScriptedWorker]
    client: httpx.AsyncClient

    def ask(self, prompt: str, **body: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post(GENERATE, json={"prompt": prompt, **body}))

    def ask_about(self, png: bytes, prompt: str = "seen") -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post(GENERATE, files={"image": png}, data={"prompt": prompt}))

    @property
    def submitted(self) -> list[int]:
        """Requests that each worker was sent."""
        return [len(worker.submits) for worker in self.workers]

    async def all_ready(self) -> None:
        async def count() -> int:
            found = await samples(self.client)
            return sum(int(value) for name, value in found.items() if name.startswith("worker_ready"))

        while await count() < len(self.workers):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(*workers: ScriptedWorker, **settings: Any) -> AsyncIterator[Fleet]:
    workers = workers or (ScriptedWorker(), ScriptedWorker())
    async with AsyncExitStack() as stack:
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.stop)
        urls = ",".join(worker.url for worker in workers)
        settings = {"shutdown_seconds": 1, **settings}
        client, _ = await stack.enter_async_context(
            serving(Settings(_env_file=None, triton_grpc_url=urls, **settings))  # type: ignore[call-arg]
        )
        gateway = Fleet(list(workers), client)
        await asyncio.wait_for(gateway.all_ready(), 8)
        yield gateway


def named(model: str, context_length: int = 4096) -> ScriptedWorker:
    worker = ScriptedWorker()
    worker.status = replace(worker.status, model=model, context_length=context_length)
    return worker


async def test_a_request_goes_to_the_worker_with_the_fewest_outstanding_tokens() -> None:
    async with fleet() as gateway:
        long = gateway.ask("hang", params={"max_tokens": 2000})
        await until(lambda: sum(gateway.submitted) == 1)
        busy = gateway.submitted.index(1)
        short = [gateway.ask("hang", params={"max_tokens": 20}) for _ in range(20)]
        await until(lambda: sum(gateway.submitted) == 21)
        assert gateway.submitted[busy] == 1
        long.cancel()
        await until(lambda: gateway.workers[busy].cancelled)
        assert (await gateway.ask("now this one has nothing to do")).status_code == 200
        assert gateway.submitted[busy] == 2
        for task in short:
            task.cancel()


async def test_tokens_that_came_are_not_outstanding() -> None:
    async with fleet() as gateway:
        asked = gateway.ask("slowly " + "word " * 60, params={"max_tokens": 60})
        await until(lambda: sum(gateway.submitted) == 1)
        busy = gateway.submitted.index(1)
        other = gateway.ask("hang", params={"max_tokens": 40})
        await until(lambda: gateway.submitted[1 - busy] == 1)
        await until(lambda: gateway.workers[busy].delivered > 50)
        third = await gateway.ask("short", params={"max_tokens": 1})
        assert third.status_code == 200
        assert gateway.submitted[busy] == 2
        assert (await asked).status_code == 200
        other.cancel()


async def test_a_picture_goes_to_the_worker_that_has_seen_it() -> None:
    colours = [picture(color=(i, 255 - i, 0)) for i in range(0, 250, 25)]
    async with fleet() as gateway:
        for _ in range(3):
            for png in colours:
                assert (await gateway.ask_about(png)).status_code == 200
        homes = [{s.pictures[0] for s in worker.submits} for worker in gateway.workers]
        assert not homes[0] & homes[1]
        assert homes[0], "ten pictures on one worker: one in a thousand"
        assert homes[1]
        assert sum(gateway.submitted) == 3 * len(colours)


async def test_a_picture_leaves_its_worker_when_that_one_has_much_more_to_do(png: bytes) -> None:
    async with fleet() as gateway:
        await gateway.ask_about(png)
        home = gateway.submitted.index(1)
        waiting = [gateway.ask_about(png, "hang") for _ in range(12)]  # of some 1,250 tokens each
        await until(lambda: sum(gateway.submitted) == 13)
        assert gateway.submitted[home] > gateway.submitted[1 - home] > 0
        for task in waiting:
            task.cancel()


async def test_a_dead_worker_is_left_out_and_taken_back() -> None:
    async with fleet() as gateway:
        dead, alive = gateway.workers
        await dead.stop()
        answers = await asyncio.gather(*(gateway.ask(f"request {i}") for i in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        assert len(alive.submits) == 8
        assert (await gateway.client.get("/health/ready")).status_code == 200
        await dead.start()
        await asyncio.wait_for(gateway.all_ready(), 8)
        waiting = [gateway.ask("hang") for _ in range(2)]
        await until(lambda: gateway.submitted[0] == 1)
        for task in waiting:
            task.cancel()


async def test_requests_that_had_produced_nothing_go_to_another_worker() -> None:
    async with fleet() as gateway:
        first, second = gateway.workers
        second.status = replace(second.status, ready=False)
        await asyncio.sleep(0.5)
        before = gateway.ask("hang")
        after = gateway.ask("start_and_hang", params={"stream": True})
        await until(lambda: first.running == 2 and first.delivered == 1)
        second.status = replace(second.status, ready=True)
        await asyncio.wait_for(gateway.all_ready(), 8)
        await first.stop()
        await until(lambda: second.running == 1)
        assert [s.request_id for s in second.submits] == [first.submits[0].request_id]
        assert second.submits[0].deadline_seconds < first.submits[0].deadline_seconds  # type: ignore[operator]
        assert '"code": "unavailable"' in (await after).text
        await second.stop()  # and only once
        assert (await before).status_code == 503
        found = await samples(gateway.client)
        assert found['request_retries_total{code="unavailable"}'] == 1
        assert found['request_failure_total{code="unavailable"}'] == 2


async def test_a_silent_worker_gets_no_new_requests_before_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.connection.QUIET_SECONDS", 0.5)
    monkeypatch.setattr("app.worker.session.SILENCE_SECONDS", 60)
    async with fleet() as gateway:
        silent = gateway.workers[0]
        silent.silent = True
        await asyncio.sleep(0.8)
        for i in range(6):
            assert (await gateway.ask(f"request {i}")).status_code == 200
        assert gateway.submitted == [0, 6]
        silent.silent = False
        await asyncio.sleep(0.4)
        waiting = [gateway.ask("hang") for _ in range(2)]
        await until(lambda: gateway.submitted == [1, 7])
        for task in waiting:
            task.cancel()
        assert len(set(silent.session_ids)) == 1


async def test_a_full_worker_s_request_is_tried_on_one_other() -> None:
    async with fleet(ScriptedWorker(), ScriptedWorker(), ScriptedWorker()) as gateway:
        full = RequestError(ErrorCode.QUEUE_FULL, "full")
        gateway.workers[0].refuses = gateway.workers[1].refuses = full
        answers = await asyncio.gather(*(gateway.ask(f"request {i}") for i in range(12)))
        assert {answer.status_code for answer in answers} <= {200, 429}
        assert all(answer.text.count("request") for answer in answers if answer.status_code == 200)
        gateway.workers[2].refuses = full
        before = sum(gateway.submitted)
        answer = await gateway.ask("nowhere")
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert sum(gateway.submitted) == before + 2


async def test_other_failures_are_not_tried_again() -> None:
    async with fleet() as gateway:
        for code, status in (("invalid_picture", 422), ("internal", 500), ("deadline_exceeded", 504)):
            assert (await gateway.ask(f"fail {code}")).status_code == status
        assert sum(gateway.submitted) == 3


async def test_shutdown_is_no_reason_to_try_again() -> None:
    async with fleet(shutdown_seconds=0) as gateway:
        waiting = gateway.ask("hang")
        await until(lambda: sum(gateway.submitted) == 1)
    assert sum(gateway.submitted) == 1
    assert len(gateway.workers[0].cancelled) + len(gateway.workers[1].cancelled) == 1
    await asyncio.gather(waiting, return_exceptions=True)


async def test_workers_of_different_models() -> None:
    async with fleet(named("small", 1000), named("large"), named("small", 500)) as gateway:
        listed = (await gateway.client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["context_length"]) for model in listed] == [("small", 500), ("large", 4096)]
        assert (await gateway.client.get("/v1/models/large")).json()["id"] == "large"
        assert (await gateway.ask("x", model="large")).json()["model"] == "large"
        assert gateway.submitted == [0, 1, 0]
        assert (await gateway.ask("x")).json()["model"] == "small"
        assert gateway.submitted[1] == 1
        assert (await gateway.ask("x", model="other")).status_code == 404
        await gateway.workers[1].stop()
        await until(lambda: not gateway.workers[1].running)
        while len((await gateway.client.get("/v1/models")).json()["data"]) > 1:
            await asyncio.sleep(0.02)
        assert (await gateway.ask("x", model="large")).status_code == 503  # known, and away
        # The model of the first address is the default, also while that worker is away.
        await gateway.workers[0].stop()
        assert (await gateway.ask("x")).json()["model"] == "small"


async def test_state_is_told_for_each_worker() -> None:
    first, second = ScriptedWorker(), ScriptedWorker()
    first.status = replace(first.status, running=3)
    second.status = replace(second.status, running=4)
    async with fleet(first, second) as gateway:
        await second.stop()
        while (found := await samples(gateway.client))[f'worker_ready{{worker="{second.url}"}}']:
            await asyncio.sleep(0.02)
        assert found[f'worker_ready{{worker="{first.url}"}}'] == 1
        assert [name for name in found if name.startswith("num_requests_running")] == [
            f'num_requests_running{{worker="{first.url}"}}'
        ]
