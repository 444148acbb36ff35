"""Whatever is sent, the answer is 200 or a documented refusal in our envelope."""

import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.openapi import ERRORS
from tests.app.conftest import GENERATE, Gateway
from tests.app.test_openai_chat import CHAT, data_url
from tests.hostile_inputs import NAMED, hostile_pictures, hostile_texts

pytestmark = pytest.mark.asyncio(loop_scope="session")

bounded = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def checked(answer: httpx.Response) -> httpx.Response:
    assert answer.status_code == 200 or answer.status_code in set(ERRORS) - {500, 503, 504}, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert not any(word in error["message"] for word in ("Traceback", "PIL", "pydantic", "Error", "0x", ".py"))
    return answer


async def ask_in_each_form(gateway: Gateway, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    image_url = {"type": "image_url", "image_url": {"url": data_url(data)}}
    answers = [
        await gateway.client.post(GENERATE, data={"prompt": "x"}, files={"image": ("x.png", data)}),
        await gateway.client.post(GENERATE, json={"prompt": "x", "images": [{"data": encoded}]}),
        await gateway.client.post(GENERATE, json={"prompts": ["x"], "images": [[{"data": encoded}]]}),
        await gateway.client.post(CHAT, json={"messages": [{"role": "user", "content": [image_url]}]}),
    ]
    assert len({checked(answer).status_code for answer in answers}) == 1


@pytest.mark.parametrize("name", list(NAMED))
async def test_pictures_that_hurt(gateway: Gateway, name: str) -> None:
    await ask_in_each_form(gateway, NAMED[name])


@bounded
@given(hostile_pictures)
async def test_damaged_pictures(gateway: Gateway, data: bytes) -> None:
    await ask_in_each_form(gateway, data)


def as_json(document: Any) -> dict[str, Any]:
    return {"content": json.dumps(document), "headers": {"Content-Type": "application/json"}}


@bounded
@given(hostile_texts)
@example("\ud800")
@example("\udfff\ud800")
@example("x" * 250_000)
@example("\0")
async def test_texts(gateway: Gateway, text: str) -> None:
    for path, body in (
        (GENERATE, {"prompt": text}),
        (GENERATE, {"prompts": [text, "x"], "params": {"stop": text[:300]}}),
        (CHAT, {"messages": [{"role": "user", "content": text}], "user": text}),
        (CHAT, {"messages": [{"role": text, "content": [{"type": text}]}], text: text}),
        ("/v1/completions", {"prompt": text, "model": text}),
    ):
        checked(await gateway.client.post(path, **as_json(body)))


@bounded
@given(st.one_of(st.binary(max_size=200), hostile_texts.map(str.encode)), st.binary(min_size=1, max_size=20))
@example(b"\xed\xa0\x80", b"prompt")
@example(b"\xff\xfe", b"image_url")
async def test_forms(gateway: Gateway, value: bytes, name: bytes) -> None:
    for field in (b"prompt", b"image", b"image_url", b"params", b"seed", name):
        part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        body = part % (b"prompt", b"x") if field != b"prompt" else b""
        body += part % (field, value) + b"--b--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        checked(await gateway.client.post(GENERATE, content=body, headers=headers))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("prompt", "prompts", "images", "params", "model", "stream", "messages", "temperature", "stop")


@bounded
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
async def test_documents(gateway: Gateway, document: dict[str, Any]) -> None:
    for path in (GENERATE, CHAT):
        checked(await gateway.client.post(path, **as_json(document)))


async def test_the_gateway_is_well_after_all_that(gateway: Gateway) -> None:
    assert (await gateway.generate("still here")).json()["choices"][0]["text"] == "still here"
