"""OpenAI's SDK, unmodified: what it offers for choices, log probabilities and typed answers."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel

from app.openai.schemas import ChatCompletionRequest, CompletionRequest
from protocol.messages import JsonGrammar
from tests.app.conftest import Gateway
from tests.app.scripted_worker import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Shape(BaseModel):
    color: str
    sides: int


SHAPE = Shape(color="red", sides=3)


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def test_every_parameter_is_known_by_name() -> None:
    for request, sent in (
        (ChatCompletionRequest, chat_create_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    ):
        assert set(sent.__annotations__) <= set(request.model_fields)


async def test_typed_answers(sdk: openai.AsyncOpenAI, gateway: Gateway) -> None:
    answer = await sdk.chat.completions.parse(model=MODEL, messages=user("json"), response_format=Shape)
    assert answer.choices[0].message.parsed == SHAPE
    grammar = gateway.worker.submits[-1].sampling.grammar
    assert isinstance(grammar, JsonGrammar)
    assert '"sides"' in (grammar.schema or "")


async def test_typed_answers_streamed(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(model=MODEL, messages=user("json"), response_format=Shape) as stream:
        done = [event.parsed async for event in stream if event.type == "content.done"]
        assert (await stream.get_final_completion()).choices[0].message.parsed == SHAPE
    assert done == [SHAPE]


async def test_logprobs(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model=MODEL, messages=user("a red"), logprobs=True, top_logprobs=2, n=2)
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert [likely.logprob for likely in choice.logprobs.content[0].top_logprobs] == [0, -1]


async def test_logprobs_streamed(sdk: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": user("slowly a red"), "logprobs": True, "top_logprobs": 1, "n": 2}
    said, contents = ["", ""], ["", ""]
    async with sdk.chat.completions.stream(**asked) as stream:
        async for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    contents[choice.index] += choice.delta.content or ""
        final = await stream.get_final_completion()
    for choice in final.choices:
        assert choice.logprobs is not None
        said[choice.index] = "".join(token.token for token in choice.logprobs.content or [])
        assert choice.message.content == contents[choice.index] == said[choice.index]
    assert said == ["a red", "a red #1"]


async def test_completions(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model=MODEL, prompt=["a red", "b"], n=2, best_of=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["a red", "a red #1", "b", "b #1"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


async def test_every_sampling_parameter(sdk: openai.AsyncOpenAI, gateway: Gateway) -> None:
    await sdk.chat.completions.create(
        model=MODEL,
        messages=user("hello"),
        presence_penalty=1,
        frequency_penalty=-0.5,
        logit_bias={"5": -100, "7": 1},
        service_tier="auto",
        safety_identifier="somebody",
        extra_body={"min_p": 0.1, "repetition_penalty": 1.1, "cache_salt": "salt"},
    )
    submit = gateway.worker.submits[-1]
    sampling = submit.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -0.5)
    assert sampling.logit_bias == {5: -100, 7: 1}
    assert (sampling.min_p, sampling.repetition_penalty, submit.cache_salt) == (0.1, 1.1, "salt")


DEVELOPER = {"role": "developer", "content": "You are a helpful assistant."}
HELLO = {"role": "user", "content": "Hello!"}
BOSTON = {"role": "user", "content": "What is the weather like in Boston today?"}
FOREST = {"type": "image_url", "image_url": {"url": "https://example.org/boardwalk.jpg"}}
WEATHER = {"type": "function", "function": {"name": "get_current_weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        ("chat/completions", {"messages": [DEVELOPER, HELLO]}, None),
        ("chat/completions", {"messages": [DEVELOPER, HELLO], "stream": True}, None),
        ("chat/completions", {"messages": [HELLO], "logprobs": True, "top_logprobs": 2}, None),
        ("chat/completions", {"messages": [BOSTON], "tools": [WEATHER], "tool_choice": "auto"}, "tools"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is in this image?"}, FOREST]}]},
            "messages[0].content[1].image_url.url",
        ),
        ("completions", {"prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}, None),
        ("completions", {"prompt": "Say this is a test", "max_tokens": 7, "temperature": 0, "stream": True}, None),
    ],
)
async def test_the_examples_of_openai_s_reference(gateway: Gateway, path: str, body: Any, refused: str | None) -> None:
    """As its ``curl`` commands send them; what does not work here is refused by name."""
    answer = await gateway.client.post(f"/v1/{path}", json={"model": MODEL, **body})
    assert answer.status_code == (200 if refused is None else 400)
    assert refused is None or answer.json()["error"]["param"] == refused
