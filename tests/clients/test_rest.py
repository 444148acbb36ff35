"""The REST client against the real gateway, through real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.rest import (
    ApiError,
    AsyncMultimodalClient,
    CompletionChunk,
    ConnectionFailed,
    InvalidRequestError,
    MultimodalClient,
    MultimodalError,
    RateLimitError,
    RetryPolicy,
    ServerError,
    TimedOut,
    TokenLogprob,
    UnexpectedAnswer,
    UsageCounts,
)
from protocol.messages import JsonGrammar, RegexGrammar, SamplingParameters, Submit
from tests.app.conftest import Gateway, picture
from tests.app.scripted_worker import MODEL, SCRIPTS, Script, Send, echo, failed
from tests.clients.rest_gateway import CannedServer, eventually, gateway_in_thread, http

ROOT = Path(__file__).parents[2]
AT_ONCE = RetryPolicy(retries=0)
SOON = RetryPolicy(retries=2, first_pause=0.01)
CHUNK = '{"id": "gen-1", "object": "text_completion", "created": 1, "model": "m", "choices": [%s]}'
USAGE = {"prompt_tokens": 10, "image_tokens": 0, "cached_tokens": 2, "completion_tokens": 3, "total_tokens": 13}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_in_thread(max_pictures=4, max_picture_bytes=50_000) as gateway:
        yield gateway


@pytest.fixture
def url(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


@pytest.fixture
def client(url: str) -> Iterator[MultimodalClient]:
    with MultimodalClient(url, retry=AT_ONCE) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncMultimodalClient]:
    async with AsyncMultimodalClient(url, retry=AT_ONCE) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, noted instead of waited."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def fails_first(times: int, code: str) -> Script:
    left = [times]

    async def script(submit: Submit, words: list[str], send: Send) -> None:
        left[0] -= 1
        if left[0] >= 0:
            send(failed(submit, code))
        else:
            await echo(submit, words[1:], send)

    return script


def test_whole_answer(client: MultimodalClient, gateway: Gateway) -> None:
    completion = client.generate("a red circle", max_tokens=40, temperature=0.0, seed=7, stop=["x", "y"], top_k=3)
    assert completion.text == "a red circle"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage == UsageCounts(**USAGE)
    assert (completion.model, completion.object) == (MODEL, "text_completion")
    assert completion.choices[0].token_ids is completion.prompt_token_ids is None
    sampling = gateway.worker.submits[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed, sampling.top_k) == (40, 0, 7, 3)
    assert sampling.stop == ("x", "y")


def test_answer_mirrors_the_api(client: MultimodalClient) -> None:
    """A field that the API gains is missed here."""
    from app.parameters import GenerationParameters
    from app.schemas import Choice, ChoiceDelta, Completion, CompletionChunk, UsageCounts
    from clients.rest import answers, requests

    for ours, theirs in (
        (answers.Completion, Completion),
        (answers.CompletionChunk, CompletionChunk),
        (answers.Choice, Choice),
        (answers.ChoiceDelta, ChoiceDelta),
        (answers.UsageCounts, UsageCounts),
    ):
        assert set(ours.__dataclass_fields__) == set(theirs.model_fields)
    assert set(requests.Sampling.__annotations__) == set(GenerationParameters.model_fields) - {"stream"}


def test_token_ids(client: MultimodalClient) -> None:
    completion = client.generate("a b", return_token_ids=True)
    assert (completion.prompt_token_ids, completion.choices[0].token_ids) == ((1, 2, 3), (100, 101))


def test_choices_and_logprobs(client: MultimodalClient, gateway: Gateway) -> None:
    completion = client.generate("a red", n=2, logprobs=True, top_logprobs=2)
    assert [choice.text for choice in completion.choices] == ["a red", "a red #1"]
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert "".join(token.token for token in choice.logprobs.content) == choice.text
        first = choice.logprobs.content[0]
        assert (first.token, first.logprob, first.bytes) == ("a", 0.0, (97,))
        assert first.top_logprobs == (TokenLogprob("a", 0.0, (97,)), TokenLogprob("a~", -1.0, (97, 126)))
    assert completion.usage.cached_tokens == 2


def test_streamed_choices_and_logprobs(client: MultimodalClient) -> None:
    texts, tokens = ["", ""], ["", ""]
    with client.stream("slowly a red", n=2, logprobs=True) as chunks:
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            texts[choice.index] += choice.text
            assert choice.logprobs is not None
            tokens[choice.index] += "".join(token.token for token in choice.logprobs.content)
    assert texts == tokens == ["a red", "a red #1"]


def test_every_sampling_parameter(client: MultimodalClient, gateway: Gateway) -> None:
    client.generate(
        "hello",
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={"5": -1},
        response_format={"type": "json_object"},
        cache_salt="salt",
    )
    submit = gateway.worker.submits[-1]
    assert submit.sampling == SamplingParameters(
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={5: -1},
        grammar=JsonGrammar(),
    )
    assert submit.cache_salt == "salt"
    client.generate("hello", guided_regex="12")
    assert gateway.worker.submits[-1].sampling.grammar == RegexGrammar("12")


def test_stream(client: MultimodalClient) -> None:
    with client.stream("slowly a red circle") as chunks:
        *deltas, last = chunks
    assert [chunk.text for chunk in deltas] == ["a", " red", " circle"]
    assert [chunk.choices[0].finish_reason for chunk in deltas] == [None, None, "stop"]
    assert (last.choices, last.text, last.usage) == ((), "", UsageCounts(**USAGE))


@pytest.mark.parametrize("text", ["line\u2028separator", "🟥" * 3, "next\u0085line"])
def test_any_character_comes_through(client: MultimodalClient, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    async def say(submit: Submit, words: list[str], send: Send) -> None:
        await echo(submit, [text], send)

    monkeypatch.setitem(SCRIPTS, "say", say)
    with client.stream("say") as chunks:
        assert "".join(chunk.text for chunk in chunks) == text


def test_leaving_early_cancels(client: MultimodalClient, gateway: Gateway) -> None:
    with client.stream("start_and_hang") as chunks:
        assert next(chunks).text == "so far"
    request_id = gateway.worker.submits[-1].request_id
    eventually(lambda: request_id in gateway.worker.cancelled)


async def test_async(async_client: AsyncMultimodalClient) -> None:
    prompts = [f"number {i}" for i in range(20)]
    answers = await asyncio.gather(*(async_client.generate(prompt, [picture()]) for prompt in prompts))
    assert [answer.text for answer in answers] == prompts
    async with async_client.stream("slowly a red circle") as chunks:
        texts = [chunk.text async for chunk in chunks]
    assert texts == ["a", " red", " circle", ""]


async def test_async_leaving_early_cancels(async_client: AsyncMultimodalClient, gateway: Gateway) -> None:
    async def consume() -> None:
        async with async_client.stream("start_and_hang") as chunks:
            async for _ in chunks:
                pass

    consuming = asyncio.create_task(consume())
    running = gateway.worker.running
    await asyncio.to_thread(eventually, lambda: gateway.worker.running > running)
    await asyncio.sleep(0.1)
    consuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consuming
    request_id = gateway.worker.submits[-1].request_id
    await asyncio.to_thread(eventually, lambda: request_id in gateway.worker.cancelled)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_files_travel_as_they_are(client: MultimodalClient, gateway: Gateway, tmp_path: Path, kind: str) -> None:
    data = picture(kind)
    path = tmp_path / "a picture"
    path.write_bytes(data)
    client.generate("look", [data, path, str(path), io.BytesIO(data)])
    assert gateway.worker.submits[-1].pictures == (data,) * 4


def test_one_picture_needs_its_list_too(client: MultimodalClient) -> None:
    with pytest.raises(TypeError, match="must be a list"):
        client.generate("look", "a.png")


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "kind", "type"),
    [
        ("invalid_request", 400, InvalidRequestError, "invalid_request_error"),
        ("invalid_picture", 422, InvalidRequestError, "invalid_request_error"),
        ("model_not_found", 404, InvalidRequestError, "invalid_request_error"),
        ("queue_full", 429, RateLimitError, "rate_limit_error"),
        ("unavailable", 503, ServerError, "server_error"),
        ("deadline_exceeded", 504, ServerError, "server_error"),
        ("internal", 500, ServerError, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_error(
    client: MultimodalClient, code: str, status: int, kind: type[ApiError], type: str, stream: bool
) -> None:
    ask = client.stream(f"fail {code}").__enter__ if stream else partial(client.generate, f"fail {code}")
    with pytest.raises(kind) as caught:
        ask()
    error = caught.value
    assert (error.code, error.status, error.type) == (code, status, type)
    assert error.message == str(error) != ""
    assert error.param == ("prompt" if code == "invalid_request" else None)
    assert error.request_id


def test_refusals_of_the_gateway(client: MultimodalClient) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate("look", temperature=3.0)
    assert (caught.value.status, caught.value.param) == (400, "temperature")
    with pytest.raises(InvalidRequestError) as caught:
        client.generate("look", [np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)])
    assert (caught.value.status, caught.value.code) == (413, "picture_too_large")
    with pytest.raises(InvalidRequestError, match="no such model"):
        client.generate("look", model="another")


def test_failure_in_mid_stream(client: MultimodalClient) -> None:
    with client.stream("fail_late deadline_exceeded") as chunks:
        assert next(chunks).text == "so far"
        with pytest.raises(ServerError) as caught:
            next(chunks)
    assert (caught.value.code, caught.value.status) == ("deadline_exceeded", 200)


def test_timeout(url: str) -> None:
    with MultimodalClient(url, timeout=0.1) as client, pytest.raises(TimedOut):
        client.generate("hang")


def test_text_that_cannot_be_sent(client: MultimodalClient) -> None:
    with pytest.raises(MultimodalError, match="surrogate"):
        client.generate("\ud800")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("127.0.0.1:1", "http://"), ("ftp://x", "http://"), ("http://x:y", "not a URL")],
)
def test_wrong_urls(url: str, complaint: str) -> None:
    with pytest.raises(MultimodalError, match=complaint), MultimodalClient(url, retry=AT_ONCE) as client:
        client.generate("x")


# -- servers that are not ours, or break -------------------------------------------------------------------------------


def canned(*answers: bytes, retry: RetryPolicy = SOON, **options: Any) -> tuple[CannedServer, MultimodalClient]:
    server = CannedServer(*answers)
    return server, MultimodalClient(server.url, retry=retry, **options)


def test_a_proxys_own_error() -> None:
    server, client = canned(http("502 Bad Gateway", "<html>"))
    with server, client, pytest.raises(ServerError, match="HTTP status 502") as caught:
        client.generate("x")
    assert (caught.value.code, caught.value.status) == ("bad_gateway", 502)


@pytest.mark.parametrize("body", ["<html>", "{}", '{"id": 1}'])
def test_another_kind_of_server(body: str) -> None:
    server, client = canned(http("200 OK", body))
    with server, client, pytest.raises(UnexpectedAnswer, match="URL"):
        client.generate("x")


@pytest.mark.parametrize("end", ["", "data: not json\n\n", 'data: {"id": 1}\n\n'])
def test_streams_that_do_not_end_well(end: str) -> None:
    delta = CHUNK % '{"index": 0, "text": "so far", "finish_reason": null}'
    server, client = canned(http("200 OK", f"data: {delta}\n\n{end}"))
    read: list[CompletionChunk] = []
    with server, client, client.stream("x") as chunks, pytest.raises((ConnectionFailed, UnexpectedAnswer)):
        read.extend(chunks)
    assert server.connections == 1


def test_api_key_is_a_bearer_token() -> None:
    server, client = canned(http("200 OK", "data: [DONE]\n\n"), api_key="secret")
    with server, client, client.stream("x") as chunks:
        assert list(chunks) == []
    assert b"authorization: bearer secret\r\n" in server.requests[0].lower()


# -- retries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "asked"), [("queue_full", 1), ("unavailable", 2)])
def test_waits_as_long_as_asked_and_then_longer(
    url: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float], code: str, asked: int
) -> None:
    monkeypatch.setitem(SCRIPTS, "sometimes", fails_first(3, code))
    with MultimodalClient(url) as client:
        assert client.generate("sometimes a circle").text == "a circle"
    bounds = [(asked + backoff / 2, asked + backoff) for backoff in (0.5, 1.0, 2.0)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True))


def test_stream_is_retried_before_its_first_byte(
    url: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setitem(SCRIPTS, "sometimes", fails_first(1, "queue_full"))
    with MultimodalClient(url) as client, client.stream("sometimes a circle", [picture()]) as chunks:
        assert "".join(chunk.text for chunk in chunks) == "a circle"
    assert len(pauses) == 1


async def test_async_waits_for_real(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPTS, "sometimes", fails_first(1, "queue_full"))
    began = time.monotonic()
    async with AsyncMultimodalClient(url, retry=SOON) as client:
        assert (await client.generate("sometimes a circle", [picture()])).text == "a circle"
    assert time.monotonic() - began >= 1


def test_gives_up_in_the_end(url: str, pauses: list[float]) -> None:
    with MultimodalClient(url, retry=RetryPolicy(retries=2)) as client, pytest.raises(RateLimitError):
        client.generate("fail queue_full")
    assert len(pauses) == 2


def test_does_not_wait_for_ever(pauses: list[float]) -> None:
    server, client = canned(http("503 Service Unavailable", "", "Retry-After: 3600"))
    with server, client, pytest.raises(ServerError) as caught:
        client.generate("x")
    assert (pauses, caught.value.retry_after) == ([], 3600)


@pytest.mark.parametrize("code", ["invalid_request", "internal", "deadline_exceeded"])
def test_other_failures_are_final(url: str, pauses: list[float], code: str) -> None:
    with MultimodalClient(url) as client, pytest.raises(ApiError):
        client.generate(f"fail {code}")
    assert pauses == []


def test_connection_comes_back() -> None:
    server, client = canned(b"", b"", http("200 OK", "data: [DONE]\n\n"))
    with server, client, client.stream("x", [picture()]) as chunks:
        assert list(chunks) == []
    assert server.connections == 3
    assert [picture() in request for request in server.requests] == [True] * 3


def test_cut_answer_is_not_asked_for_again() -> None:
    cut = http("200 OK", json.dumps({"id": "gen-1"}))[:-3]
    server, client = canned(cut, cut)
    with server, client, pytest.raises(ConnectionFailed, match="hung up"):
        client.generate("x")
    assert server.connections == 1


def test_nobody_listens(pauses: list[float]) -> None:
    server = CannedServer()
    url = server.url
    with server:
        pass
    with MultimodalClient(url) as client, pytest.raises(ConnectionFailed, match=f"{url} cannot be reached"):
        client.generate("x")
    assert len(pauses) == 4


def test_imports_without_torch_fastapi_and_tritonclient() -> None:
    code = "import sys\nfor name in ('torch', 'fastapi', 'tritonclient', 'app'): sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", f"{code}import clients.ask"], cwd=ROOT, check=True, timeout=30)
