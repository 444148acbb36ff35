"""Requests made from the OpenAPI document, right ones and wrong ones: each answer is one that the document promises.

Routes that the document has are tested without being named here. To look closer: ``st run URL/openapi.json``.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.app.conftest import GENERATE
from tests.app.test_choices import asking
from tests.app.test_generate import chunks
from tests.app.test_openai_chat import CHAT
from tests.app.test_openai_completions import COMPLETIONS
from tests.clients.rest_gateway import gateway_in_thread

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# What the schema cannot say is refused too: pictures that are none, parameters that contradict each other.
NOT_CHECKED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with gateway_in_thread(max_body_bytes=200_000) as gateway:
        yield f"http://127.0.0.1:{gateway.port}"


# OpenAI's generating routes share their fields with ours, and coverage takes most of the time.
@pytest.mark.parametrize(
    "phases", [["coverage", "--exclude-path-regex", "completions"], ["examples,fuzzing"]], ids=["coverage", "fuzzing"]
)
def test_answers_are_as_documented(url: str, phases: list[str], tmp_path: Path) -> None:
    """``coverage`` tries each field's limits, types and absence, and other methods; ``fuzzing`` draws at random."""
    command = [SCHEMATHESIS, "run", f"{url}/openapi.json", "--phases", *phases, "--exclude-checks", NOT_CHECKED]
    bounded = ["--max-examples", "5", "--no-shrink", "--generation-deterministic", "--workers", "2"]
    done = subprocess.run([*command, *bounded, "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
def test_events_are_as_documented(url: str, path: str) -> None:
    """Schemathesis takes an event's ``data`` for mere text."""
    document: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    answers = document["paths"][path]["post"]["responses"]["200"]["content"]
    data = answers["text/event-stream"]["schema"]["properties"]["data"]["contentSchema"]
    likeliest: dict[str, Any] = {"logprobs": 2} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    usage: dict[str, Any] = {} if path == GENERATE else {"stream_options": {"include_usage": True}}
    asked = asking(path, "a b", stream=True, n=2, return_token_ids=True, **likeliest, **usage)
    events = chunks(httpx.post(f"{url}{path}", json=asked).text)
    failure = chunks(httpx.post(f"{url}{path}", json=asking(path, "fail_late internal", stream=True)).text)[-1:]
    (chunk, *_, error) = ({"components": document["components"], **branch} for branch in data["anyOf"])
    for event, schema in [(event, chunk) for event in events] + [(event, error) for event in failure]:
        jsonschema_rs.validate(schema, event)
    assert events[-1]["usage"]
    assert failure[0]["error"]
