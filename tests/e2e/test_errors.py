"""Every error a caller can meet, made by the real parts."""

import base64
import contextlib
import io
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.e2e.deployment import Deployment, deployed, picture

ROUTE = "/v1/multimodal/generate"
LONG = {"prompt": "Talk.", "params": {"max_tokens": 3000, "temperature": 0, "ignore_eos": True}}


def check(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    if param is not None:
        assert error["param"].startswith(param)
    message: str = error["message"]
    assert "Traceback" not in message
    assert "/" not in message.replace("/v1/", "")
    return message


def bomb() -> bytes:
    """A small file that says it is a picture of 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "-1"}, "temperature"),
        ({"top_p": "2"}, "top_p"),
        ({"max_tokens": "0"}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"params": '{"beam_width": 3}'}, "beam_width"),
        ({"params": "{"}, "params"),
    ],
)
def test_bad_parameters(client: httpx.Client, fields: dict[str, str], param: str) -> None:
    answer = client.post(ROUTE, data={"prompt": "Hi", **fields}, files={"image": picture()})
    check(answer, 400, "invalid_request", param)


def test_broken_json_and_lone_surrogates(client: httpx.Client) -> None:
    for body in ("{", '{"prompt": "\\ud800"}', "null", "[]", '{"prompt": 3}', "{}"):
        check(client.post(ROUTE, content=body, headers={"content-type": "application/json"}), 400, "invalid_request")


def test_a_prompt_longer_than_the_context(client: httpx.Client) -> None:
    message = check(client.post(ROUTE, json={"prompt": "word " * 5000}), 400, "invalid_request", "prompt")
    assert "4096" in message


def test_more_tokens_than_the_context_has_room_for(client: httpx.Client) -> None:
    answer = client.post(ROUTE, json={"prompt": "Hi", "params": {"max_tokens": 4096}})
    check(answer, 400, "invalid_request", "max_tokens")


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", picture()[:200], picture(form="TIFF"), bomb()],
    ids=["empty", "text", "cut", "tiff", "bomb"],
)
def test_pictures_that_cannot_be_taken(client: httpx.Client, data: bytes) -> None:
    check(client.post(ROUTE, data={"prompt": "Hi"}, files={"image": data}), 422, "invalid_picture", "image")
    encoded = {"prompt": "Hi", "images": [{"data": base64.b64encode(data).decode()}]}
    assert client.post(ROUTE, json=encoded).status_code == 422


def test_an_unknown_model(client: httpx.Client) -> None:
    check(client.post(ROUTE, json={"prompt": "Hi", "model": "gpt"}), 404, "model_not_found", "model")


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    answer = client.post(ROUTE, content=b"x" * (70 * 2**20), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One request at a time, none waiting, and four seconds for it."""
    with deployed(
        tmp_path_factory.mktemp("narrow"),
        "--max_num_seqs",
        "1",
        "--max_queued_requests",
        "0",
        MULTIMODAL_DEADLINE_SECONDS="4",
    ) as deployment:
        yield deployment


def test_a_full_queue(narrow: Deployment) -> None:
    with httpx.stream("POST", narrow.url + ROUTE, json={**LONG, "stream": True}, timeout=60) as running:
        lines = running.iter_lines()  # dropping the iterator would hang up
        next(lines)
        refused = httpx.post(narrow.url + ROUTE, json={"prompt": "Hi", "params": {"max_tokens": 1}})
        check(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
    wait_for_a_place(narrow)


def test_a_deadline(narrow: Deployment) -> None:
    check(httpx.post(narrow.url + ROUTE, json=LONG, timeout=60), 504, "deadline_exceeded")
    wait_for_a_place(narrow)


def wait_for_a_place(narrow: Deployment) -> None:
    """The one place is freed well before the deadline would free it."""
    since = time.monotonic()
    while not httpx.post(narrow.url + ROUTE, json={"prompt": "Hi", "params": {"max_tokens": 1}}).is_success:
        assert time.monotonic() - since < 2.0
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_goes_away_frees_its_place(narrow: Deployment, stream: bool) -> None:
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", narrow.url + ROUTE, json={**LONG, "stream": stream}, timeout=0.7) as answer,
    ):
        next(answer.iter_lines())
    wait_for_a_place(narrow)
