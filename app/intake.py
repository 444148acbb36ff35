"""From an HTTP request to one checked generate call: a form and a JSON body say the same things."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from app.errors import ApiError, bad_request
from app.multipart import Part, read_parts
from app.pictures import Picture, check_bytes, check_pictures
from app.schemas import GenerateBody, GenerationParameters
from app.settings import Settings
from app.validation import api_error

Model = TypeVar("Model", bound=BaseModel)

PARAMETERS = frozenset(GenerationParameters.model_fields)
TEXT_FIELDS = frozenset({"prompt", "model", "params"})
FORM_FIELDS = PARAMETERS | TEXT_FIELDS
MAX_FIELD_BYTES = 64 * 1024
"""For every form field but ``prompt`` and ``image``."""


@dataclass(frozen=True)
class GenerateCall:
    """What was asked, however it was sent."""

    prompt: str
    pictures: list[Picture]
    parameters: GenerationParameters
    model: str | None


async def read_generate_call(request: Request, settings: Settings) -> GenerateCall:
    """Raises :class:`ApiError` for whatever is wrong with the request, before the worker hears of it."""
    content_type = request.headers.get("content-type", "")
    match content_type.partition(";")[0].strip().lower():
        case "multipart/form-data":
            call = _from_form(await _read_form(request, content_type, settings))
        case "application/json":
            body = await request.body()
            call = await asyncio.to_thread(_from_json, body)
        case _:
            message = "Send multipart/form-data or application/json."
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    if len(call.prompt) > settings.max_prompt_characters:
        raise bad_request(f'"prompt" must have at most {settings.max_prompt_characters:,} characters.', "prompt")
    if len(call.pictures) > settings.max_pictures:
        raise bad_request(f"At most {settings.max_pictures} pictures are taken.", call.pictures[-1].field)
    if call.pictures:
        await asyncio.to_thread(check_pictures, call.pictures, settings)
    return call


def _from_json(data: bytes) -> GenerateCall:
    body = _validated(GenerateBody, data)
    parameters = body.params
    if body.stream is not None:
        if "stream" in parameters.model_fields_set and parameters.stream != body.stream:
            raise _conflict("stream")
        parameters = parameters.model_copy(update={"stream": body.stream})
    pictures = [_decoded(picture.data, f"images[{i}]") for i, picture in enumerate(body.images)]
    return GenerateCall(body.prompt, pictures, parameters, body.model)


def _decoded(data: str, field: str) -> Picture:
    try:
        return Picture(base64.b64decode(data, validate=True), field)
    except (binascii.Error, ValueError):
        raise bad_request(f'"{field}.data" is not valid base64.', f"{field}.data") from None


async def _read_form(request: Request, content_type: str, settings: Settings) -> list[Part]:
    def check_size(part: Part) -> None:
        if part.name == "image":
            check_bytes(len(part.data), "image", settings)
            return
        limit = 4 * settings.max_prompt_characters if part.name == "prompt" else MAX_FIELD_BYTES
        if len(part.data) > limit:
            raise bad_request(f'"{part.name}" is too long.', part.name)

    max_parts = settings.max_pictures + len(FORM_FIELDS) + 16  # stop may come 16 times
    return await read_parts(content_type, request.stream(), max_parts=max_parts, check_size=check_size)


def _from_form(parts: list[Part]) -> GenerateCall:
    """Browsers send the fields that were left empty too: they count as not given."""
    pictures: list[Picture] = []
    texts: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name == "image":
            if part.data or part.has_file_name:
                pictures.append(Picture(bytes(part.data), f"image[{len(pictures)}]"))
        elif part.name not in FORM_FIELDS:
            raise bad_request(f'Unknown parameter "{part.name}".', part.name)
        elif not part.data:
            continue
        elif part.name == "stop":
            fields.setdefault("stop", []).append(_text(part))
        elif part.name in texts or part.name in fields:
            raise bad_request(f'"{part.name}" is given more than once.', part.name)
        elif part.name in TEXT_FIELDS:
            texts[part.name] = _text(part)
        else:
            fields[part.name] = _json_value(_text(part))
    if not texts.get("prompt"):
        raise bad_request('"prompt" is required.', "prompt")
    parameters = _validated(GenerationParameters, _merged(_params_object(texts.get("params")), fields))
    return GenerateCall(texts["prompt"], pictures, parameters, texts.get("model"))


def _merged(params: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Both ways to give a parameter in a form; given both ways it must be the same."""
    for name, value in fields.items():
        if name == "stop" and isinstance(params.get(name), str):
            value = value[0] if len(value) == 1 else value
        if name in params and params[name] != value:
            raise _conflict(name)
    return params | fields


def _params_object(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        params = from_json(text)
    except ValueError:
        raise bad_request('"params" is not valid JSON.', "params") from None
    if not isinstance(params, dict):
        raise bad_request('"params" must be a JSON object.', "params")
    return params


def _json_value(text: str) -> Any:
    """``40``, ``0.5`` and ``true`` as in JSON; what is none of these stays text, for the validator to name."""
    try:
        return from_json(text)
    except ValueError:
        return text


def _text(part: Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise bad_request(f'"{part.name}" is not valid UTF-8.', part.name) from None


def _validated(kind: type[Model], data: bytes | dict[str, Any]) -> Model:
    try:
        return kind.model_validate_json(data) if isinstance(data, bytes) else kind.model_validate(data)
    except ValidationError as error:
        raise api_error(error) from None


def _conflict(name: str) -> ApiError:
    return bad_request(f'"{name}" is given twice, with different values.', name)
