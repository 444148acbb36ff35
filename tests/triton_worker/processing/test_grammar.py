"""Grammars are refused with a sentence of ours, however hostile they are; what passes here the engine can follow."""

import json
import re

import pytest

from protocol.messages import ErrorCode, Grammar, JsonGrammar, RegexGrammar
from triton_worker.processing.grammar import LONGEST_GRAMMAR, check_grammar
from triton_worker.processing.refusal import RequestRefused


def schema(**fields: object) -> JsonGrammar:
    return JsonGrammar(json.dumps(fields))


LOOP = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
BRANCHES = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "string"}}


@pytest.mark.parametrize(
    "grammar",
    [
        JsonGrammar(),
        schema(type="object", properties={"name": {"type": "string"}, "age": {"type": "integer"}}, required=["name"]),
        schema(**{"$ref": "#/$defs/d0", "$defs": BRANCHES}),
        schema(type="object", properties={"left": {"$ref": "#"}, "right": {"$ref": "#"}}),
        RegexGrammar(r"[A-Z]\w+ (is|was) \d{1,3} years old\."),
        RegexGrammar("(a+)+b"),
        RegexGrammar("^(a|aa)+$"),
    ],
)
def test_what_can_be_followed_passes(grammar: Grammar) -> None:
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (JsonGrammar("{"), "not valid"),
        (JsonGrammar('"text"'), "not valid"),
        (JsonGrammar('{"items":' * 5000 + "{}" + "}" * 5000), "too complex"),
        (schema(type="potato"), "not valid"),
        (schema(type="array", uniqueItems=True, contains={}), "not supported: contains, uniqueItems"),
        (schema(**{"if": {}, "x-guidance": {"lenient": True}}), "not supported: if"),
        (schema(**{"$ref": "file:///etc/passwd"}), "not valid"),
        (schema(**{"$ref": "#"}), "no answer can fit"),
        (schema(**{"$ref": "#/$defs/a", "$defs": LOOP}), "no answer can fit"),
        (schema(type="integer", minimum=5, maximum=3), "no answer can fit"),
        (schema(type="array", minItems=2**62), "too complex"),  # takes all memory where nothing stops it
        (schema(type="array", maxItems=1_000_000), "too complex"),
        (schema(type="object", properties={f"p{i}": {"type": "string"} for i in range(1000)}), "too complex"),
        (RegexGrammar("(a"), "not valid"),
        (RegexGrammar(r"(a)\1"), "not valid"),
        (RegexGrammar("(?=a)b"), "not valid"),
        (RegexGrammar(r"[^\s\S]"), "no answer can fit"),
        (RegexGrammar("(a?){0}"), "no answer can fit"),
        (RegexGrammar("b((((a{100}){100}){100}){100}){100}"), "too complex"),
        (RegexGrammar("a" * (LONGEST_GRAMMAR + 1)), "characters"),
    ],
)
def test_what_cannot_is_refused_with_a_sentence_of_ours(grammar: Grammar, why: str) -> None:
    with pytest.raises(RequestRefused, match=re.escape(why)) as refused:
        check_grammar(grammar)
    error = refused.value.error
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.param == ("response_format" if isinstance(grammar, JsonGrammar) else "guided_regex")
    assert error.message.endswith(".")
    assert len(error.message) < 150
    assert "passwd" not in error.message
