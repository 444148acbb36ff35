"""Chat completions: what is asked reaches the worker, and its answer comes back in OpenAI's words."""

import base64
from typing import Any

import pytest

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, TextPart
from tests.app.conftest import Gateway, gateway_with, picture
from tests.app.scripted_worker import MODEL
from tests.app.test_generate import chunks

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_url(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def chat(gateway: Gateway, content: Any, **more: Any) -> Any:
    """The answer to one message of the user: parsed, or the text of its events."""
    answer = await gateway.client.post(CHAT, json={"messages": [{"role": "user", "content": content}], **more})
    assert answer.status_code == 200, answer.text
    return answer.text if more.get("stream") else answer.json()


async def test_answer_is_a_chat_completion(gateway: Gateway) -> None:
    answer = await chat(gateway, "a red circle", model=MODEL)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_600_000_000
    message = {"role": "assistant", "content": "a red circle", "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"image_tokens": 0, "cached_tokens": 2},
        },
    }


async def test_events_are_chunks(gateway: Gateway) -> None:
    body = await chat(gateway, "slowly a red circle", stream=True)
    assert body.endswith("data: [DONE]\n\n")
    events = chunks(body)
    assert [event["choices"][0] for event in events] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": " red"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": " circle"}, "logprobs": None, "finish_reason": "stop"},
    ]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert not any("usage" in event for event in events)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
async def test_usage_is_not_sent_unasked(gateway: Gateway, options: Any) -> None:
    events = chunks(await chat(gateway, "slowly a b", stream=True, stream_options=options))
    assert not any("usage" in event for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_usage_ends_a_stream_that_asked_for_it(gateway: Gateway) -> None:
    body = await chat(gateway, "slowly a red circle", stream=True, stream_options={"include_usage": True})
    *events, last = chunks(body)
    assert [event["usage"] for event in events] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"image_tokens": 0, "cached_tokens": 2},
    }


async def test_failure_in_mid_stream_is_an_event_and_the_end(gateway: Gateway) -> None:
    body = await chat(gateway, "fail_late deadline_exceeded", stream=True, stream_options={"include_usage": True})
    _, first, last = chunks(body)
    assert first["choices"][0]["delta"]["content"] == "so far"
    assert last["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in body


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_when_asked_for(gateway: Gateway, stream: bool) -> None:
    answer = await chat(gateway, "slowly a red circle", stream=stream, return_token_ids=True)
    first, *others = chunks(answer)[1:] if stream else [answer]
    assert first["prompt_token_ids"] == [1, 2, 3]
    assert first["choices"][0]["token_ids"] == ([100] if stream else [100, 101, 102])
    assert not any("prompt_token_ids" in other for other in others)


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/"])
async def test_with_and_without_trailing_slash(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.post(path, json={"messages": [{"role": "user", "content": "hello"}]})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


async def test_turns_and_interleaved_pictures(gateway: Gateway) -> None:
    first, second, third = picture(), picture("JPEG", color="blue"), picture("GIF", color="green")
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [text("Compare"), image_url(first), text("with"), image_url(second)]},
        {"role": "assistant", "content": [text("One is red, "), text("one is blue.")]},
        {"role": "user", "content": [{"type": "image", "image": data_url(third)}, text("And <|image_pad|> this?")]},
    ]
    answer = await gateway.client.post(CHAT, json={"messages": messages})
    assert answer.json()["usage"]["prompt_tokens_details"] == {"image_tokens": 12, "cached_tokens": 2}
    submit = gateway.worker.submits[-1]
    assert submit.pictures == (first, second, third)
    assert submit.messages == (
        ChatMessage("system", (TextPart("Be brief."),)),
        ChatMessage("user", (TextPart("Compare"), PicturePart(0), TextPart("with"), PicturePart(1))),
        ChatMessage("assistant", (TextPart("One is red, "), TextPart("one is blue."))),
        ChatMessage("user", (PicturePart(2), TextPart("And <|image_pad|> this?"))),
    )
    assert submit.rendered_prompt is None
    assert submit.deadline_seconds == 60


async def test_an_answer_can_be_sent_back(gateway: Gateway) -> None:
    answer = (await chat(gateway, "a red circle"))["choices"][0]["message"]
    as_dumped = {**answer, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    messages = [{"role": "user", "content": "hi"}, as_dumped, {"role": "user", "content": "go on"}]
    assert (await gateway.client.post(CHAT, json={"messages": messages})).status_code == 200
    assert gateway.worker.submits[-1].messages[1] == ChatMessage("assistant", (TextPart("a red circle"),))


@pytest.mark.parametrize(
    "image", [base64.b64encode(picture()).decode(), base64.encodebytes(picture()).decode(), data_url(picture())]
)
async def test_pictures_in_the_reference_s_form(gateway: Gateway, image: str) -> None:
    await chat(gateway, [{"type": "image", "image": image}, text("what is this?")])
    assert gateway.worker.submits[-1].pictures == (picture(),)
    assert gateway.worker.submits[-1].messages[0].content == (PicturePart(0), TextPart("what is this?"))


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
async def test_detail_changes_nothing(gateway: Gateway, detail: str | None) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(picture()), "detail": detail}}
    await chat(gateway, [part, text("what is this?")])
    assert gateway.worker.submits[-1].pictures == (picture(),)


async def test_every_parameter(gateway: Gateway) -> None:
    parameters: dict[str, Any] = {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": -7, "stop": ["a", "b"]}
    await chat(gateway, "hello", **parameters, max_completion_tokens=40, ignore_eos=True, user="somebody")
    assert gateway.worker.submits[-1].sampling == SamplingParameters(
        max_tokens=40, temperature=0.5, top_k=5, top_p=0.9, seed=-7, stop=("a", "b"), ignore_eos=True
    )
    await chat(gateway, "hello", stop="x")
    assert gateway.worker.submits[-1].sampling == SamplingParameters(stop=("x",))


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({}, None),
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 6, "max_completion_tokens": None}, 6),
    ],
)
async def test_both_names_of_the_token_limit(gateway: Gateway, limits: dict[str, Any], sent: int | None) -> None:
    await chat(gateway, "hello", **limits)
    assert gateway.worker.submits[-1].sampling.max_tokens == sent


async def test_null_is_not_given(gateway: Gateway) -> None:
    names = ("model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "ignore_eos", "user")
    await chat(gateway, "hello", **dict.fromkeys(names))
    assert gateway.worker.submits[-1].sampling == SamplingParameters()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("code", "status"), [("queue_full", 429), ("internal", 500), ("unavailable", 503)])
async def test_a_failure_before_the_answer_has_its_status(
    gateway: Gateway, code: str, status: int, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": f"fail {code}"}], "stream": stream}
    answer = await gateway.client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_too_much_of_everything() -> None:
    async with gateway_with(max_pictures=2, max_prompt_characters=10) as gateway:
        for content, param in (
            ([image_url(picture())] * 3, "messages[0].content[2].image_url.url"),
            ([text("12345"), text("678901")], "messages"),
        ):
            answer = await gateway.client.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert gateway.worker.submits == []
