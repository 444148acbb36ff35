"""Log probabilities, in the three routes' shapes."""

from typing import Any

import pytest

from tests.app.conftest import GENERATE, Gateway
from tests.app.test_choices import asking
from tests.app.test_generate import chunks
from tests.app.test_openai_chat import CHAT, chat
from tests.app.test_openai_completions import COMPLETIONS, complete
from tests.app.test_requests import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

FACE = "😀".encode()
HALVES = [r"\xf0\x9f", r"\x98\x80"]


def entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def tells_tokens(choice: dict[str, Any]) -> bool:
    """All but the event that begins a choice of chat completions."""
    return "role" not in choice.get("delta", {})


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_of_each_token_and_the_likeliest(gateway: Gateway, path: str) -> None:
    body = asking(path, "a red", logprobs=True, top_logprobs=2)
    (choice,) = (await gateway.client.post(path, json=body)).json()["choices"]
    assert choice["logprobs"] == {
        "content": [
            entry("a", 0.0) | {"top_logprobs": [entry("a", 0.0), entry("a~", -1.0)]},
            entry(" red", 0.0) | {"top_logprobs": [entry(" red", 0.0), entry(" red~", -1.0)]},
        ],
        "refusal": None,
    }
    assert gateway.worker.submits[-1].sampling.logprobs == 2


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_of_the_chosen_tokens_alone(gateway: Gateway, path: str) -> None:
    (choice,) = (await gateway.client.post(path, json=asking(path, "a", logprobs=True))).json()["choices"]
    assert choice["logprobs"]["content"] == [entry("a", 0.0) | {"top_logprobs": []}]
    assert gateway.worker.submits[-1].sampling.logprobs == 0


async def test_not_there_unless_asked_for(gateway: Gateway) -> None:
    assert "logprobs" not in (await gateway.generate("hello")).json()["choices"][0]
    assert (await chat(gateway, "hello", logprobs=False))["choices"][0]["logprobs"] is None
    assert gateway.worker.submits[-1].sampling.logprobs is None


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_in_a_stream(gateway: Gateway, path: str) -> None:
    body = asking(path, "slowly a red", n=2, logprobs=True, top_logprobs=1, stream=True)
    events = chunks((await gateway.client.post(path, json=body)).text)
    told: dict[int, list[str]] = {0: [], 1: []}
    for event in events:
        for choice in filter(tells_tokens, event["choices"]):
            told[choice["index"]] += [token["token"] for token in choice["logprobs"]["content"]]
            assert all(len(token["top_logprobs"]) == 1 for token in choice["logprobs"]["content"])
    assert told == {0: ["a", " red"], 1: ["a", " red", " #1"]}


async def test_a_form_may_ask_too(gateway: Gateway) -> None:
    parts = {"prompt": (None, "a"), "logprobs": (None, "true"), "top_logprobs": (None, "1")}
    (choice,) = (await gateway.client.post(GENERATE, files=parts)).json()["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == [entry("a", 0.0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_parts_of_a_character(gateway: Gateway, stream: bool) -> None:
    answer = await chat(gateway, "emoji", logprobs=True, stream=stream)
    events = chunks(answer) if stream else [answer]
    choices = [choice for event in events for choice in filter(tells_tokens, event["choices"])]
    tokens = [token for choice in choices for token in choice["logprobs"]["content"]]
    assert [token["token"] for token in tokens] == ["Hi", *HALVES, "!"]
    assert bytes(byte for token in tokens for byte in token["bytes"]) == b"Hi" + FACE + b"!"
    assert tokens[1]["logprob"] == -0.5
    assert tokens[2]["logprob"] == -9999.0, "JSON has no infinity"


async def test_completions(gateway: Gateway) -> None:
    (choice,) = (await complete(gateway, "a red circle", logprobs=2))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", " red", " circle"],
        "token_logprobs": [0.0, 0.0, 0.0],
        "top_logprobs": [{"a": 0.0, "a~": -1.0}, {" red": 0.0, " red~": -1.0}, {" circle": 0.0, " circle~": -1.0}],
        "text_offset": [0, 1, 5],
    }
    (choice,) = (await complete(gateway, "a", logprobs=0))["choices"]
    assert choice["logprobs"] == {"tokens": ["a"], "token_logprobs": [0.0], "top_logprobs": None, "text_offset": [0]}
    assert (await complete(gateway, "a"))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_count_characters(gateway: Gateway, stream: bool) -> None:
    answer = await complete(gateway, ["slowly x", "emoji"], logprobs=1, stream=stream)
    events = chunks(answer) if stream else [answer]
    told: dict[str, list[Any]] = {"tokens": [], "text_offset": [], "top_logprobs": []}
    for event in events:
        for choice in event["choices"]:
            if choice["index"] == 1:
                for name, values in told.items():
                    values += choice["logprobs"][name]
    assert told["tokens"] == ["Hi", *(f"bytes:{half}" for half in HALVES), "!"]
    assert told["text_offset"] == [0, 2, 2, 3]
    assert told["top_logprobs"][2] == {rf"bytes:{HALVES[1]}": -9999.0}


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
async def test_refusals(gateway: Gateway, path: str, parameters: dict[str, Any], param: str) -> None:
    error = await refused(gateway, 400, path, json=asking(path, "x", **parameters))
    assert error["param"] == ("logprobs" if path == COMPLETIONS and "logprobs" in parameters else param)
