"""How much a caller, and all of them, may ask for; and how much of their bodies is held."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import ApiError
from app.limits import MOST_CALLERS, Limits, address_of_caller
from tests.app.conftest import GENERATE, Gateway, gateway_with, picture, until
from tests.app.test_api_keys import BLUE, NAMELESS, bearer, written
from tests.app.test_generate import chunks

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def hanging(gateway: Gateway, count: int = 1, **request: Any) -> AsyncIterator[None]:
    """So many requests in flight."""
    begun = len(gateway.worker.submits)
    request.setdefault("json", {"prompt": "hang"})
    asking = [asyncio.create_task(gateway.client.post(GENERATE, **request)) for _ in range(count)]
    await until(lambda: len(gateway.worker.submits) == begun + count)
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def refused(answer: httpx.Response, code: str) -> int:
    """After how many seconds to try again."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
    assert answer.json()["error"]["type"] == "rate_limit_error"
    return int(answer.headers["retry-after"])


async def test_requests_in_all() -> None:
    async with gateway_with(max_concurrent_requests=2) as gateway:
        async with hanging(gateway, 2):
            assert refused(await gateway.generate("hello"), "server_busy") >= 1
            assert (await gateway.client.get("/v1/models")).status_code == 200
        await until(lambda: gateway.worker.running == 0)
        assert (await gateway.generate("hello")).status_code == 200


async def test_requests_of_one_key(tmp_path: Path) -> None:
    file = written(tmp_path / "keys", f"a {BLUE}\nb {NAMELESS}\n")
    keyed = gateway_with(api_key_file=file, max_concurrent_per_key=1)
    async with keyed as gateway, hanging(gateway, headers=bearer(BLUE)):
        body = {"prompt": "hello"}
        answer = await gateway.client.post(GENERATE, json=body, headers=bearer(BLUE))
        assert refused(answer, "too_many_concurrent_requests") >= 1
        answer = await gateway.client.post(GENERATE, json=body, headers=bearer(NAMELESS))
        assert answer.status_code == 200


async def test_requests_a_minute() -> None:
    async with gateway_with(requests_per_minute_per_key=2) as gateway:
        for left in ("1", "0"):
            answer = await gateway.generate("hello", stream=True)
            assert chunks(answer.text)
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert 25 <= refused(await gateway.generate("hello"), "rate_limit_exceeded") <= 30
        assert (await gateway.client.get("/v1/models")).status_code == 200


async def test_retry_after_is_kept() -> None:
    now = 0.0
    limits = Limits(concurrent=9, concurrent_per_caller=None, per_minute=6, clock=lambda: now)
    for left in range(5, -1, -1):
        with limits.admitted("a") as rate:
            assert rate
            assert rate.remaining == left
    for wait in (10, 10):  # a refused request uses nothing up
        with pytest.raises(ApiError) as refusal, limits.admitted("a"):
            pass
        assert refusal.value.headers["Retry-After"] == str(wait)
    now += 10
    with limits.admitted("a"):
        pass


async def test_callers_are_forgotten_but_not_what_they_have_in_flight() -> None:
    limits = Limits(concurrent=9, concurrent_per_caller=1, per_minute=1)
    with limits.admitted("busy"):
        for i in range(2 * MOST_CALLERS):
            with limits.admitted(str(i)):
                pass
        assert len(limits._callers) <= MOST_CALLERS + 1
        with pytest.raises(ApiError), limits.admitted("busy"):
            pass


async def test_addresses() -> None:
    assert address_of_caller("192.0.2.1") == "192.0.2.1"
    assert address_of_caller("2001:db8::1") == address_of_caller("2001:db8::ffff:2") != address_of_caller("2001:db9::1")
    assert address_of_caller("::ffff:192.0.2.1") != address_of_caller("::ffff:192.0.2.2")
    assert address_of_caller("fe80::1%eth0") == "fe80::/64"
    assert address_of_caller("proxy") == "proxy"


MANY = 300_000


def large(script: str) -> dict[str, Any]:
    """A request of more than ``MANY`` bytes, by its prompt."""
    return {"prompt": f"{script} " + "x" * MANY}


async def held_bytes(gateway: Gateway) -> int:
    metrics = (await gateway.client.get("/metrics")).text
    return int(float(metrics.split("\nmultimodal:request_body_bytes ")[1].split("\n")[0]))


async def until_no_bytes_are_held(gateway: Gateway) -> None:
    for _ in range(200):
        if await held_bytes(gateway) == 0:
            return
        await asyncio.sleep(0.01)
    pytest.fail("bytes are held for ever")


ROUTES: list[tuple[str, dict[str, Any]]] = [
    (GENERATE, {"json": large("start_and_hang")}),
    (GENERATE, {"json": large("start_and_hang") | {"stream": True}}),
    (GENERATE, {"files": {"prompt": (None, "start_and_hang"), "image": ("x.bmp", picture("BMP", (200, 200)))}}),
    (GENERATE, {"json": {"prompts": [large("start_and_hang")["prompt"]]}}),
    (GENERATE, {"json": {"prompts": [large("start_and_hang")["prompt"]], "stream": True}}),
    ("/v1/completions", {"json": large("start_and_hang")}),
    ("/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": large("hang")["prompt"]}]}}),
]


@pytest.mark.parametrize(("path", "request_"), ROUTES)
async def test_bytes_are_given_back_once_the_worker_has_them(path: str, request_: dict[str, Any]) -> None:
    async with gateway_with(max_bytes_in_flight=MANY + 10_000) as gateway:
        gateway.worker.call_seconds = 0.5  # to take them
        asking = asyncio.create_task(gateway.client.post(path, **request_))
        await until(lambda: gateway.worker.controls)
        assert await held_bytes(gateway) > 1000
        await until(lambda: gateway.worker.running == 1)
        await until_no_bytes_are_held(gateway)
        assert not asking.done()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_bytes_beyond_the_budget_are_refused() -> None:
    async with gateway_with(max_bytes_in_flight=MANY + 10_000) as gateway:
        gateway.worker.call_seconds = 1.0
        first = asyncio.create_task(gateway.client.post(GENERATE, json=large("hello")))
        await until(lambda: gateway.worker.controls)
        assert refused(await gateway.client.post(GENERATE, json=large("hello")), "server_busy") >= 1
        assert (await gateway.generate("small")).status_code == 200
        assert (await first).status_code == 200
        await until_no_bytes_are_held(gateway)
        assert (await gateway.client.post(GENERATE, json=large("hello"))).status_code == 200


async def test_bytes_of_requests_that_end_badly_are_given_back() -> None:
    async with gateway_with(max_body_bytes=2 * MANY) as gateway:
        for prompt in ("fail queue_full", "fail_late internal"):
            await gateway.generate(f"{prompt} " + "x" * MANY)
        await gateway.client.post(GENERATE, json={"prompt": "x" * MANY, "temperature": 9})
        await gateway.client.post(GENERATE, content=b"{" * MANY, headers={"Content-Type": "application/json"})
        await gateway.client.post("/nowhere", content=b"x" * MANY)
        gateway.worker.call_seconds = 0.5
        asking = asyncio.create_task(gateway.client.post(GENERATE, json=large("hang")))
        calls = len(gateway.worker.controls)
        await until(lambda: len(gateway.worker.controls) > calls)
        asking.cancel()  # while its submit is on the way
        await asyncio.gather(asking, return_exceptions=True)
        await until_no_bytes_are_held(gateway)


async def test_one_request_alone_is_let_in() -> None:
    async with gateway_with(max_bytes_in_flight=1024) as gateway:
        assert (await gateway.client.post(GENERATE, json=large("hello"))).status_code == 200
