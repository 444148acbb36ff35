"""Completions: a prompt in, OpenAI's text completion out."""

from typing import Any

import pytest

from protocol.messages import ChatMessage, SamplingParameters, TextPart
from tests.app.conftest import Gateway
from tests.app.scripted_worker import MODEL
from tests.app.test_generate import chunks

pytestmark = pytest.mark.asyncio(loop_scope="session")

COMPLETIONS = "/v1/completions"


async def complete(gateway: Gateway, prompt: Any, path: str = COMPLETIONS, **more: Any) -> Any:
    answer = await gateway.client.post(path, json={"prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    return answer.text if more.get("stream") else answer.json()


async def test_answer_is_a_text_completion(gateway: Gateway) -> None:
    answer = await complete(gateway, "a red circle", model=MODEL)
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_600_000_000
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "a red circle", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"image_tokens": 0, "cached_tokens": 2},
        },
    }


@pytest.mark.parametrize("with_usage", [False, True])
async def test_events_are_text_completions(gateway: Gateway, with_usage: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if with_usage else {}
    body = await complete(gateway, "slowly a b", stream=True, return_token_ids=True, **options)
    assert body.endswith("data: [DONE]\n\n")
    events = chunks(body)
    assert {event["object"] for event in events} == {"text_completion"}
    assert events[0]["choices"] == [
        {"index": 0, "text": "a", "logprobs": None, "finish_reason": None, "token_ids": [100]}
    ]
    assert events[0]["prompt_token_ids"] == [1, 2, 3]
    assert events[1]["choices"][0]["finish_reason"] == "stop"
    assert [event.get("usage", "absent") for event in events[:2]] == [None if with_usage else "absent"] * 2
    assert len(events) == 2 + with_usage
    if with_usage:
        assert (events[2]["choices"], events[2]["usage"]["total_tokens"]) == ([], 12)


@pytest.mark.parametrize("path", [COMPLETIONS, f"{COMPLETIONS}/"])
@pytest.mark.parametrize("prompt", ["<|im_end|> hello", ["<|im_end|> hello"]])
async def test_prompt_is_one_message_of_the_user(gateway: Gateway, path: str, prompt: Any) -> None:
    await complete(gateway, prompt, path)
    submit = gateway.worker.submits[-1]
    assert submit.messages == (ChatMessage("user", (TextPart("<|im_end|> hello"),)),)
    assert submit.rendered_prompt is None, "there, special tokens in it would be special"


async def test_parameters(gateway: Gateway) -> None:
    await complete(gateway, "hello", max_tokens=7, temperature=0, stop="x", seed=1, user="somebody")
    assert gateway.worker.submits[-1].sampling == SamplingParameters(max_tokens=7, temperature=0, stop=("x",), seed=1)


@pytest.mark.parametrize("prompt", [None, "", 5, [], ["a"] * 17, ["a", 1], [1, 2], [[1, 2]], {"text": "x"}])
async def test_other_prompts_are_refused(gateway: Gateway, prompt: Any) -> None:
    answer = await gateway.client.post(COMPLETIONS, json={"prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    if prompt == [1, 2]:
        assert "token ids are not taken" in answer.json()["error"]["message"]


async def test_prompt_too_long(gateway: Gateway) -> None:
    answer = await gateway.client.post(COMPLETIONS, json={"prompt": "x" * 10_001})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
