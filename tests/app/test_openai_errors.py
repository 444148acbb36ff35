"""Failures as OpenAI's SDK raises them."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.app.conftest import Gateway
from tests.app.scripted_worker import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", openai.BadRequestError),
        ("model_not_found", openai.NotFoundError),
        ("invalid_picture", openai.UnprocessableEntityError),
        ("queue_full", openai.RateLimitError),
        ("internal", openai.InternalServerError),
        ("unavailable", openai.InternalServerError),
        ("deadline_exceeded", openai.InternalServerError),
    ],
)
async def test_before_the_answer(
    sdk: openai.AsyncOpenAI, code: str, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as raised:
        await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"fail {code}"}], stream=stream
        )
    assert raised.value.code == code


async def test_in_mid_stream(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "fail_late deadline_exceeded"}], stream=True
    )
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    assert (await anext(stream)).choices[0].delta.content == "so far"
    with pytest.raises(openai.APIError, match=r"Scripted: deadline_exceeded\.") as raised:
        await anext(stream)
    assert raised.value.code == "deadline_exceeded"


async def test_a_full_queue_is_tried_again(sdk: openai.AsyncOpenAI, gateway: Gateway) -> None:
    before = len(gateway.worker.submits)
    with pytest.raises(openai.RateLimitError):
        await sdk.with_options(max_retries=1).completions.create(model=MODEL, prompt="fail queue_full")
    assert len(gateway.worker.submits) == before + 2
