"""A generate request, as the API takes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from PIL import Image

from clients.rest.errors import MultimodalError
from clients.rest.pictures import Picture, encode_picture

GENERATE = "v1/multimodal/generate"

FormFields = list[tuple[str, tuple[str | None, bytes]]]
"""As httpx takes the parts of a form: name, then file name and content."""


class Sampling(TypedDict, total=False):
    """The API's sampling parameters. What is left out has the server's default."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    """By token id, as text: the keys of a JSON object are."""
    response_format: Mapping[str, Any]
    """In OpenAI's form: ``{"type": "json_schema", "json_schema": {"name": …, "schema": …}}``, for example."""
    guided_regex: str
    seed: int
    stop: str | Sequence[str]
    ignore_eos: bool
    n: int
    logprobs: bool
    top_logprobs: int
    cache_salt: str
    return_token_ids: bool


def generate_form(
    prompt: str, images: Sequence[Picture], model: str | None, sampling: Sampling, *, stream: bool
) -> FormFields:
    """The fields of the form. Pictures travel as they are: in JSON, base64 would make them a third larger."""
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise TypeError("images must be a list of pictures, also for one.")
    fields: FormFields = [("image", (f"picture-{i}", encode_picture(image))) for i, image in enumerate(images)]
    fields.append(("prompt", (None, _encoded(prompt))))
    fields.append(("params", (None, json.dumps({**sampling, "stream": stream}).encode())))
    if model is not None:
        fields.append(("model", (None, _encoded(model))))
    return fields


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MultimodalError("The text holds half of a character (a lone surrogate), which cannot be sent.") from None
