"""OpenAI's own clients, unmodified, against the real servers."""

import base64
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from tests.e2e.deployment import MODEL, ROOT, Deployment
from tests.e2e.test_demo import run_against

PICTURES = ROOT / "examples" / "pictures"
QUESTION = "What is in this image?"
ANSWER = "A red circle."


def image_url(name: str, media_type: str = "image/png") -> Any:
    data = base64.b64encode((PICTURES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}


def text(words: str) -> Any:
    return {"type": "text", "text": words}


def user(*content: Any) -> Any:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


RED_CIRCLE = user(image_url("red-circle.png"), text(QUESTION))


@pytest.fixture
def sdk(demo: Deployment) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture
async def async_sdk(demo: Deployment) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_picture_and_a_question(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], temperature=0, max_completion_tokens=40)
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.image_tokens == 64
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(
        model=MODEL, messages=[RED_CIRCLE], temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert not any(chunk.usage for chunk in chunks)
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


def test_the_sdk_s_own_accumulator(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model=MODEL, messages=[RED_CIRCLE], temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


async def test_asynchronously(async_sdk: openai.AsyncOpenAI) -> None:
    answer = await async_sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], temperature=0)
    assert answer.choices[0].message.content == ANSWER
    stream = await async_sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], temperature=0, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER


def test_several_turns(sdk: openai.OpenAI) -> None:
    first = sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], temperature=0)
    second = user(image_url("blue-square-green-star.jpg", "image/jpeg"), text("What color is the square?"))
    messages = [RED_CIRCLE, first.choices[0].message.model_dump(), second]
    answer = sdk.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert first.usage is not None
    assert answer.usage.prompt_tokens > first.usage.total_tokens
    assert (answer.usage.prompt_tokens_details.image_tokens or 0) > 64


def test_several_pictures(sdk: openai.OpenAI) -> None:
    pictures = [image_url("red-circle.png"), image_url("yellow-heart-on-black.png")]
    message = user(*pictures, text("What is in these images?"))
    answer = sdk.chat.completions.create(model=MODEL, messages=[message], temperature=0)
    assert answer.choices[0].message.content == (
        "The first image shows a red circle. The second image shows a yellow heart."
    )


def test_the_same_tokens_as_the_native_route(sdk: openai.OpenAI, demo: Deployment) -> None:
    extensions = {"return_token_ids": True, "ignore_eos": True, "top_k": 5}
    same = {"temperature": 0.9, "seed": 3, "max_tokens": 12}
    answer = sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], extra_body=extensions, **same)  # type: ignore[call-overload]
    picture = base64.b64encode((PICTURES / "red-circle.png").read_bytes()).decode()
    body = {"prompt": QUESTION, "images": [{"data": picture}], "params": {**extensions, **same}}
    native: Any = sdk.post("/multimodal/generate", body=body, cast_to=object)
    assert answer.choices[0].token_ids == native["choices"][0]["token_ids"]
    assert answer.prompt_token_ids == native["prompt_token_ids"]
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_completions(sdk: openai.OpenAI, stream: bool) -> None:
    prompt = "<|im_end|>Hello!"
    asked: Any = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, "stream": stream}
    answer = sdk.completions.create(**asked)
    said = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    chat = sdk.chat.completions.create(model=MODEL, messages=[user(prompt)], temperature=0, max_tokens=8)
    assert said == chat.choices[0].message.content


def test_models(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert sdk.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
        ({"extra_body": {"beam_width": 3}}, openai.BadRequestError, "beam_width"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        (
            {"messages": [user({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}})]},
            openai.BadRequestError,
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [user({"type": "image", "image": "R0lGODlh"})]},
            openai.UnprocessableEntityError,
            "messages[0].content[0].image",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdk_s_own(
    sdk: openai.OpenAI, change: dict[str, Any], error: type[openai.APIStatusError], param: str, stream: bool
) -> None:
    asked: Any = {"model": MODEL, "messages": [user("Hi")], "stream": stream}
    with pytest.raises(error) as raised:
        sdk.chat.completions.create(**{**asked, **change})
    assert raised.value.param == param
    assert raised.value.request_id


def test_the_readme_s_example(demo: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    exec(example.replace("http://localhost:8080", demo.url).replace('model="demo"', f'model="{MODEL}"'), {})
    assert capsys.readouterr().out.strip() == ANSWER


CURL = """curl {base}/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -d '{{
    "model": "{model}",
    "messages": [
      {{
        "role": "developer",
        "content": "You are a helpful assistant."
      }},
      {{
        "role": "user",
        "content": "Hello!"
      }}
    ]
  }}'
"""


def test_curl_as_openai_documents_it(demo: Deployment) -> None:
    answer = json.loads(run_against(demo, CURL.format(base=shlex.quote("http://localhost:8080"), model=MODEL)))
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


class Shape(BaseModel):
    color: Literal["red", "blue"]
    name: Literal["circle", "square"]


def test_typed_answers(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(model=MODEL, messages=[RED_CIRCLE], response_format=Shape, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Shape)
    with sdk.chat.completions.stream(
        model=MODEL, messages=[RED_CIRCLE], response_format=Shape, temperature=0
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


async def test_typed_answers_asynchronously(async_sdk: openai.AsyncOpenAI) -> None:
    answer = await async_sdk.chat.completions.parse(model=MODEL, messages=[RED_CIRCLE], response_format=Shape)
    assert isinstance(answer.choices[0].message.parsed, Shape)


def test_a_json_object(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=[RED_CIRCLE], response_format={"type": "json_object"}, max_tokens=60, seed=1
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_regular_expression(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=[RED_CIRCLE], extra_body={"guided_regex": "(yes|no)"}, n=4, seed=1
    )
    assert {choice.message.content for choice in answer.choices} <= {"yes", "no"}


def test_a_schema_that_cannot_be_kept_to(sdk: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.chat.completions.create(model=MODEL, messages=[RED_CIRCLE], response_format=wanted)
    assert "response_format" in (raised.value.param or "")


def test_choices(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [RED_CIRCLE], "n": 4, "temperature": 2, "seed": 5, "max_tokens": 12}
    answer = sdk.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1, "each is drawn on its own"
    assert [choice.message.content for choice in sdk.chat.completions.create(**asked).choices] == texts
    streamed = ["", "", "", ""]
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_logprobs(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [RED_CIRCLE], "temperature": 0, "logprobs": True, "top_logprobs": 3}
    (choice,) = sdk.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    said = bytes(byte for token in tokens for byte in token.bytes or [])
    assert said.decode().startswith(ANSWER)
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        likely = [entry.logprob for entry in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)
    with sdk.chat.completions.stream(**asked) as stream:
        (streamed,) = stream.get_final_completion().choices
    assert streamed.logprobs is not None
    assert [token.token for token in streamed.logprobs.content or []] == [token.token for token in tokens]


def test_several_prompts(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    together = sdk.completions.create(prompt=["Hello!", "What is this?"], n=2, best_of=2, logprobs=2, **asked)
    alone = [sdk.completions.create(prompt=prompt, **asked) for prompt in ("Hello!", "What is this?")]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone for _ in range(2)]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone if one.usage)
    for choice in together.choices:
        assert choice.logprobs is not None
        tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
        assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]


def test_logit_bias_forces_and_forbids(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [RED_CIRCLE], "temperature": 0, "max_tokens": 1}
    first: Any = sdk.chat.completions.create(**asked, extra_body={"return_token_ids": True}).choices[0]
    (token_id,) = first.token_ids
    without = sdk.chat.completions.create(**asked, logit_bias={str(token_id): -100})
    assert without.choices[0].message.content != first.message.content
    forced = sdk.chat.completions.create(**{**asked, "max_tokens": 3}, logit_bias={str(token_id): 100})
    assert forced.choices[0].message.content == first.message.content * 3


def test_tokens_are_those_of_a_generation(sdk: openai.OpenAI) -> None:
    counted: Any = sdk.post("/tokenize", body={"messages": [RED_CIRCLE]}, cast_to=object)
    answer = sdk.chat.completions.create(
        model=MODEL, messages=[RED_CIRCLE], max_tokens=1, extra_body={"return_token_ids": True}
    )
    assert counted["tokens"] == answer.prompt_token_ids  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert counted["count"] == len(counted["tokens"]) == answer.usage.prompt_tokens
    assert counted["max_model_len"] == sdk.models.retrieve(MODEL).context_length  # type: ignore[attr-defined]


def test_langchain(demo: Deployment) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain.ChatOpenAI(model=MODEL, base_url=f"{demo.url}/v1", api_key="none", temperature=0, max_retries=0)
    assert model.invoke([RED_CIRCLE]).content == ANSWER
    assert "".join(chunk.content for chunk in model.stream([RED_CIRCLE])) == ANSWER
    assert isinstance(model.with_structured_output(Shape).invoke([RED_CIRCLE]), Shape)
    told = model.bind(logprobs=True, top_logprobs=1).invoke([RED_CIRCLE]).response_metadata["logprobs"]["content"]
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in told)
