"""From a request as it was sent to one that the engine can run."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from protocol.messages import ChatMessage, ErrorCode, PicturePart, RequestError, Submit
from triton_worker.checkpoint import Checkpoint
from triton_worker.engine.messages import Generate
from triton_worker.processing.chat_template import ChatTemplate, TemplateError
from triton_worker.processing.pictures import (
    PictureError,
    PictureLimits,
    ResizeBounds,
    decode_picture,
    resize_picture,
)
from triton_worker.processing.tokenizer import Tokenizer


class RequestRefused(Exception):
    """A request that cannot be run, with what its caller is told."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = RequestError(code=code, message=message, param=param)


class Processor:
    """Template, tokenizer and picture decoding of one checkpoint. Stateless: calls may run in several threads."""

    def __init__(self, checkpoint: Checkpoint, picture_unit: int, limits: PictureLimits, bounds: ResizeBounds) -> None:
        """``picture_unit``: pixels a side that one picture token stands for.

        Raises:
            CheckpointError: tokenizer or chat template are missing or broken.
        """
        self.tokenizer = Tokenizer(checkpoint.tokenizer_directory)
        self._template = ChatTemplate.of(checkpoint.tokenizer_directory)
        self._picture_unit = picture_unit
        self._limits = limits
        self._bounds = bounds

    def prepare(self, submit: Submit, engine_id: str, context_length: int) -> Generate:
        """The request with token ids and resized pictures, under the engine's id for it.

        Raises:
            RequestRefused: a picture cannot be taken, or the prompt does not fit the context.
        """
        order = _picture_order(submit)
        pictures = tuple(self._picture(submit.pictures[index], index) for index in order)
        prompt_token_ids = self._prompt(submit.messages, pictures)
        room = context_length - len(prompt_token_ids)
        max_tokens = submit.sampling.max_tokens
        if room < 1:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"The prompt has {len(prompt_token_ids)} tokens; the model's context holds {context_length}, "
                "the answer included.",
                "prompt",
            )
        if max_tokens is not None and max_tokens > room:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"max_tokens is {max_tokens}, but a prompt of {len(prompt_token_ids)} tokens leaves room for {room} "
                f"in a context of {context_length}.",
                "max_tokens",
            )
        sampling = submit.sampling
        return Generate(
            request_id=engine_id,
            prompt_token_ids=tuple(prompt_token_ids),
            pictures=pictures,
            sampling=sampling,
            max_tokens=room if max_tokens is None else max_tokens,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stop_token_ids=frozenset() if sampling.ignore_eos else self.tokenizer.end_token_ids,
        )

    def _picture(self, data: bytes, index: int) -> NDArray[np.uint8]:
        try:
            return resize_picture(decode_picture(data, self._limits), self._bounds)
        except PictureError as error:
            message = f"Picture {index + 1}: {error}"
            raise RequestRefused(ErrorCode.INVALID_PICTURE, message, f"image[{index}]") from error

    def _prompt(self, messages: tuple[ChatMessage, ...], pictures: tuple[NDArray[np.uint8], ...]) -> list[int]:
        """Token ids of the rendered conversation, with one image token for each embedding of a picture."""
        try:
            text, mark = self._template.render(messages, list(self.tokenizer.special_tokens))
        except TemplateError as error:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, f"The chat template refused: {error}", "messages"
            ) from error
        token_ids = self.tokenizer.encode_template(text, mark)
        image_token = self.tokenizer.image_token_id
        if token_ids.count(image_token) != len(pictures):
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"The chat template has places for {token_ids.count(image_token)} of {len(pictures)} pictures.",
                "image",
            )
        counts = iter(p.shape[0] // self._picture_unit * (p.shape[1] // self._picture_unit) for p in pictures)
        expanded: list[int] = []
        for token_id in token_ids:
            expanded += [token_id] * (next(counts) if token_id == image_token else 1)
        return expanded


def _picture_order(submit: Submit) -> list[int]:
    """Indices into the request's pictures, in the order in which the messages show them."""
    order = [part.index for message in submit.messages for part in message.content if isinstance(part, PicturePart)]
    if sorted(order) != list(range(len(submit.pictures))):
        raise RequestRefused(
            ErrorCode.INVALID_REQUEST, "Each picture must be shown exactly once in the messages.", "image"
        )
    return order
