"""Server-sent events."""

import asyncio
import json

import pytest

from tests.app.conftest import GENERATE, Gateway, gateway_with
from tests.app.test_generate import chunks

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_chunks_then_usage_then_done(gateway: Gateway) -> None:
    answer = await gateway.generate("slowly a red circle", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    *deltas, last = chunks(answer.text)
    assert [delta["choices"] for delta in deltas] == [
        [{"index": 0, "text": "a", "finish_reason": None}],
        [{"index": 0, "text": " red", "finish_reason": None}],
        [{"index": 0, "text": " circle", "finish_reason": "stop"}],
    ]
    assert not any("usage" in delta for delta in deltas)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "image_tokens": 0,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 13,
    }
    heads = {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in [*deltas, last]}
    assert len(heads) == 1


async def test_token_ids_when_asked_for(gateway: Gateway) -> None:
    answer = await gateway.generate("slowly a red circle", stream=True, return_token_ids=True)
    first, *_, last = chunks(answer.text)
    assert first["prompt_token_ids"] == [1, 2, 3]
    assert first["choices"][0]["token_ids"] == [100]
    assert "prompt_token_ids" not in last


@pytest.mark.parametrize("form", [True, False])
async def test_stream_may_stand_beside_params(gateway: Gateway, form: bool) -> None:
    if form:
        answer = await gateway.client.post(GENERATE, files={"prompt": (None, "hello"), "stream": (None, "true")})
    else:
        answer = await gateway.client.post(GENERATE, json={"prompt": "hello", "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_failure_in_mid_stream_is_an_event_and_the_end(gateway: Gateway) -> None:
    answer = await gateway.generate("fail_late deadline_exceeded", stream=True)
    assert answer.status_code == 200
    first, last = chunks(answer.text)
    assert first["choices"][0]["text"] == "so far"
    assert last["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in answer.text


async def test_quiet_stream_is_kept_open() -> None:
    async with gateway_with(ping_seconds=0.05, deadline_seconds=30) as gateway:
        body = {"prompt": "start_and_hang", "stream": True}
        async with gateway.client.stream("POST", GENERATE, json=body) as answer:
            lines = answer.aiter_lines()
            seen = [await anext(lines) for _ in range(6)]
        assert seen[2:] == [": ping", "", ": ping", ""]


async def test_slow_reader_gets_everything_and_disturbs_nobody(gateway: Gateway) -> None:
    count = 40_000
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=2**20)
    body = json.dumps({"prompt": f"flood {count}", "stream": True}).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    await asyncio.sleep(0.5)
    assert (await gateway.generate("meanwhile")).status_code == 200
    raw = (await reader.read(-1)).decode()
    writer.close()
    events = [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: {")]
    assert len(events) < count, "what waited was merged"
    text = "".join(c["choices"][0]["text"] for c in map(json.loads, events) if c["choices"])
    assert [int(line.split()[0]) for line in text.splitlines()] == list(range(count))
