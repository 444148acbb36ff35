"""The core that every generating route shares: a submitted request, its deltas, and the answer they make."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi import Request
from msgspec.structs import replace

from app.errors import ApiError, internal_error, unavailable
from app.interleave import interleaved
from app.parameters import CommonParameters
from app.pictures import Picture
from app.settings import Settings
from app.worker.connection import NOT_CONNECTED
from app.worker.pool import WorkerPool
from protocol.messages import (
    ChatMessage,
    ChosenToken,
    Delta,
    EndDelta,
    ErrorCode,
    FinishReason,
    Outcome,
    PicturePart,
    Submit,
    TextPart,
    TokenDelta,
    Usage,
)

Generated = AsyncGenerator[TokenDelta | Usage, None]
"""Token deltas, then the usage, once and last."""

logger = logging.getLogger(__name__)


def now() -> int:
    return int(time.time())


def served_model(worker: WorkerPool, asked: str | None) -> str:
    """The model's name. Raises :class:`ApiError` when there is no such model, or its worker is away."""
    name = worker.default_model if asked is None else asked
    if name in worker.models:
        return name
    if name is None or worker.status is None or worker.may_serve(name):
        raise ApiError.from_worker(NOT_CONNECTED)
    raise ApiError(HTTPStatus.NOT_FOUND, ErrorCode.MODEL_NOT_FOUND.value, "There is no such model.", "model")


def user_message(text: str, pictures: int = 0) -> ChatMessage:
    """One turn of the user: all pictures, then the text."""
    return ChatMessage("user", (*map(PicturePart, range(pictures)), TextPart(text)))


def new_submit(
    request: Request,
    id_prefix: str,
    model: str,
    messages: tuple[ChatMessage, ...],
    pictures: list[Picture],
    parameters: CommonParameters,
    settings: Settings,
) -> Submit:
    return Submit(
        request_id=f"{id_prefix}-{uuid.uuid4().hex}",
        model=model,
        messages=messages,
        pictures=tuple(picture.data for picture in pictures),
        sampling=parameters.sampling(),
        deadline_seconds=settings.deadline_seconds,
        return_prompt_token_ids=parameters.return_token_ids,
        cache_salt=parameters.cache_salt,
        http_request_id=request.state.request_id,
    )


def generate(worker: WorkerPool, submit: Submit) -> Generated:
    """What the worker generates. Raises :class:`ApiError` when the request fails; closed early, it is cancelled."""
    return _generated(worker.generate(submit))


async def _generated(all_deltas: AsyncGenerator[Delta, None]) -> Generated:
    async with aclosing(all_deltas) as deltas:
        async for delta in deltas:
            yield _usage(delta) if isinstance(delta, EndDelta) else delta


def generate_all(worker: WorkerPool, submits: Sequence[Submit]) -> Generated:
    """The same for several prompts as one generation: choices are counted prompt by prompt, usages are added up."""
    if len(submits) == 1:
        return generate(worker, submits[0])
    return _together([generate(worker, submit) for submit in submits], choices=submits[0].sampling.n)


async def _together(generations: list[Generated], choices: int) -> Generated:
    """``choices`` is the number of each."""
    usages: list[Usage] = []
    async with aclosing(interleaved(generations)) as items:
        async for prompt, item in items:
            if isinstance(item, Usage):
                usages.append(item)
            else:
                yield replace(item, index=prompt * choices + item.index)
    yield Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        image_tokens=sum(usage.image_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )


def _usage(end: EndDelta) -> Usage:
    if end.error is not None:
        error = ApiError.from_worker(end.error)
        if end.error.code is ErrorCode.INTERNAL:
            logger.error("generation %s failed in the worker: %s", end.request_id, end.error.message)
        raise error
    if end.outcome is Outcome.CANCELLED:
        raise unavailable("The model server ended this request before the answer was complete. Try again.")
    if end.usage is None:
        logger.error("generation %s ended without usage", end.request_id)
        raise internal_error()
    return end.usage


@dataclass
class ChoiceText:
    """One choice, put together from its deltas."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ChosenToken] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.STOP

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass
class Answer:
    """A generation as a whole."""

    usage: Usage
    choices: dict[int, ChoiceText]
    prompt_token_ids: tuple[int, ...] | None


async def collect(generated: Generated) -> Answer:
    """Waits for the end and puts the answer together."""
    choices: dict[int, ChoiceText] = {0: ChoiceText()}
    prompt_token_ids: tuple[int, ...] | None = None
    async with aclosing(generated):
        async for item in generated:
            if isinstance(item, Usage):
                return Answer(item, choices, prompt_token_ids)
            choice = choices.setdefault(item.index, ChoiceText())
            choice.texts.append(item.text)
            choice.token_ids.extend(item.token_ids)
            choice.logprobs.extend(item.logprobs)
            choice.finish_reason = item.finish_reason or choice.finish_reason
            prompt_token_ids = item.prompt_token_ids or prompt_token_ids
    raise AssertionError("a generation ends with its usage or raises")
