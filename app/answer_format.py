"""``response_format``: what an answer must be, in OpenAI's words."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Literal

from jsonschema_rs import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, field_validator

from protocol.messages import JsonGrammar

MAX_GRAMMAR_CHARACTERS = 64 * 1024
"""Of a JSON Schema and of a regular expression: each request has its own compiled."""

FORMAT = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextFormat(BaseModel):
    """Any text."""

    model_config = FORMAT

    type: Literal["text"]

    def grammar(self) -> None:
        return None


class JsonObjectFormat(BaseModel):
    """A JSON object, whatever is in it."""

    model_config = FORMAT

    type: Literal["json_object"]

    def grammar(self) -> JsonGrammar:
        return JsonGrammar()


class AnswerSchema(BaseModel):
    """A JSON Schema and its name."""

    model_config = FORMAT

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Taken because OpenAI's clients send it; it changes nothing.", examples=["shape"]
    )
    description: str | None = Field(default=None, description="Taken as the name is; the model does not see it.")
    schema_: dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        description="A JSON Schema (draft 2020-12) of at most 65,536 characters; without it, any JSON object will do. "
        "The model does not see it: say in the prompt what is wanted.",
        examples=[{"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}],
    )
    strict: bool | None = Field(default=None, description="Taken as the name is: the schema always holds.")

    @field_validator("schema_")
    @classmethod
    def _is_a_json_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            _check(schema)
        return schema

    def text(self) -> str | None:
        return None if self.schema_ is None else _compact(self.schema_)


class JsonSchemaFormat(BaseModel):
    """JSON that a schema describes."""

    model_config = FORMAT

    type: Literal["json_schema"]
    json_schema: AnswerSchema

    def grammar(self) -> JsonGrammar:
        return JsonGrammar(self.json_schema.text())


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _compact(schema: dict[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _check(schema: dict[str, Any]) -> None:
    """Raises :class:`ValueError` for what no JSON Schema can be; whether it can be kept to is the worker's to say."""
    if len(_compact(schema)) > MAX_GRAMMAR_CHARACTERS:
        raise ValueError(f"must have at most {MAX_GRAMMAR_CHARACTERS:,} characters.")
    fault = next(_meta_schema().iter_errors(schema), None)
    if fault is not None:
        place = ".".join(map(str, fault.instance_path))
        raise ValueError(f'is not a valid JSON Schema: see "{place}" in it.' if place else "is not a JSON Schema.")


@cache
def _meta_schema() -> Draft202012Validator:
    """What JSON Schemas are. Never by a schema's own ``$schema``: the library would fetch what that names."""
    return Draft202012Validator({"$ref": "https://json-schema.org/draft/2020-12/schema"})
