"""One request and its answer, through gateway, Triton, front and engine."""

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from tests.e2e.deployment import MODEL, Deployment, picture

ROUTE = "/v1/multimodal/generate"
GREEDY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def ask(client: httpx.Client, prompt: str, *pictures: bytes, **params: Any) -> dict[str, Any]:
    images = [{"data": base64.b64encode(data).decode()} for data in pictures]
    answer = client.post(ROUTE, json={"prompt": prompt, "images": images, "params": {**GREEDY, **params}})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def text(answer: dict[str, Any]) -> str:
    result: str = answer["choices"][0]["text"]
    return result


def events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def counts(answer: dict[str, Any]) -> dict[str, int]:
    """The usage, but for what earlier requests left in the cache."""
    return {name: count for name, count in answer["usage"].items() if name != "cached_tokens"}


def test_a_batch_answers_as_its_prompts_alone_do(client: httpx.Client) -> None:
    prompts = ["What is this?", "And this one?", "Nothing to see."]
    pictures = [[picture()], [picture("blue", form="JPEG"), picture("green")], []]
    alone = [ask(client, prompt, *shown) for prompt, shown in zip(prompts, pictures, strict=True)]
    images = [[{"data": base64.b64encode(data).decode()} for data in shown] for shown in pictures]
    body = {
        "prompts": [*prompts, "word " * 5000],
        "images": [*images, [{"data": base64.b64encode(picture()).decode()}]],
        "params": GREEDY,
    }
    answer = client.post(ROUTE, json=body).json()
    *answered, failed = answer["answers"]
    assert [(one["choices"], counts(one)) for one in answered] == [(one["choices"], counts(one)) for one in alone]
    assert (failed["error"]["code"], failed["error"]["param"]) == ("invalid_request", "prompt")
    assert answer["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in alone)
    told: dict[int, str] = {}
    for event in events(client.post(ROUTE, json={**body, "stream": True}).text):
        for choice in event.get("choices", ()):
            told[event["prompt_index"]] = told.get(event["prompt_index"], "") + choice["text"]
    assert told == {index: text(one) for index, one in enumerate(alone)}


def test_multipart_json_and_stream_say_the_same(client: httpx.Client) -> None:
    image = picture()
    as_json = ask(client, "What is this?", image, return_token_ids=True)
    files = [("image", ("x.png", image, "image/png"))]
    as_form = client.post(
        ROUTE,
        files=files,
        data={"prompt": "What is this?", "params": json.dumps({**GREEDY, "return_token_ids": True})},
    ).json()
    as_fields = client.post(
        ROUTE,
        files=files,
        data={
            "prompt": "What is this?",
            "max_tokens": "12",
            "temperature": "0",
            "ignore_eos": "true",
            "return_token_ids": "true",
        },
    ).json()
    for answer in (as_form, as_fields):
        assert answer["choices"] == as_json["choices"]
        assert counts(answer) == counts(as_json)
        assert answer["prompt_token_ids"] == as_json["prompt_token_ids"]
    streamed = client.post(
        ROUTE, files=files, data={"prompt": "What is this?", "params": json.dumps({**GREEDY, "stream": True})}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = events(streamed.text)
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == text(as_json)
    assert counts(chunks[-1]) == counts(as_json)
    assert len(chunks) > 2, "the deltas came in one piece"
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "length"


def test_the_answer_is_a_typed_completion(client: httpx.Client) -> None:
    answer = ask(client, "What is this?", picture(size=(112, 84)), return_token_ids=True)
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["usage"]["image_tokens"] == 4 * 3
    assert answer["usage"]["completion_tokens"] == 12 == len(answer["choices"][0]["token_ids"])
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 12
    assert "prompt_token_ids" not in ask(client, "What is this?")


def test_pictures_are_taken_in_order(client: httpx.Client) -> None:
    red, blue = picture("red", (112, 56)), picture("blue", (56, 112), "JPEG")
    both = ask(client, "Compare.", red, blue)
    assert both["usage"]["image_tokens"] == 16
    assert text(both) == text(ask(client, "Compare.", red, blue))
    assert text(both) != text(ask(client, "Compare.", blue, red))
    assert text(both) != text(ask(client, "Compare.", red, red))


def test_text_alone_is_answered(client: httpx.Client) -> None:
    answer = ask(client, "Hello!")
    assert answer["usage"]["image_tokens"] == 0
    assert text(answer)


def test_special_tokens_in_a_prompt_are_text(client: httpx.Client) -> None:
    answer = ask(client, "<|vision_start|><|image_pad|><|vision_end|><|im_end|>", return_token_ids=True)
    assert answer["usage"]["image_tokens"] == 0
    harmless = ask(client, "x", return_token_ids=True)
    special = [[i for i in a["prompt_token_ids"] if i >= 400] for a in (answer, harmless)]
    assert special[0] == special[1]


def test_a_stop_string_ends_the_text(client: httpx.Client) -> None:
    whole = text(ask(client, "Go on.", max_tokens=40))
    stop = whole[6:9]
    answer = ask(client, "Go on.", max_tokens=40, stop=[stop])
    assert text(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_seed_repeats_and_others_differ(client: httpx.Client) -> None:
    hot = {"temperature": 1.5, "max_tokens": 20}
    first = text(ask(client, "Say something.", **hot, seed=5))
    assert first == text(ask(client, "Say something.", **hot, seed=5))
    assert first != text(ask(client, "Say something.", **hot, seed=6))
    assert text(ask(client, "Say something.", **hot)) != text(ask(client, "Say something.", **hot))


async def test_concurrent_requests_each_get_their_own_answer(tiny: Deployment) -> None:
    colors = ["red", "green", "blue", "black"]
    requests = [
        {
            "prompt": f"Question {i}: " + "why? " * (i % 5),
            "images": [
                {"data": base64.b64encode(picture(colors[j % 4], (56 + 28 * (i % 3), 56 + 28 * j))).decode()}
                for j in range(i % 3)
            ],
            "params": {
                "max_tokens": 5 + 3 * i,
                "temperature": [0, 0.7, 1.3][i % 3],
                "top_k": [0, 5, 40][(i // 3) % 3],
                "top_p": [1.0, 0.9][i % 2],
                "seed": i,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        }
        for i in range(16)
    ]
    async with httpx.AsyncClient(base_url=tiny.url, timeout=120) as client:

        async def answer(request: dict[str, Any]) -> Any:
            response = await client.post(ROUTE, json=request)
            assert response.status_code == 200, response.text
            body = response.json()
            return body["choices"], counts(body)

        alone = [await answer(request) for request in requests]
        together = await asyncio.gather(*map(answer, requests))
    assert together == alone
    assert len({json.dumps(choices) for choices, _ in alone}) == 16


@pytest.mark.parametrize("route", ["/v1/health", "/health/ready", "/v1/models", "/openapi.json", "/docs", "/"])
def test_the_other_routes_answer(client: httpx.Client, route: str) -> None:
    answer = client.get(route)
    assert answer.status_code == 200
    if route == "/v1/models":
        assert [model["id"] for model in answer.json()["data"]] == [MODEL]
