"""From a request as it was sent to one that the engine can run."""

from __future__ import annotations

import secrets

from protocol.messages import ChatMessage, ErrorCode, PicturePart, SamplingParameters, Submit
from triton_worker.checkpoint import Checkpoint
from triton_worker.engine.messages import Generate, Picture
from triton_worker.processing.chat_template import ChatTemplate, TemplateError
from triton_worker.processing.grammar import check_grammar
from triton_worker.processing.pictures import (
    PictureError,
    PictureLimits,
    decode_picture,
    picture_size,
)
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.processing.refusal import RequestRefused
from triton_worker.processing.tokenizer import Tokenizer


class Processor:
    """Template, tokenizer and picture decoding of one checkpoint. Stateless: calls may run in several threads."""

    def __init__(self, checkpoint: Checkpoint, prompts: PromptFormat, limits: PictureLimits) -> None:
        """``prompts``: those of the checkpoint's family.

        Raises:
            CheckpointError: tokenizer or chat template are missing or broken.
        """
        self.tokenizer = Tokenizer(checkpoint.tokenizer_directory, prompts.tokenizer)
        self._template = ChatTemplate.of(checkpoint.tokenizer_directory, prompts.chat_template)
        self._preparation = prompts.pictures
        self._pictures_beside = prompts.pictures_beside
        self._limits = limits

    def prepare(self, submit: Submit, engine_id: str, context_length: int, picture_room: int | None = None) -> Generate:
        """The request with token ids and resized pictures, under the engine's id for it.

        Of a request for the prompt alone, pictures are measured and not decoded. ``picture_room``: how many embeddings
        its pictures may have together, where they stand beside the prompt.

        Raises:
            RequestRefused: a picture or a parameter cannot be taken, or the prompt does not fit the context.
        """
        self._check(submit.sampling)
        order = _picture_order(submit)
        # Headers first: a prompt that does not fit is refused before its pictures are unpacked.
        picture_tokens = [self._picture_tokens(submit.pictures[index], index) for index in order]
        if self._pictures_beside:
            _check_room(sum(picture_tokens), picture_room)
            picture_tokens = [1] * len(picture_tokens)
        prompt_token_ids = self._prompt(submit, picture_tokens, context_length)
        room = context_length - len(prompt_token_ids)
        max_tokens = submit.sampling.max_tokens
        if room < (0 if submit.prompt_only else 1):
            raise _too_long(f"{len(prompt_token_ids)}", context_length)
        if max_tokens is not None and max_tokens > room and not submit.prompt_only:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"max_tokens is {max_tokens}, but a prompt of {len(prompt_token_ids)} tokens leaves room for {room} "
                f"in a context of {context_length}.",
                "max_tokens",
            )
        shown = [] if submit.prompt_only else order
        pictures = tuple(self._picture(submit.pictures[index], index) for index in shown)
        sampling = submit.sampling
        return Generate(
            request_id=engine_id,
            prompt_token_ids=tuple(prompt_token_ids),
            pictures=pictures,
            sampling=sampling,
            max_tokens=room if max_tokens is None else max_tokens,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stop_token_ids=frozenset() if sampling.ignore_eos else self.tokenizer.end_token_ids,
            cache_salt=submit.cache_salt,
        )

    def _check(self, sampling: SamplingParameters) -> None:
        """Refuse what only the checkpoint's tokenizer or the grammar library can tell to be wrong."""
        highest = max(sampling.logit_bias, default=0)
        if highest >= self.tokenizer.size:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"logit_bias names the token {highest}, but there are tokens from 0 to {self.tokenizer.size - 1}.",
                "logit_bias",
            )
        if sampling.grammar is not None:
            check_grammar(sampling.grammar)

    def _picture_tokens(self, data: bytes, index: int) -> int:
        """How many embeddings the picture will have, from its header alone."""
        try:
            return self._preparation.tokens(*picture_size(data, self._limits))
        except PictureError as error:
            raise _picture_refused(error, index) from error

    def _picture(self, data: bytes, index: int) -> Picture:
        try:
            return Picture.of(self._preparation.prepare(decode_picture(data, self._limits)))
        except PictureError as error:
            raise _picture_refused(error, index) from error

    def _prompt(self, submit: Submit, picture_tokens: list[int], context_length: int) -> list[int]:
        """Token ids of the rendered conversation, with one image token for each embedding of a picture."""
        if submit.rendered_prompt is not None:
            by, text, mark = "prompt", submit.rendered_prompt, ""
        else:
            by, (text, mark) = "chat template", self._rendered(submit.messages)
        # What is far too long is refused before it is tokenized, which takes seconds for a million characters.
        if len(text) > context_length * self.tokenizer.longest_token:
            raise _too_long(f"more than {context_length}", context_length)
        token_ids = self.tokenizer.encode_template(text, mark)
        if not token_ids:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, "The prompt is empty.", "prompt")
        image_token = self.tokenizer.image_token_id
        places = token_ids.count(image_token)
        if places != len(picture_tokens):
            message = f"The {by} has {places} places for pictures, but there are {len(picture_tokens)}."
            raise RequestRefused(ErrorCode.INVALID_REQUEST, message, "image")
        counts = iter(picture_tokens)
        expanded: list[int] = []
        for token_id in token_ids:
            expanded += [token_id] * (next(counts) if token_id == image_token else 1)
        return expanded

    def _rendered(self, messages: tuple[ChatMessage, ...]) -> tuple[str, str]:
        try:
            return self._template.render(messages, list(self.tokenizer.special_tokens))
        except TemplateError as error:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, f"The chat template refused: {error}", "messages"
            ) from error


def _check_room(picture_tokens: int, room: int | None) -> None:
    if room is not None and picture_tokens > room:
        message = f"The pictures have {picture_tokens} tokens together; the model's cache holds {room} of one request."
        raise RequestRefused(ErrorCode.INVALID_REQUEST, message, "image")


def _too_long(tokens: str, context_length: int) -> RequestRefused:
    message = f"The prompt has {tokens} tokens; the model's context holds {context_length}, the answer included."
    return RequestRefused(ErrorCode.INVALID_REQUEST, message, "prompt")


def _picture_refused(error: PictureError, index: int) -> RequestRefused:
    return RequestRefused(ErrorCode.INVALID_PICTURE, f"Picture {index + 1}: {error}", f"image[{index}]")


def _picture_order(submit: Submit) -> list[int]:
    """Indices into the request's pictures, in the order in which the messages show them."""
    if submit.rendered_prompt is not None:
        return list(range(len(submit.pictures)))
    order = [part.index for message in submit.messages for part in message.content if isinstance(part, PicturePart)]
    if sorted(order) != list(range(len(submit.pictures))):
        raise RequestRefused(
            ErrorCode.INVALID_REQUEST, "Each picture must be shown exactly once in the messages.", "image"
        )
    return order
