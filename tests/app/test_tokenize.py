"""``POST /tokenize``."""

from typing import Any

import pytest

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, TextPart
from tests.app.conftest import Gateway, picture
from tests.app.scripted_worker import MODEL
from tests.app.test_openai_chat import image_url, text
from tests.app.test_requests import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENIZE = "/tokenize"


@pytest.mark.parametrize("path", [TOKENIZE, "/v1/tokenize"])
async def test_a_prompt(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.post(path, json={"prompt": "<|im_end|> hello", "model": MODEL})
    assert answer.json() == {"count": 10, "max_model_len": 4096, "tokens": list(range(10))}
    submit = gateway.worker.submits[-1]
    assert submit.messages == (ChatMessage("user", (TextPart("<|im_end|> hello"),)),)
    assert (submit.prompt_only, submit.return_prompt_token_ids) == (True, True)
    assert (submit.sampling, submit.rendered_prompt) == (SamplingParameters(), None)


async def test_pictures_count(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": [image_url(picture()), text("what is this?")]}]
    answer = await gateway.client.post(TOKENIZE, json={"messages": messages, "add_generation_prompt": True})
    assert answer.json()["count"] == 14
    assert gateway.worker.submits[-1].messages[0].content == (PicturePart(0), TextPart("what is this?"))


async def test_it_is_no_generation(gateway: Gateway) -> None:
    async def counted() -> list[str]:
        lines = (await gateway.client.get("/metrics")).text.splitlines()
        return [line for line in lines if line.startswith("multimodal:") and "http_requests" not in line]

    before = await counted()
    assert (await gateway.client.post(TOKENIZE, json={"prompt": "hello"})).status_code == 200
    assert await counted() == before


@pytest.mark.parametrize(("code", "status"), [("queue_full", 429), ("invalid_request", 400), ("internal", 500)])
async def test_failures(gateway: Gateway, code: str, status: int) -> None:
    answer = await gateway.client.post(TOKENIZE, json={"prompt": f"fail {code}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt"),
        ({"prompt": "x", "add_special_tokens": True}, "add_special_tokens"),
        ({"prompt": "x", "continue_final_message": True}, "continue_final_message"),
        ({"prompt": "x", "return_token_strs": True}, "return_token_strs"),
        ({"prompt": "x", "max_tokens": 5}, "max_tokens"),
    ],
)
async def test_refusals(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    assert (await refused(gateway, 400, TOKENIZE, json=body))["param"] == param


async def test_unknown_model(gateway: Gateway) -> None:
    assert (await refused(gateway, 404, TOKENIZE, json={"prompt": "x", "model": "gpt"}))["param"] == "model"
