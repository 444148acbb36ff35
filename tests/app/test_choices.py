"""Several choices, and several prompts in one request."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from tests.app.conftest import GENERATE, Gateway, until
from tests.app.test_generate import chunks
from tests.app.test_openai_chat import CHAT
from tests.app.test_openai_completions import COMPLETIONS, complete
from tests.app.test_requests import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAID = ["a red circle", "a red circle #1", "a red circle #2"]
"""What the scripted worker answers with three choices."""


def asking(path: str, prompt: str, **parameters: Any) -> dict[str, Any]:
    if path == GENERATE:
        return {"prompt": prompt, "params": parameters}
    return (
        {"messages": [{"role": "user", "content": prompt}], **parameters}
        if path == CHAT
        else {"prompt": prompt, **parameters}
    )


def text_of(choice: dict[str, Any]) -> str:
    message = choice.get("message", choice.get("delta"))
    return str(choice["text"] if message is None else message["content"])


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
async def test_choices_in_order(gateway: Gateway, path: str) -> None:
    answer = (await gateway.client.post(path, json=asking(path, SAID[0], n=3))).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [text_of(choice) for choice in answer["choices"]] == SAID
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    assert answer["usage"]["completion_tokens"] == 11
    assert gateway.worker.submits[-1].sampling.n == 3


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
async def test_streamed_choices(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.post(path, json=asking(path, f"slowly {SAID[0]}", n=3, stream=True))
    texts: defaultdict[int, str] = defaultdict(str)
    reasons: defaultdict[int, list[str | None]] = defaultdict(list)
    roles: list[int] = []
    for event in chunks(answer.text):
        for choice in event["choices"]:
            texts[choice["index"]] += text_of(choice)
            reasons[choice["index"]].append(choice["finish_reason"])
            roles += [choice["index"]] * ("role" in choice.get("delta", {}))
    assert texts == dict(enumerate(SAID))
    for said in reasons.values():
        assert said == [None] * (len(said) - 1) + ["stop"]
    assert sorted(roles) == ([0, 1, 2] if path == CHAT else [])


async def test_prompts_are_answered_each_on_its_own(gateway: Gateway) -> None:
    answer = await complete(gateway, ["first", "the second", "third"], n=2, temperature=0.5)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "first"),
        (1, "first #1"),
        (2, "the second"),
        (3, "the second #1"),
        (4, "third"),
        (5, "third #1"),
    ]
    assert answer["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 11,
        "total_tokens": 41,
        "prompt_tokens_details": {"image_tokens": 0, "cached_tokens": 6},
    }
    submits = gateway.worker.submits[-3:]
    assert len({submit.request_id for submit in submits}) == 3
    assert answer["id"] == submits[0].request_id
    assert {submit.sampling.temperature for submit in submits} == {0.5}


async def test_prompts_stream_side_by_side(gateway: Gateway) -> None:
    words = [[f"{prompt}{i}" for i in range(8)] for prompt in "abc"]
    prompts = ["slowly " + " ".join(said) for said in words]
    body = await complete(gateway, prompts, stream=True, stream_options={"include_usage": True})
    *events, last = chunks(body)
    order = [choice["index"] for event in events for choice in event["choices"]]
    assert order != sorted(order), "one prompt waited for another"
    texts = ["", "", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [" ".join(said) for said in words]
    assert last["usage"]["completion_tokens"] == 24
    assert len({event["id"] for event in [*events, last]}) == 1
    assert body.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_fails_fails_the_request(gateway: Gateway, stream: bool) -> None:
    body = {"prompt": ["hang", "fail queue_full", "hang"], "stream": stream}
    answer = await gateway.client.post(COMPLETIONS, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    hanging = [submit.request_id for submit in gateway.worker.submits[-3::2]]
    await until(lambda: set(hanging) <= set(gateway.worker.cancelled))


async def test_a_prompt_that_fails_late_ends_the_stream(gateway: Gateway) -> None:
    body = await complete(gateway, ["hang", "fail_late internal"], stream=True)
    *_, last = chunks(body)
    assert last["error"]["code"] == "internal"
    assert "[DONE]" not in body


async def test_hanging_up_ends_all_prompts(gateway: Gateway) -> None:
    body = {"prompt": ["start_and_hang", "hang"], "stream": True}
    async with gateway.client.stream("POST", COMPLETIONS, json=body) as answer:
        await anext(answer.aiter_lines())
        submits = [submit.request_id for submit in gateway.worker.submits[-2:]]
    await until(lambda: set(submits) <= set(gateway.worker.cancelled))


async def test_many_at_once_keep_apart(gateway: Gateway) -> None:
    async def ask(i: int) -> list[str]:
        answer = await complete(gateway, [f"slowly {i} {j}" for j in range(4)], n=2)
        return [choice["text"] for choice in answer["choices"]]

    for i, texts in enumerate(await asyncio.gather(*(ask(i) for i in range(16)))):
        assert [text.removesuffix(" #1") for text in texts] == [f"{i} {j}" for j in range(4) for _ in range(2)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", "b"], "return_token_ids": True}, "prompt"),
        ({"prompt": ["x" * 6000] * 2}, "prompt"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "a", "n": 17}, "n"),
        ({"prompt": "a", "n": 0}, "n"),
    ],
)
async def test_refusals(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    assert (await refused(gateway, 400, COMPLETIONS, json=body))["param"] == param


async def test_best_of_may_repeat_n(gateway: Gateway) -> None:
    assert len((await complete(gateway, "hello", n=2, best_of=2))["choices"]) == 2
