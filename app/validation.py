"""What pydantic finds wrong, in our own sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.errors import ApiError, bad_request
from app.schemas import GenerationParameters

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
    "model_type": "must be an object.",
    "model_attributes_type": "must be an object.",
    "literal_error": "must be one of {expected}.",
    "finite_number": "must be a finite number.",
    "value_error": "{error}",
}


def sentence(error: ValidationError) -> tuple[str, str]:
    """The first field at fault, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    loc, kind = first["loc"], first["type"]
    context: Mapping[str, Any] = first.get("ctx", {})
    if "stop" in loc:  # a union: pydantic tells of each branch, a person wants the whole
        return "stop", "must be a string or a list of at most 16 strings, each of 1 to 256 characters."
    return field_name(loc), SENTENCES.get(kind, "is not valid.").format_map(context)


def field_name(loc: Sequence[str | int]) -> str:
    """``images[0].data``; sampling parameters go by their own names wherever they lie."""
    if len(loc) > 1 and loc[0] == "params":
        loc = loc[1:]
    name = ""
    for step in loc:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name


def api_error(error: ValidationError) -> ApiError:
    """The 400 for a body that is not what it should be."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return bad_request("The body is not valid JSON.")
    name, complaint = sentence(error)
    if not name:
        return bad_request(f"The body {complaint}")
    if first["type"] == "extra_forbidden":
        where = ' Sampling parameters go into "params".' if name in GenerationParameters.model_fields else ""
        return bad_request(f'Unknown parameter "{name}".{where}', name)
    return bad_request(f'"{name}" {complaint}', name)
