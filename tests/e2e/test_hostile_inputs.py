"""Inputs that hurt, sent to the real servers: each gets its answer, and the next caller does not notice."""

import json

import httpx
import pytest

from tests.e2e.deployment import Deployment, picture
from tests.hostile_inputs import NAMED, SPECIAL

ROUTE = "/v1/multimodal/generate"
GREEDY = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
TEXTS = [*SPECIAL, "\0", "\ud800", "\udfff\ud800", " " * 100_000, "漢" * 900_000, "e\u0301" * 1000, "\ufffe\uffff"]


@pytest.fixture(scope="module")
def log_before(tiny: Deployment) -> str:
    return tiny.log


@pytest.fixture(scope="module")
def usual(tiny: Deployment, log_before: str) -> httpx.Response:
    return ask_usual(tiny)


def ask_usual(tiny: Deployment) -> httpx.Response:
    fields = {"prompt": "What is this?", "params": json.dumps(GREEDY)}
    return httpx.post(tiny.url + ROUTE, data=fields, files={"image": picture()}, timeout=60)


def check(tiny: Deployment, usual: httpx.Response, answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    again = ask_usual(tiny)
    assert again.json()["choices"] == usual.json()["choices"]


@pytest.mark.parametrize("name", list(NAMED))
def test_pictures(tiny: Deployment, usual: httpx.Response, name: str) -> None:
    fields = {"prompt": "What is this?", "params": json.dumps(GREEDY)}
    check(tiny, usual, httpx.post(tiny.url + ROUTE, data=fields, files={"image": NAMED[name]}, timeout=60))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts(tiny: Deployment, usual: httpx.Response, text: str) -> None:
    body = json.dumps({"prompt": text, "params": GREEDY})
    headers = {"Content-Type": "application/json"}
    check(tiny, usual, httpx.post(tiny.url + ROUTE, content=body, headers=headers, timeout=60))


def test_no_traceback_was_logged(tiny: Deployment, log_before: str) -> None:
    assert "Traceback" not in tiny.log[len(log_before) :]
