"""Several prompts in one request."""

import asyncio
import base64
from typing import Any

import httpx
import pytest

from protocol.messages import TextPart
from tests.app.conftest import GENERATE, Gateway, gateway_with, picture, until
from tests.app.scripted_worker import MODEL
from tests.app.test_generate import chunks
from tests.app.test_requests import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


def source(data: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode()}


async def ask(gateway: Gateway, *prompts: str, **more: Any) -> httpx.Response:
    return await gateway.client.post(GENERATE, json={"prompts": prompts, **more})


async def test_answers_come_in_the_order_of_the_prompts(gateway: Gateway) -> None:
    answer = (await ask(gateway, "slowly one two three", "four", "slowly five six")).json()
    assert answer.pop("id").startswith("batch-")
    assert answer.pop("created") > 1_600_000_000
    ids = [completion.pop("id") for completion in answer["answers"]]
    assert len(set(ids)) == 3
    assert all(completion.pop("created") for completion in answer["answers"])

    def completion(text: str, tokens: int) -> dict[str, Any]:
        usage = {"prompt_tokens": 10, "image_tokens": 0, "cached_tokens": 2, "completion_tokens": tokens}
        usage["total_tokens"] = 10 + tokens
        choices = [{"index": 0, "text": text, "finish_reason": "stop"}]
        return {"object": "text_completion", "model": MODEL, "choices": choices, "usage": usage}

    assert answer == {
        "object": "text_completion.batch",
        "model": MODEL,
        "answers": [completion("one two three", 3), completion("four", 1), completion("five six", 2)],
        "usage": {
            "prompt_tokens": 30,
            "image_tokens": 0,
            "cached_tokens": 6,
            "completion_tokens": 6,
            "total_tokens": 36,
        },
    }


async def test_each_prompt_has_its_own_pictures_and_the_same_parameters(gateway: Gateway) -> None:
    red, blue = picture(), picture("JPEG", color="blue")
    images = [[], [source(red), source(blue)], [source(blue)]]
    answer = await ask(gateway, "a", "b", "c", images=images, params={"max_tokens": 5, "return_token_ids": True})
    assert [one["usage"]["image_tokens"] for one in answer.json()["answers"]] == [0, 8, 4]
    assert [one["prompt_token_ids"] for one in answer.json()["answers"]] == [[1, 2, 3]] * 3
    submits = {submit.messages[0].content[-1]: submit for submit in gateway.worker.submits[-3:]}
    pictures = [submits[TextPart(prompt)].pictures for prompt in "abc"]
    assert pictures == [(), (red, blue), (blue,)]
    assert {submit.sampling.max_tokens for submit in submits.values()} == {5}


async def test_one_that_fails_fails_alone(gateway: Gateway) -> None:
    images = [[], [], [source(b"no picture")], []]
    answer = await ask(gateway, "good", "fail queue_full", "x", "fail_late internal", images=images)
    assert answer.status_code == 200
    first, full, no_picture, internal = answer.json()["answers"]
    assert first["choices"][0]["text"] == "good"
    assert full == {
        "error": {
            "message": "Scripted: queue_full.",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
    }
    assert (no_picture["error"]["code"], no_picture["error"]["param"]) == ("invalid_picture", "images[2][0]")
    assert internal["error"]["code"] == "internal"
    assert answer.json()["usage"]["total_tokens"] == 11


@pytest.mark.parametrize("stream", [False, True])
async def test_when_all_fail_the_first_says_why(gateway: Gateway, stream: bool) -> None:
    answer = await ask(gateway, "fail queue_full", "fail internal", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert "retry-after" in answer.headers
    images = [[source(b"no picture")], [source(b"nor this")]]
    answer = await ask(gateway, "x", "y", images=images, stream=stream)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "images[0][0]")


async def test_events_say_to_which_prompt_they_belong(gateway: Gateway) -> None:
    answer = await ask(gateway, "slowly a b", "fail queue_full", "slowly c d", "fail_late internal", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    events = chunks(answer.text)
    told: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        told.setdefault(event.pop("prompt_index"), []).append(event)
    texts = {i: [e["choices"][0]["text"] for e in told[i] if e.get("choices")] for i in told}
    assert texts == {0: ["a", " b"], 1: [], 2: ["c", " d"], 3: ["so far"]}
    for i in (0, 2):
        assert told[i][-1]["usage"]["completion_tokens"] == 2
        assert len({event["id"] for event in told[i]}) == 1
    assert told[1][-1]["error"]["code"] == "queue_full"
    assert told[3][-1]["error"]["code"] == "internal"
    firsts = [event["choices"][0]["text"] for event in events if event.get("choices")]
    assert firsts.index("c") < firsts.index(" b"), "they run at once"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hang", "start_and_hang"])
async def test_all_end_when_the_caller_goes_away(gateway: Gateway, prompt: str, stream: bool) -> None:
    known = len(gateway.worker.submits)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
        asking = asyncio.create_task(client.post(GENERATE, json={"prompts": [prompt] * 3, "stream": stream}))
        await until(lambda: len(gateway.worker.submits) == known + 3)
        asking.cancel()
    asked = {submit.request_id for submit in gateway.worker.submits[known:]}
    await until(lambda: asked <= set(gateway.worker.cancelled))


async def test_a_slow_reader_loses_nothing() -> None:
    async with gateway_with() as gateway:
        answer = await ask(gateway, "flood 3000", "flood 2000", stream=True)
        texts = {0: "", 1: ""}
        for event in chunks(answer.text):
            texts[event["prompt_index"]] += "".join(choice["text"] for choice in event["choices"])
        for index, count in ((0, 3000), (1, 2000)):
            assert [int(line.split()[0]) for line in texts[index].splitlines()] == list(range(count))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": "x"}, "prompts"),
        ({"prompts": ["x", 5]}, "prompts[1]"),
        ({"prompts": ["x", ""]}, "prompts[1]"),
        ({"prompts": None}, "prompts"),
        ({"prompts": ["x"] * 33}, "prompts"),
        ({"prompts": ["x" * 6_000] * 2}, "prompts"),
        ({"prompts": ["x"], "prompt": "x"}, "prompts"),
        ({"prompts": ["x"], "images": [{"data": "QUJD"}]}, "images[0]"),
        ({"prompts": ["x", "y"], "images": [[]]}, "images"),
        ({"prompts": ["x", "y"], "images": [[], [{"data": "§"}]]}, "images[1][0].data"),
        ({"prompts": ["x"], "max_tokens": 5}, "max_tokens"),
        ({"prompts": ["x"], "params": {"temperature": 3}}, "temperature"),
    ],
)
async def test_what_is_wrong_with_all_of_it(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    error = await refused(gateway, 400, json=body)
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert param in error["message"]


async def test_forms_have_one_prompt(gateway: Gateway) -> None:
    error = await refused(gateway, 400, files={"prompts": (None, "x")})
    assert error["param"] == "prompts"


async def test_too_many_pictures_of_one_prompt(gateway: Gateway) -> None:
    answer = await ask(gateway, "x", "y", images=[[source(picture())] * 5, [source(picture())] * 4])
    assert [one.get("error", {}).get("param") for one in answer.json()["answers"]] == ["images[0][4]", None]
