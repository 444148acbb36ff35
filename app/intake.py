"""From an HTTP request to one checked generate call: a form and a JSON body say the same things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.requests import Request

from app.answer_format import MAX_GRAMMAR_CHARACTERS
from app.data_url import from_picture_url
from app.errors import ApiError, bad_request
from app.large import in_thread_if
from app.multipart import Part, read_parts
from app.parameters import GenerationParameters
from app.pictures import AskedPicture, Picture, check_bytes, from_base64
from app.schemas import BatchBody, GenerateBody, PictureSource
from app.settings import Settings
from app.validation import json_document, validated

PARAMETERS = frozenset(GenerationParameters.model_fields)
TEXT_PARAMETERS = frozenset({"guided_regex", "cache_salt"})
TEXT_FIELDS = frozenset({"prompt", "model", "params"})
FORM_FIELDS = PARAMETERS | TEXT_FIELDS
MAX_FIELD_BYTES = 5 * MAX_GRAMMAR_CHARACTERS
"""For every form field but ``prompt`` and ``image``: a grammar, a character of which may take four bytes, fits."""

Result = TypeVar("Result")

_LARGE_BYTES = 16 * 1024
"""To read so much JSON takes about a millisecond at most."""


@dataclass(frozen=True)
class Ask:
    """One prompt and the pictures that come before it, some of which may have to be fetched yet."""

    prompt: str
    pictures: list[AskedPicture]


@dataclass(frozen=True)
class GenerateCall:
    """What was asked, however it was sent."""

    asks: list[Ask]
    is_batch: bool
    """Whether ``asks`` is answered as a batch; it is one prompt otherwise."""
    parameters: GenerationParameters
    model: str | None


async def read_generate_call(request: Request, settings: Settings) -> GenerateCall:
    """Raises :class:`ApiError` for whatever is wrong with the request, before the worker hears of it."""
    content_type = request.headers.get("content-type", "")
    match _media_type(content_type):
        case "multipart/form-data":
            call = _from_form(await _read_form(request, content_type, settings))
        case "application/json":
            call = await read_json(request, partial(_from_json, settings=settings))
        case _:
            raise _unsupported_media_type("Send multipart/form-data or application/json.")
    check_length(sum(len(ask.prompt) for ask in call.asks), "prompts" if call.is_batch else "prompt", settings)
    return call


async def read_json(request: Request, read: Callable[[bytes], Result]) -> Result:
    """What ``read`` makes of the body of a route that takes JSON only.

    Raises :class:`ApiError` for what is wrong with it.
    """
    if _media_type(request.headers.get("content-type", "")) != "application/json":
        raise _unsupported_media_type("Send application/json.")
    body = await read_body(request)
    return await in_thread_if(len(body) >= _LARGE_BYTES, read, body)


async def read_body(request: Request) -> bytes:
    """The body, kept by nobody: ``request.body()`` keeps it for as long as the request lasts."""
    return b"".join([chunk async for chunk in request.stream()])


def check_length(characters: int, field: str, settings: Settings) -> None:
    """Raises :class:`ApiError` for more text than is taken."""
    limit = settings.max_prompt_characters
    if characters > limit:
        raise bad_request(f'"{field}" must have at most {limit:,} characters of text.', field)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _unsupported_media_type(message: str) -> ApiError:
    return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)


def _from_json(data: bytes, settings: Settings) -> GenerateCall:
    document = json_document(data)
    if isinstance(document, dict) and "prompts" in document:
        if "prompt" in document:
            raise bad_request('"prompt" and "prompts" cannot both be given.', "prompts")
        batch = validated(BatchBody, document)
        return GenerateCall(_asks(batch, settings), True, _json_parameters(batch), batch.model)
    body = validated(GenerateBody, document)
    return GenerateCall([Ask(body.prompt, _pictures(body.images, "images"))], False, _json_parameters(body), body.model)


def _asks(batch: BatchBody, settings: Settings) -> list[Ask]:
    count = len(batch.prompts)
    if count > settings.max_prompts:
        raise bad_request(f'"prompts" must have at most {settings.max_prompts} entries.', "prompts")
    if batch.images and len(batch.images) != count:
        raise bad_request(f'"images" must have one list for each of the {count} prompts, or be left out.', "images")
    images = [_pictures(sources, f"images[{i}]") for i, sources in enumerate(batch.images)] or [[]] * count
    return list(map(Ask, batch.prompts, images))


def _pictures(sources: list[PictureSource], field: str) -> list[AskedPicture]:
    return [_picture(source, f"{field}[{i}]") for i, source in enumerate(sources)]


def _picture(source: PictureSource, field: str) -> AskedPicture:
    if source.url is not None:
        return from_picture_url(source.url, f"{field}.url")
    assert source.data is not None, "has been validated"
    return Picture(from_base64(source.data, f"{field}.data"), field)


def _json_parameters(body: GenerateBody | BatchBody) -> GenerationParameters:
    if body.stream is None:
        return body.params
    if "stream" in body.params.model_fields_set and body.params.stream != body.stream:
        raise _conflict("stream")
    return body.params.model_copy(update={"stream": body.stream})


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
    pictures: list[AskedPicture] = []
    texts: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name == "image":
            if part.data or part.has_file_name:
                pictures.append(Picture(bytes(part.data), f"image[{len(pictures)}]"))
        elif part.name == "image_url":
            if part.data:
                pictures.append(from_picture_url(_text(part), f"image_url[{len(pictures)}]"))
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
            text = _text(part)
            fields[part.name] = text if part.name in TEXT_PARAMETERS else _json_value(text)
    if not texts.get("prompt"):
        raise bad_request('"prompt" is required.', "prompt")
    parameters = validated(GenerationParameters, _merged(_params_object(texts.get("params")), fields))
    return GenerateCall([Ask(texts["prompt"], pictures)], False, parameters, texts.get("model"))


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


def _conflict(name: str) -> ApiError:
    return bad_request(f'"{name}" is given twice, with different values.', name)
