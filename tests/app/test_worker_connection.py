"""A worker that comes late, falls silent, forgets, dies and comes back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from protocol.messages import ErrorCode, RequestError, WorkerStatus
from tests.app.conftest import gateway_with, ready, serving, until, worker_settings
from tests.app.scripted_worker import MODEL, ScriptedWorker

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.session.SILENCE_SECONDS", 0.5)
    monkeypatch.setattr("app.worker.session.RENEW_SECONDS", 0.2)


async def test_worker_away_then_there() -> None:
    worker = ScriptedWorker()
    await worker.start()
    await worker.stop()
    async with serving(worker_settings(worker)) as (client, _):
        assert (await client.get("/v1/health")).status_code == 200
        for answer in (
            await client.get("/health/ready"),
            await client.get("/v1/models"),
            await client.post("/v1/multimodal/generate", json={"prompt": "x"}),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "unavailable"
        await worker.start()
        await ready(client)
        assert (await client.post("/v1/multimodal/generate", json={"prompt": "x"})).status_code == 200
    await worker.stop()


async def test_worker_starting() -> None:
    async with gateway_with() as gateway:
        gateway.worker.status = WorkerStatus(ready=False, model=MODEL, context_length=1)
        await asyncio.sleep(0.4)
        assert (await gateway.client.get("/health/ready")).status_code == 503
        answer = await gateway.generate("x")
        assert answer.status_code == 503
        assert "starting" in answer.json()["error"]["message"]


Step = Callable[[], Awaitable[None]]


async def fails_in_flight_and_recovers(worker: ScriptedWorker, break_it: Step, mend_it: Step) -> None:
    async with gateway_with(worker) as gateway:
        waiting = [asyncio.create_task(gateway.generate(prompt, stream=True)) for prompt in ("hang", "start_and_hang")]
        # Both run, and the one delta that is said has left the worker.
        await until(lambda: worker.running == 2 and worker.delivered == 1)
        await break_it()
        before, after = await asyncio.gather(*waiting)
        assert before.status_code == 503
        assert after.status_code == 200
        assert '"code": "unavailable"' in after.text
        await mend_it()
        await ready(gateway.client)
        assert (await gateway.generate("back again")).json()["choices"][0]["text"] == "back again"
        assert len(set(worker.session_ids)) == len(worker.session_ids) > 1


async def test_a_session_goes_on_in_another_stream() -> None:
    async with gateway_with() as gateway:
        words = [f"word{i}" for i in range(40)]
        asking = asyncio.create_task(gateway.generate("slowly " + " ".join(words)))
        for number in (10, 20, 30):
            await until(partial(has_delivered, gateway.worker, number))
            gateway.worker.move_streams()
        assert (await asking).json()["choices"][0]["text"] == " ".join(words)
        assert len(gateway.worker.session_ids) == 4
        assert len(set(gateway.worker.session_ids)) == 1


def has_delivered(worker: ScriptedWorker, number: int) -> bool:
    return worker.delivered >= number


async def test_a_session_that_cannot_be_resumed_is_followed_by_another() -> None:
    async with gateway_with() as gateway:
        asking = asyncio.create_task(gateway.generate("hang"))
        await until(lambda: gateway.worker.running == 1)
        gateway.worker.move_streams()
        gateway.worker.refusal = RequestError(ErrorCode.UNAVAILABLE, "There is no such session any more.")
        await until(lambda: len(gateway.worker.session_ids) > 1)
        assert (await asking).status_code == 503
        gateway.worker.refusal = None
        await ready(gateway.client)
        assert (await gateway.generate("back again")).json()["choices"][0]["text"] == "back again"


async def test_stream_falls_silent() -> None:
    worker = ScriptedWorker()

    async def hush() -> None:
        worker.silent = True

    async def speak() -> None:
        worker.silent = False

    started = time.monotonic()
    await fails_in_flight_and_recovers(worker, hush, speak)
    assert time.monotonic() - started < 6


async def test_stream_ends() -> None:
    worker = ScriptedWorker()

    async def end() -> None:
        worker.end_streams()

    await fails_in_flight_and_recovers(worker, end, nothing)


async def nothing() -> None:
    pass


async def test_worker_dies_and_comes_back() -> None:
    worker = ScriptedWorker()
    await fails_in_flight_and_recovers(worker, worker.stop, worker.start)


async def test_session_forgotten() -> None:
    worker = ScriptedWorker()

    async def forget() -> None:
        worker.knows_sessions = False

    async def know() -> None:
        worker.knows_sessions = True

    await fails_in_flight_and_recovers(worker, forget, know)


async def test_session_refused(caplog: pytest.LogCaptureFixture) -> None:
    worker = ScriptedWorker()
    worker.refusal = RequestError(ErrorCode.INVALID_REQUEST, "another protocol version")
    await worker.start()
    async with serving(worker_settings(worker)) as (client, _):
        await until(lambda: worker.session_ids)
        await asyncio.sleep(0.1)
        assert (await client.get("/health/ready")).status_code == 503
        assert "another protocol version" in caplog.text
        worker.refusal = None
        await ready(client)
    await worker.stop()


async def test_control_call_that_fails_ends_only_its_own_requests() -> None:
    worker = ScriptedWorker()
    async with gateway_with(worker, worker_call_seconds=0.3) as gateway:
        streaming = asyncio.create_task(gateway.generate("slowly " + "word " * 30, stream=True))
        await until(lambda: worker.running == 1)
        worker.call_seconds = 0.6
        assert (await gateway.generate("lost")).status_code == 503
        worker.call_seconds = 0.0
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        await until(lambda: worker.cancelled)
        assert (await gateway.generate("fine")).status_code == 200
        assert len(worker.session_ids) == 1


async def test_the_reply_to_another_call_says_nothing_of_this_one() -> None:
    worker = ScriptedWorker()
    async with gateway_with(worker) as gateway:
        streaming = asyncio.create_task(gateway.generate("slowly " + "word " * 30, stream=True))
        await until(lambda: worker.running == 1)
        worker.mixes_up_replies, worker.knows_sessions = True, False
        assert (await gateway.generate("lost")).status_code == 503
        worker.mixes_up_replies, worker.knows_sessions = False, True
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        assert len(worker.session_ids) == 1


async def test_lease_is_renewed_while_nothing_is_asked() -> None:
    async with gateway_with() as gateway:
        await until(lambda: sum(not control.messages for control in gateway.worker.controls) >= 3)


async def test_shutdown_cancels_what_is_in_flight() -> None:
    worker = ScriptedWorker()
    await worker.start()
    async with serving(worker_settings(worker, shutdown_seconds=0)) as (client, _):
        await ready(client)
        body = {"prompt": "start_and_hang", "stream": True}
        waiting = asyncio.create_task(client.post("/v1/multimodal/generate", json=body))
        await until(lambda: worker.running == 1)
    assert worker.cancelled == [worker.submits[-1].request_id]
    await asyncio.gather(waiting, return_exceptions=True)
    await worker.stop()
