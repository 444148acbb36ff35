"""The tables of docs/openai.md and docs/api.md say what the schema says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.openai.schemas import ChatCompletionRequest, CompletionRequest
from app.openapi import ERRORS
from app.parameters import GenerationParameters
from tests.app.conftest import Gateway
from tests.app.test_openai_chat import CHAT
from tests.app.test_openai_completions import COMPLETIONS
from tests.app.test_openai_refusals import unsupported_fields

DOCS = Path(__file__).parents[2] / "docs"


def rows(header: str, page: str = "openai.md") -> list[list[str]]:
    """The cells of the table that begins so."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index(f"| {header} |") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]]


def test_the_parameters_of_generate() -> None:
    fields = GenerationParameters.model_fields
    table = {cells[0].strip("`"): cells[2] for cells in rows("parameter", "api.md")}
    assert table.keys() == fields.keys()
    for name, default in table.items():
        if re.fullmatch(r"[\d.]+|true|false", default):
            assert json.loads(default) == fields[name].default, name
        else:
            assert fields[name].default in (None, [], {}), name


def test_what_works() -> None:
    named = {name for row in rows("works") for name in re.findall(r"`(\w+)`", row[0])}
    fields: set[str] = set()
    for request in (ChatCompletionRequest, CompletionRequest):
        fields |= set(request.model_fields) - unsupported_fields(request.model_json_schema()).keys()
    assert named == fields


@pytest.mark.parametrize(
    ("request_type", "name"), [(ChatCompletionRequest, "chat"), (CompletionRequest, "completions")]
)
def test_what_is_refused(request_type: Any, name: str) -> None:
    said = {
        cells[0].strip("`"): json.loads(cells[2].strip("`") or "null")
        for cells in rows("refused")
        if cells[1] in ("both", name)
    }
    fields = unsupported_fields(request_type.model_json_schema())
    assert said == {field: schema["enum"][0] for field, schema in fields.items()}


@pytest.mark.asyncio(loop_scope="session")
async def test_the_routes_in_the_api_s_document(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    for path, (body, whole, event) in {
        CHAT: ("ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk"),
        COMPLETIONS: ("CompletionRequest", "TextCompletion", "TextCompletionChunk"),
    }.items():
        operation = document["paths"][path]["post"]
        assert path + "/" not in document["paths"]
        json_body = operation["requestBody"]["content"]["application/json"]
        assert json_body["schema"]["$ref"].endswith(f"/{body}")
        for example in json_body["examples"].values():
            assert (await gateway.client.post(path, json=example["value"])).status_code == 200
        answers = operation["responses"]["200"]["content"]
        assert answers["application/json"]["schema"]["$ref"].endswith(f"/{whole}")
        data = answers["text/event-stream"]["schema"]["properties"]["data"]["contentSchema"]
        assert data["anyOf"][0]["$ref"].endswith(f"/{event}")
        assert set(operation["responses"]) == {"200", *map(str, ERRORS)}
        for name, field in document["components"]["schemas"][body]["properties"].items():
            assert field["description"], name
