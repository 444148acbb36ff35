"""What pydantic finds wrong, in our own sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.errors import ApiError, bad_request
from app.parameters import GenerationParameters

Model = TypeVar("Model", bound=BaseModel)

SENTENCES = {
    "missing": "is required.",
    "extra_forbidden": "is not known here.",
    "greater_than_equal": "must be at least {ge}.",
    "greater_than": "must be more than {gt}.",
    "less_than_equal": "must be at most {le}.",
    "int_type": "must be an integer.",
    "int_parsing": "must be an integer.",
    "int_parsing_size": "must be a smaller integer.",
    "int_from_float": "must be an integer.",
    "float_type": "must be a number.",
    "float_parsing": "must be a number.",
    "bool_type": "must be true or false.",
    "string_type": "must be a string.",
    "string_too_short": "must not be empty.",
    "string_too_long": "must have at most {max_length} characters.",
    "list_type": "must be a list.",
    "too_long": "must have at most {max_length} entries.",
    "too_short": "must have at least {min_length} entries.",
    "model_type": "must be an object.",
    "dict_type": "must be an object.",
    "model_attributes_type": "must be an object.",
    "literal_error": "must be one of {expected}.",
    "union_tag_invalid": "must have {discriminator} set to one of {expected_tags}.",
    "union_tag_not_found": "must have {discriminator} set.",
    "finite_number": "must be a finite number.",
    "value_error": "{error}",
}


WHOLE = {
    "stop": "must be a string or a list of at most 16 strings, each of 1 to 256 characters.",
    "logit_bias": "must be an object of at most 1024 token ids, as strings, each with a number from -100 to 100.",
}
"""Fields of which pydantic tells each part or branch; a person wants the whole."""


MOST_VALUES = 33_000
"""In the lists and objects of a document: a JSON Schema of the longest that is taken may have as many.

Pydantic describes every fault before it tells the first, and nothing else runs meanwhile: for 300 kB of empty strings
that was four seconds.
"""
MOST_COMMAS = 1_100_000
"""For the same reason, before the body is parsed. Of a prompt as long as is taken, each character may be one."""


def validated(kind: type[Model], document: object) -> Model:
    """``document`` as a ``kind``. Raises :class:`ApiError` for what is wrong with it."""
    if _has_more_values(document, MOST_VALUES):
        raise _too_many_values()
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _api_error(error) from None


def validated_json(kind: type[Model], body: bytes) -> Model:
    return validated(kind, json_document(body))


def json_document(body: bytes) -> Any:
    if body.count(b",") > MOST_COMMAS:
        raise _too_many_values()
    try:
        return from_json(body)
    except ValueError:
        raise bad_request("The body is not valid JSON.") from None


def _has_more_values(document: object, most: int) -> bool:
    found = 0
    waiting = [document]
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found += len(inner)
        if found > most:
            return True
        waiting.extend(inner)
    return False


def _too_many_values() -> ApiError:
    return bad_request(f"The body has too many values: its lists and objects may hold {MOST_VALUES:,} in all.")


def sentence(error: ValidationError) -> tuple[str, str]:
    """The first field at fault, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    name, kind = field_name(first["loc"]), first["type"]
    context: Mapping[str, Any] = first.get("ctx", {})
    field = name.partition(".")[0]
    if field in WHOLE:
        return field, WHOLE[field]
    return name, SENTENCES.get(kind, "is not valid.").format_map(context)


def field_name(loc: Sequence[str | int]) -> str:
    """``images[0].data``; sampling parameters go by their own names wherever they lie.

    Pydantic names a part of a message, or the format of an answer, by its type too: that is no step of the way.
    """
    if len(loc) > 1 and loc[0] == "params":
        loc = loc[1:]
    name = ""
    for position, step in enumerate(loc):
        is_type_of_part = position >= 2 and loc[position - 2] == "content" and isinstance(loc[position - 1], int)
        is_type_of_format = position == 1 and loc[0] == "response_format"
        if not (is_type_of_part or is_type_of_format):
            name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name


def _api_error(error: ValidationError) -> ApiError:
    """The 400 for a body that is not what it should be."""
    name, complaint = sentence(error)
    if not name:
        return bad_request(f"The body {complaint}")
    if complaint == SENTENCES["extra_forbidden"]:
        where = ' Sampling parameters go into "params".' if name in GenerationParameters.model_fields else ""
        return bad_request(f'Unknown parameter "{name}".{where}', name)
    return bad_request(f'"{name}" {complaint}', name)
