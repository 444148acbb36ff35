"""The tensor contract of NeMo Export-Deploy 0.3, over our engine.

One row is one prompt. Every tensor but ``images`` has the shape ``[rows, 1]``; ``images`` is ``[rows, pictures]``, each
a picture file as base64 (or a data URL), or empty, so that rows may have different numbers of pictures. What differs
from the reference is what it could not do: each row has pictures and parameters of its own, and text alone is fine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.messages import (
    ChatMessage,
    Delta,
    EndDelta,
    ErrorCode,
    PicturePart,
    RequestError,
    Role,
    SamplingParameters,
    Submit,
    TextPart,
    TokenDelta,
)
from triton_worker.serving.front import Front

DEADLINE_SECONDS = 300.0
"""Triton does not say when a caller went away; this bounds what is computed for nobody."""


@dataclass(frozen=True)
class Parameter:
    """An optional input tensor: its type, what holds without it, and the range it is checked against."""

    dtype: type[np.generic]
    default: int | float | None
    low: float = -np.inf
    high: float = np.inf


PARAMETERS: Mapping[str, Parameter] = {
    "max_length": Parameter(np.int64, 50, low=1),
    "max_batch_size": Parameter(np.int64, 4, low=1),
    "top_k": Parameter(np.int64, 1, low=0, high=2**31 - 1),
    "top_p": Parameter(np.float32, 0.0, low=0, high=1),
    "temperature": Parameter(np.float32, 1.0, low=0, high=2),
    "random_seed": Parameter(np.int64, None),
    "apply_chat_template": Parameter(np.bool_, None),
}


class CallFailed(Exception):
    """A call that gets no answer, with what its caller is told."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.message)
        self.error = error


class ReferenceModel:
    """Answers calls in the reference's tensors."""

    def __init__(self, front: Front, model: str, special_tokens: Collection[str]) -> None:
        """``special_tokens``: by these a prompt is known that a chat template was applied to."""
        self._front = front
        self._model = model
        self._special_tokens = special_tokens

    def read(self, tensors: Mapping[str, NDArray[Any]]) -> tuple[list[Submit], int]:
        """The requests that a call's tensors mean, and how many of them its caller wants computed at once.

        Decodes pictures' base64: not for the front's event loop.

        Raises:
            CallFailed: the tensors mean no request.
        """
        values = {name: _values(name, tensors) for name in PARAMETERS}
        prompts = [_text(row) for row in _rows("prompts", tensors["prompts"])]
        images = _rows("images", tensors["images"], columns=None) if "images" in tensors else None
        submits = []
        for row, prompt in enumerate(prompts):
            cells = [] if images is None else images[row]
            pictures = tuple(_picture(cell, row) for cell in cells if cell)
            submits.append(
                Submit(
                    request_id=f"reference-{secrets.token_hex(8)}",
                    model=self._model,
                    **self._conversation(prompt, len(pictures), values["apply_chat_template"][row]),
                    pictures=pictures,
                    sampling=_sampling({name: column[row] for name, column in values.items()}),
                    deadline_seconds=DEADLINE_SECONDS,
                )
            )
        return submits, values["max_batch_size"][0]

    async def answer(self, submits: Sequence[Submit], at_once: int) -> list[str]:
        """The texts that answer the requests, in order. Runs in the front's event loop.

        Raises:
            CallFailed: one of the requests failed; the others are cancelled.
        """
        await self._front.started()  # Triton says that it is ready while the engine still loads
        places = asyncio.Semaphore(at_once)

        async def in_turn(submit: Submit) -> str:
            async with places:
                return await self._complete(submit)

        tasks = [asyncio.ensure_future(in_turn(submit)) for submit in submits]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _complete(self, submit: Submit) -> str:
        texts: list[str] = []
        ended: asyncio.Future[EndDelta] = asyncio.get_running_loop().create_future()

        def take(delta: Delta) -> None:
            if isinstance(delta, TokenDelta):
                texts.append(delta.text)
            elif not ended.done():
                ended.set_result(delta)

        generation = self._front.generate(submit, take)
        try:
            end = await ended
        finally:
            generation.cancel()
        if end.error is not None:
            # The limit of an answer's length has another name on this wire.
            message = end.error.message.replace("max_tokens", "max_length")
            raise CallFailed(RequestError(end.error.code, message))
        return "".join(texts)

    def _conversation(self, prompt: str, pictures: int, apply_chat_template: bool | None) -> dict[str, Any]:
        """The conversation in a prompt: rendered by the caller, as JSON, or one user's words after the pictures.

        A caller that does not say is understood by what it sends: the reference's script sends rendered prompts, the
        example in its documentation plain questions.
        """
        if apply_chat_template is None:
            apply_chat_template = not any(token in prompt for token in self._special_tokens)
        if not apply_chat_template:
            return {"rendered_prompt": prompt}
        places = [PicturePart(index) for index in range(pictures)]
        return {"messages": _messages(prompt, places) or (ChatMessage("user", (*places, TextPart(prompt))),)}


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: Role
    content: str | tuple[_Part, ...]


def _messages(prompt: str, places: list[PicturePart]) -> tuple[ChatMessage, ...] | None:
    """The messages of a prompt that is a JSON list of them, as the reference's REST service sends; else ``None``.

    Its image parts stand for the call's pictures, in order; what the parts themselves say of the picture is ignored.
    """
    try:
        messages = msgspec.json.decode(prompt, type=tuple[_Message, ...])
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    unshown = iter(places)
    return tuple(
        ChatMessage(
            message.role,
            (TextPart(message.content),)
            if isinstance(message.content, str)
            else tuple(_message_part(part, unshown) for part in message.content),
        )
        for message in messages
    )


def _message_part(part: _Part, unshown: Iterator[PicturePart]) -> TextPart | PicturePart:
    if part.type == "text":
        return TextPart(part.text)
    if part.type in ("image", "image_url"):
        place = next(unshown, None)
        if place is None:
            raise _invalid("The messages in prompts show more pictures than images holds.")
        return place
    raise _invalid(f"A message in prompts has a part of type {part.type!r}; text and image are known.")


def _sampling(values: Mapping[str, Any]) -> SamplingParameters:
    """In the reference's sense: ``top_k`` 1 is greedy whatever the temperature, and ``top_p`` 0 is no limit."""
    return SamplingParameters(
        max_tokens=values["max_length"],
        temperature=0.0 if values["top_k"] == 1 else values["temperature"],
        top_k=values["top_k"],
        top_p=values["top_p"] or 1.0,
        seed=values["random_seed"],
    )


def _values(name: str, tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
    """One checked value for each row."""
    parameter = PARAMETERS[name]
    if name not in tensors:
        return [parameter.default] * len(tensors["prompts"])
    values = []
    for (value,) in _rows(name, tensors[name]):
        if not parameter.low <= value <= parameter.high:
            bound = f"at least {parameter.low:g}"
            if parameter.high != np.inf:
                bound = f"from {parameter.low:g} to {parameter.high:g}"
            raise _invalid(f"{name} is {value}; it must be {bound}.")
        # By way of its text a float32 becomes the number that its caller wrote: 0.7, not 0.699999988.
        values.append(float(str(value)) if isinstance(value, np.floating) else value.item())
    return values


def _rows(name: str, tensor: NDArray[Any], columns: int | None = 1) -> NDArray[Any]:
    if tensor.ndim != 2 or (columns is not None and tensor.shape[1] != columns):
        expected = "[rows, 1]" if columns == 1 else "[rows, pictures]"
        raise _invalid(f"{name} has the shape {list(tensor.shape)}; {expected} is expected.")
    return tensor


def _text(row: NDArray[Any]) -> str:
    try:
        return str(row[0], "utf-8")
    except UnicodeDecodeError:
        raise _invalid("prompts holds text that is not UTF-8.") from None


def _picture(cell: bytes, row: int) -> bytes:
    encoded = cell.split(b"base64,", 1)[-1] if cell.startswith(b"data:") else cell
    try:
        return base64.b64decode(b"".join(encoded.split()), validate=True)
    except binascii.Error:
        raise _invalid(f"A picture of prompt {row + 1} is not base64.") from None


def _invalid(message: str) -> CallFailed:
    return CallFailed(RequestError(ErrorCode.INVALID_REQUEST, message))
