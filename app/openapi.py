"""What the OpenAPI document says beyond the types: two body formats, event streams, the errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app import __version__
from app.middleware.authentication import OPEN_PATHS
from app.parameters import GenerationParameters
from app.schemas import (
    LINKS,
    BatchBody,
    BatchChunk,
    BatchErrorEvent,
    CompletionChunk,
    ErrorAnswer,
    GenerateBody,
)
from protocol.pictures import FORMATS_IN_WORDS

REF = "#/components/schemas/{model}"

DESCRIPTION = """Vision-language generation: pictures and text in, text out.

Every error has the form `{"error": {"message", "type", "param", "code"}}`; `param` names the field at fault.
Send `X-Request-Id` to find a request again in the log; it is returned with each answer."""

ERRORS = {
    400: "The request is malformed; `param` names the field.",
    401: "An API key is needed, or the one that was sent is not valid (where the server has keys).",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body or a picture is too large.",
    415: "The body has another content type than this route takes.",
    422: "A picture cannot be taken: unreadable, too many pixels, an unsupported format, or not to be had at its URL.",
    429: "Too many requests: of this caller, or in all. `Retry-After` says when to try again.",
    500: "The server failed. The fault is logged under the request's `X-Request-Id`.",
    503: "The model server is away or starting, or there are too many connections. `Retry-After` says how long.",
    504: "The answer was not complete within the time limit.",
}

STREAM_ENDS = (
    'A failure in mid-stream is an event `data: {"error": …}`, and the stream ends without `[DONE]`. '
    "A caller that hangs up ends its generation."
)

RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _error_response(status) for status in statuses}


def _error_response(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"model": ErrorAnswer, "description": ERRORS[status]}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        response["headers"] = RETRY_AFTER
    return response


def generation_responses(example: str, *chunks: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Those of a generating route whose events are ``chunks``; the whole answer is the route's response model."""
    events = {
        "schema": {
            "type": "object",
            "description": "One event. The last one's `data` is `[DONE]`, that of the others JSON.",
            "required": ["data"],
            "properties": {
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": one_of(*chunks, ErrorAnswer),
                },
            },
        },
        "example": f"data: {example}\n\ndata: [DONE]\n\n",
    }
    return {
        200: {"description": "The answer, whole or as events.", "content": {"text/event-stream": events}},
        **error_responses(*ERRORS),
    }


def one_of(*models: type[BaseModel]) -> dict[str, Any]:
    """The schema of what is one of ``models``."""
    schemas = [{"$ref": REF.format(model=model.__name__)} for model in models]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _form_schema() -> dict[str, Any]:
    """The multipart body: the fields of ``GenerateBody``, pictures as they are, and each parameter on its own too."""
    body = GenerateBody.model_json_schema(ref_template=REF)["properties"]
    parameters = GenerationParameters.model_json_schema(ref_template=REF)["properties"]
    return {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "image": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": f"The pictures ({FORMATS_IN_WORDS}), in prompt order.",
            },
            "image_url": {
                "type": "array",
                "items": {"type": "string"},
                "description": f"Pictures as data URLs. {LINKS} In prompt order with `image`.",
                "examples": [[]],
            },
            "prompt": body["prompt"],
            "params": {
                "type": "string",
                "description": "Sampling parameters as a JSON object (see `GenerationParameters`).",
                "examples": ['{"max_tokens": 40, "temperature": 0}'],
            },
            "model": _form_field(body["model"]),
            **{name: _form_field(schema) for name, schema in parameters.items()},
        },
        "additionalProperties": False,
    }


def _form_field(schema: dict[str, Any]) -> dict[str, Any]:
    """The empty example keeps the field out: Swagger UI sends what it shows, and shows something made up otherwise."""
    field = {key: value for key, value in schema.items() if key != "default"}
    if "default" in schema:
        field["description"] += f" Default: {json.dumps(schema['default'])}."
    if isinstance(field.get("type"), list):  # a form has no null
        field["type"] = field["type"][0]
    if "anyOf" in field:  # the last but null: of stop the list, which is the field repeated
        field |= field.pop("anyOf")[-2]
    return field | {"examples": [[] if field.get("type") == "array" else ""]}


GENERATE_OPERATION: dict[str, Any] = {
    "summary": "Answer a question about pictures",
    "description": (
        "Send a form (`image`, `prompt`, `params`; each parameter may also be a field of its own, `stop` several "
        "times; an empty field counts as not given) or the same as JSON. A parameter given twice must have the same "
        "value. JSON with `prompts` is a batch: in the order of the prompts, the completion or the error that each "
        "would have got alone. Its status is 200 if one was answered, else that of the first error. "
        "With `stream`, the answer is server-sent events: chunks as tokens are generated, a last chunk without "
        f"choices that carries `usage`, then `data: [DONE]`. {STREAM_ENDS}"
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _form_schema()},
                "application/json": {
                    "schema": one_of(GenerateBody, BatchBody),
                    "examples": {
                        "text": {
                            "summary": "Text only",
                            "value": {"prompt": "Say hello.", "params": {"max_tokens": 20, "temperature": 0}},
                        },
                        "picture": {
                            "summary": "A picture of one pixel",
                            "value": {
                                "prompt": "What is in this image?",
                                "images": [{"data": "R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs="}],
                                "params": {"max_tokens": 40},
                            },
                        },
                        "batch": {
                            "summary": "Several prompts",
                            "value": {
                                "prompts": ["Say hello.", "What is in this image?"],
                                "images": [[], [{"data": "R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs="}]],
                                "params": {"max_tokens": 40},
                            },
                        },
                    },
                },
            },
        }
    },
    "responses": generation_responses(
        '{"id": "gen-…", "choices": [{"index": 0, "text": "A red", …}], …}',
        CompletionChunk,
        BatchChunk,
        BatchErrorEvent,
    ),
}


def install_openapi(app: FastAPI, models: Sequence[type[BaseModel]], *, needs_key: bool) -> None:
    """Makes ``app.openapi`` include ``models``, which no route declares: events, and bodies that are read by hand."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=__version__, description=DESCRIPTION, routes=app.routes)
            components = schema["components"]["schemas"]
            for model in models:
                own = model.model_json_schema(ref_template=REF)
                components.update(own.pop("$defs", {}))
                components[model.__name__] = own
            if needs_key:
                _add_security(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_security(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    for path in OPEN_PATHS & schema["paths"].keys():
        for operation in schema["paths"][path].values():
            operation["security"] = []
