"""What is asked reaches the worker, and its answer reaches the caller."""

import asyncio
import base64
import json
from typing import Any

import pytest

from protocol.messages import PicturePart, SamplingParameters, Submit, TextPart
from tests.app.conftest import GENERATE, Gateway, gateway_with, picture, until
from tests.app.scripted_worker import MODEL, ScriptedWorker

pytestmark = pytest.mark.asyncio(loop_scope="session")


USAGE = {"prompt_tokens": 10, "image_tokens": 0, "cached_tokens": 2, "completion_tokens": 3, "total_tokens": 13}


async def test_answer_is_a_typed_completion(gateway: Gateway) -> None:
    answer = (await gateway.generate("a red circle")).json()
    assert answer.pop("id").startswith("gen-")
    assert answer.pop("created") > 1_600_000_000
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "a red circle", "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 10,
            "image_tokens": 0,
            "cached_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 13,
        },
    }


async def test_token_ids_when_asked_for(gateway: Gateway) -> None:
    answer = (await gateway.generate("a red circle", return_token_ids=True)).json()
    assert answer["choices"][0]["token_ids"] == [100, 101, 102]
    assert answer["prompt_token_ids"] == [1, 2, 3]


async def test_pictures_come_before_the_prompt_in_their_order(gateway: Gateway) -> None:
    first, second = picture(color="red"), picture("JPEG", color="blue")
    files = [("image", ("b.png", first)), ("image", ("a.jpg", second))]
    answer = await gateway.client.post(GENERATE, data={"prompt": "what is this?"}, files=files)
    assert answer.json()["usage"]["image_tokens"] == 8
    submit = gateway.worker.submits[-1]
    assert submit.pictures == (first, second)
    assert submit.messages[0].role == "user"
    assert submit.messages[0].content == (PicturePart(0), PicturePart(1), TextPart("what is this?"))
    assert submit.deadline_seconds == 60


EVERY_PARAMETER: dict[str, Any] = {
    "max_tokens": 40,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.9,
    "seed": -7,
    "stop": ["a", "b"],
    "ignore_eos": True,
    "return_token_ids": True,
}


async def test_form_fields_params_and_json_say_the_same(gateway: Gateway, png: bytes) -> None:
    prompt = "the same"
    fields = {k: v if k == "stop" else json.dumps(v) for k, v in EVERY_PARAMETER.items()}
    image = {"image": ("x.png", png)}
    asks: list[dict[str, Any]] = [
        {"data": {"prompt": prompt, "params": json.dumps(EVERY_PARAMETER)}, "files": image},
        {"data": {"prompt": prompt, **fields}, "files": image},
        {"data": {"prompt": prompt, "params": json.dumps(EVERY_PARAMETER), **fields}, "files": image},
        {
            "json": {
                "prompt": prompt,
                "images": [{"data": base64.b64encode(png).decode()}],
                "params": EVERY_PARAMETER,
                "model": MODEL,
            }
        },
    ]
    submits: list[Submit] = []
    for ask in asks:
        assert (await gateway.client.post(GENERATE, **ask)).status_code == 200
        submits.append(gateway.worker.submits[-1])
    first = submits[0]
    assert first.sampling == SamplingParameters(
        max_tokens=40, temperature=0.5, top_k=5, top_p=0.9, seed=-7, stop=("a", "b"), ignore_eos=True
    )
    assert first.return_prompt_token_ids
    for submit in submits:
        assert (submit.sampling, submit.messages, submit.pictures) == (first.sampling, first.messages, first.pictures)


async def test_defaults_are_those_of_the_protocol(gateway: Gateway) -> None:
    await gateway.generate("hello")
    assert gateway.worker.submits[-1].sampling == SamplingParameters()


@pytest.mark.parametrize(("stop", "sent"), [("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())])
async def test_stop_is_a_string_or_several(gateway: Gateway, stop: Any, sent: tuple[str, ...]) -> None:
    assert (await gateway.generate("hello", stop=stop)).status_code == 200
    assert gateway.worker.submits[-1].sampling.stop == sent


async def test_stop_in_a_form_is_text_whatever_it_looks_like(gateway: Gateway) -> None:
    await gateway.client.post(GENERATE, files={"prompt": (None, "hello"), "stop": (None, "1")})
    assert gateway.worker.submits[-1].sampling.stop == ("1",)


async def test_text_is_passed_on_as_it_is(gateway: Gateway) -> None:
    prompt = "<|image_pad|> \0 naïve 🟥\r\n{{x}}"
    await gateway.client.post(GENERATE, files={"prompt": (None, prompt)})
    assert gateway.worker.submits[-1].messages[0].content == (TextPart(prompt),)


async def test_empty_form_fields_are_not_given(gateway: Gateway) -> None:
    parts: Any = [("prompt", (None, "hello")), ("image", ("", b""))]
    parts += [(name, (None, "")) for name in ("params", "model", "temperature", "stop", "stream")]
    answer = await gateway.client.post(GENERATE, files=parts)
    assert answer.status_code == 200
    assert gateway.worker.submits[-1].pictures == ()
    assert gateway.worker.submits[-1].sampling == SamplingParameters()


async def test_each_of_many_gets_its_own_answer() -> None:
    async with gateway_with() as gateway:

        async def ask(i: int) -> tuple[str, str]:
            prompt = f"slowly request {i} " + " ".join(f"w{i}.{j}" for j in range(i % 7))
            stream = i % 2 == 0
            reply = await gateway.generate(prompt, stream=stream, seed=i)
            if stream:
                return prompt, "".join(c["choices"][0]["text"] for c in chunks(reply.text) if c["choices"])
            return prompt, reply.json()["choices"][0]["text"]

        answers = await asyncio.gather(*(ask(i) for i in range(64)))
        for prompt, text in answers:
            assert text == prompt.strip().removeprefix("slowly ")
        assert sorted(submit.sampling.seed or 0 for submit in gateway.worker.submits) == list(range(64))


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_submits_go_together_and_cancels_do_not_wait_for_pictures() -> None:
    worker = ScriptedWorker()
    worker.call_seconds = 0.05
    async with gateway_with(worker) as gateway:
        await asyncio.gather(*(gateway.generate(f"number {i}") for i in range(40)))
        calls = [control for control in worker.controls if control.messages]
        assert len(calls) <= 4
        assert len(worker.submits) == 40


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_request", 400, "invalid_request_error"),
        ("model_not_found", 404, "invalid_request_error"),
        ("invalid_picture", 422, "invalid_request_error"),
        ("queue_full", 429, "rate_limit_error"),
        ("internal", 500, "server_error"),
        ("unavailable", 503, "server_error"),
        ("deadline_exceeded", 504, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_failure_has_its_status(gateway: Gateway, code: str, status: int, kind: str, stream: bool) -> None:
    answer = await gateway.generate(f"fail {code}", stream=stream)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, kind)
    assert error["param"] == ("prompt" if code == "invalid_request" else None)
    assert ("Scripted" in error["message"]) == (code != "internal")
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_a_request_ended_by_the_worker_can_be_sent_again(gateway: Gateway) -> None:
    assert (await gateway.generate("give_up")).status_code == 503


async def test_deadline_is_kept_even_if_the_worker_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.session.DEADLINE_GRACE_SECONDS", 0.1)
    async with gateway_with(deadline_seconds=0.1) as gateway:
        answer = await gateway.generate("hang")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        await until(lambda: gateway.worker.submits[-1].request_id in gateway.worker.cancelled)
