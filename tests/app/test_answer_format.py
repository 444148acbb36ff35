"""What an answer must be: ``response_format`` and ``guided_regex``."""

import json
import socket
from typing import Any

import pytest

from app.answer_format import MAX_GRAMMAR_CHARACTERS
from protocol.messages import JsonGrammar, RegexGrammar
from tests.app.conftest import GENERATE, Gateway
from tests.app.test_choices import asking
from tests.app.test_openai_chat import CHAT
from tests.app.test_openai_completions import COMPLETIONS
from tests.app.test_requests import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMA = {"type": "object", "properties": {"größe": {"type": "number"}}, "required": ["größe"]}
PLACE = "response_format.json_schema.schema"


def by_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, **more}}


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("parameters", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonGrammar()),
        ({"response_format": by_schema(SCHEMA, strict=True)}, JsonGrammar(json.dumps(SCHEMA, ensure_ascii=False))),
        ({"response_format": by_schema(SCHEMA, description="x", strict=None)}, JsonGrammar(json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, JsonGrammar()),
        ({"guided_regex": "(yes|no)"}, RegexGrammar("(yes|no)")),
        ({"guided_regex": "7", "response_format": {"type": "text"}}, RegexGrammar("7")),
    ],
)
async def test_grammars(gateway: Gateway, path: str, parameters: dict[str, Any], grammar: Any) -> None:
    answer = await gateway.client.post(path, json=asking(path, "hello", **parameters))
    assert answer.status_code == 200, answer.text
    sent = gateway.worker.submits[-1].sampling.grammar
    if isinstance(grammar, JsonGrammar) and grammar.schema:
        assert isinstance(sent, JsonGrammar)
        assert list(json.loads(sent.schema or "")) == list(SCHEMA), "properties come in the schema's order"
        assert json.loads(sent.schema or "") == SCHEMA
    else:
        assert sent == grammar


async def test_in_a_form(gateway: Gateway) -> None:
    for fields, grammar in (
        ({"response_format": json.dumps({"type": "json_object"})}, JsonGrammar()),
        ({"params": json.dumps({"response_format": by_schema({})})}, JsonGrammar("{}")),
        ({"guided_regex": "12"}, RegexGrammar("12")),
    ):
        parts = {name: (None, value) for name, value in {"prompt": "hello", **fields}.items()}
        assert (await gateway.client.post(GENERATE, files=parts)).status_code == 200
        assert gateway.worker.submits[-1].sampling.grammar == grammar


async def test_a_long_grammar_fits_in_a_form(gateway: Gateway) -> None:
    pattern = "ä" * MAX_GRAMMAR_CHARACTERS
    for fields in ({"guided_regex": pattern}, {"params": json.dumps({"guided_regex": pattern}, ensure_ascii=False)}):
        parts = {name: (None, value) for name, value in {"prompt": "hello", **fields}.items()}
        answer = await gateway.client.post(GENERATE, files=parts)
        assert answer.status_code == 200, answer.text


async def test_text_fields_of_a_form_stay_text(gateway: Gateway) -> None:
    await gateway.client.post(GENERATE, files={"prompt": (None, "hello"), "cache_salt": (None, "true")})
    assert gateway.worker.submits[-1].cache_salt == "true"


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {}}, "response_format", "'type'"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "Unknown"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": by_schema([])}, PLACE, "must be an object"),
        ({"response_format": by_schema({"type": "strnig"})}, PLACE, 'see "type"'),
        ({"response_format": by_schema({"items": {"minimum": "x"}})}, PLACE, 'see "items.minimum"'),
        ({"response_format": by_schema({"x": "y" * MAX_GRAMMAR_CHARACTERS})}, PLACE, "65,536"),
        ({"guided_regex": ""}, "guided_regex", "empty"),
        ({"guided_regex": 5}, "guided_regex", "string"),
        ({"guided_regex": "x" * (MAX_GRAMMAR_CHARACTERS + 1)}, "guided_regex", "65536"),
        ({"guided_regex": "x", "response_format": {"type": "json_object"}}, "guided_regex", "both"),
    ],
)
async def test_refusals(gateway: Gateway, path: str, parameters: dict[str, Any], param: str, words: str) -> None:
    error = await refused(gateway, 400, path, json=asking(path, "x", **parameters))
    assert error["param"] == param
    assert words in error["message"]


async def test_a_schema_is_checked_without_fetching_what_it_names(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema"
        for schema in ({"$schema": url}, {"$ref": url}, {"$id": url}, {"$defs": {"a": {"$schema": url, "$id": url}}}):
            body = asking(CHAT, "hello", response_format=by_schema(schema))
            assert (await gateway.client.post(CHAT, json=body)).status_code == 200
        with pytest.raises(TimeoutError):
            listener.accept()


async def test_a_schema_nested_very_deeply(gateway: Gateway) -> None:
    deep = '{"items":' * 5000 + "{}" + "}" * 5000
    content = json.dumps(asking(CHAT, "x", response_format=by_schema("§"))).replace('"\\u00a7"', deep)
    await refused(gateway, 400, CHAT, content=content, headers={"Content-Type": "application/json"})
