"""What OpenAI's routes refuse: nothing is silently ignored."""

from typing import Any

import pytest

from app.openai.schemas import ChatCompletionRequest, CompletionRequest
from tests.app.conftest import Gateway
from tests.app.test_openai_chat import CHAT, data_url, text
from tests.app.test_openai_completions import COMPLETIONS
from tests.app.test_requests import WRONG_PARAMETERS, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASK: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    COMPLETIONS: {"prompt": "hello"},
}

# For each: what is refused, and what asks for nothing and is taken.
UNSUPPORTED: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    CHAT: {
        "tools": ([[{"type": "function", "function": {"name": "f"}}]], [[]]),
        "tool_choice": (["auto", "required"], ["none"]),
        "parallel_tool_calls": ([True], []),
        "functions": ([[{"name": "f"}]], [[]]),
        "function_call": (["auto"], ["none"]),
        "modalities": ([["text", "audio"]], [["text"]]),
        "audio": ([{"voice": "x", "format": "wav"}], []),
        "prediction": ([{"type": "content", "content": "x"}], []),
        "reasoning_effort": (["high"], ["none"]),
        "store": ([True], [False]),
        "metadata": ([{"a": "b"}], [{}]),
        "verbosity": (["low"], ["medium"]),
        "web_search_options": ([{}], []),
        "moderation": ([{}], []),
        "prompt_cache_key": (["x"], []),
        "prompt_cache_options": ([{}], []),
        "prompt_cache_retention": (["24h"], []),
    },
    COMPLETIONS: {
        "echo": ([True], [False]),
        "suffix": (["end"], [""]),
    },
}
CASES = [(path, name, *values) for path, fields in UNSUPPORTED.items() for name, values in fields.items()]


@pytest.mark.parametrize(("path", "name", "wrong", "neutral"), CASES)
async def test_what_is_not_supported_is_named(
    gateway: Gateway, path: str, name: str, wrong: list[Any], neutral: list[Any]
) -> None:
    for value in wrong:
        error = await refused(gateway, 400, path, json={**ASK[path], name: value})
        assert (error["param"], error["code"]) == (name, "invalid_request")
        assert error["message"].startswith(f'"{name}" is not supported by this server yet; leave it out')
    for value in [*neutral, None]:
        assert (await gateway.client.post(path, json={**ASK[path], name: value})).status_code == 200


def unsupported_fields(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: f for name, f in schema["properties"].items() if f["description"].startswith("Not supported")}


@pytest.mark.parametrize(("path", "request_type"), [(CHAT, ChatCompletionRequest), (COMPLETIONS, CompletionRequest)])
async def test_no_field_is_missing_here(path: str, request_type: Any) -> None:
    assert unsupported_fields(request_type.model_json_schema()).keys() == UNSUPPORTED[path].keys()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("name", "value"), [*WRONG_PARAMETERS, ("max_completion_tokens", 0), ("user", 5)])
async def test_the_parameter_at_fault_is_named(gateway: Gateway, path: str, name: str, value: Any) -> None:
    error = await refused(gateway, 400, path, json={**ASK[path], name: value})
    assert error["param"] == name
    assert f'"{name}"' in error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("value", [1, None])
async def test_unknown_fields(gateway: Gateway, path: str, value: Any) -> None:
    error = await refused(gateway, 400, path, json={**ASK[path], "params": value})
    assert error["message"] == 'Unknown parameter "params".'


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_contradictions(gateway: Gateway, path: str) -> None:
    both = {"max_tokens": 3, "max_completion_tokens": 4}
    assert (await refused(gateway, 400, path, json={**ASK[path], **both}))["param"] == "max_completion_tokens"
    for stream in ({}, {"stream": False}):
        body = {**ASK[path], **stream, "stream_options": {"include_usage": True}}
        error = await refused(gateway, 400, path, json=body)
        assert error["param"] == "stream_options"
        assert '"stream": true' in error["message"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (5, "stream_options"),
        ({"include_usage": "yes"}, "stream_options.include_usage"),
        ({"include_obfuscation": True}, "stream_options.include_obfuscation"),
        ({"continuous_usage_stats": True}, "stream_options.continuous_usage_stats"),
    ],
)
async def test_stream_options(gateway: Gateway, options: Any, param: str) -> None:
    error = await refused(gateway, 400, CHAT, json={**ASK[CHAT], "stream": True, "stream_options": options})
    assert error["param"] == param


MESSAGES = [
    (None, "messages"),
    ([], "messages"),
    ("hello", "messages"),
    (["hello"], "messages[0]"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": "x", "name": "me"}], "messages[0].name"),
    ([{"role": "user", "content": "x", "stop": "y"}], "messages[0].stop"),
    ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "y"}]}], "messages[0].tool_calls"),
]
PARTS = [
    ("hello", ""),
    ({}, ""),
    ({"type": "video_url"}, ""),
    ({"type": "input_audio", "input_audio": {}}, ""),
    ({"type": "text"}, ".text"),
    ({"type": "text", "text": 5}, ".text"),
    ({"type": "text", "text": "x", "cache_control": {}}, ".cache_control"),
    ({"type": "image_url"}, ".image_url"),
    ({"type": "image_url", "image_url": {}}, ".image_url.url"),
    ({"type": "image_url", "image_url": data_url(b"x")}, ".image_url"),
    ({"type": "image_url", "image_url": {"url": data_url(b"x"), "detail": "huge"}}, ".image_url.detail"),
    ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, ".image_url.url"),
    ({"type": "image_url", "image_url": {"url": "file:///etc/hosts"}}, ".image_url.url"),
    ({"type": "image", "image": "https://example.org/x.png"}, ".image"),
    ({"type": "image", "image": "§§"}, ".image"),
    ({"type": "image"}, ".image"),
]


@pytest.mark.parametrize(("messages", "param"), MESSAGES)
async def test_broken_messages(gateway: Gateway, messages: Any, param: str) -> None:
    error = await refused(gateway, 400, CHAT, json={"messages": messages})
    assert error["param"] == param
    assert f'"{param}"' in error["message"]


@pytest.mark.parametrize(("part", "place"), PARTS)
async def test_broken_parts(gateway: Gateway, part: Any, place: str) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [text("x"), part]}]
    assert (await refused(gateway, 400, CHAT, json={"messages": messages}))["param"] == f"messages[1].content[1]{place}"


@pytest.mark.parametrize("role", ["system", "assistant"])
async def test_pictures_of_others(gateway: Gateway, role: str) -> None:
    messages = [{"role": role, "content": [{"type": "image", "image": data_url(b"x")}]}]
    error = await refused(gateway, 400, CHAT, json={"messages": messages})
    assert error["message"] == "Pictures can only be in messages of the user."


async def test_what_is_no_picture(gateway: Gateway) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(b"not a picture")}}
    error = await refused(gateway, 422, CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert (error["param"], error["code"]) == ("messages[0].content[0].image_url.url", "invalid_picture")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_bodies_that_are_not_json(gateway: Gateway, path: str) -> None:
    for body in (b"", b"{", b"[1]", b'"x"', b"{}", b'{"temperature": NaN}', b"\xff", b'{"prompt": "\\ud800"}'):
        await refused(gateway, 400, path, content=body, headers={"Content-Type": "application/json"})
    for content_type in ("text/plain", "multipart/form-data; boundary=b", ""):
        error = await refused(gateway, 415, path, content=b"{}", headers={"Content-Type": content_type})
        assert error["message"] == "Send application/json."


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_unknown_model(gateway: Gateway, path: str) -> None:
    error = await refused(gateway, 404, path, json={**ASK[path], "model": "gpt-5"})
    assert (error["param"], error["code"]) == ("model", "model_not_found")
