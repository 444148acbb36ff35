"""Several prompts answered in one response, each as if it had been asked alone."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from fastapi import Request
from msgspec.structs import astuple
from pydantic import BaseModel
from starlette.responses import Response

from app.disconnect import all_of, unless_disconnected
from app.errors import ApiError, internal_error
from app.event_stream import DONE, EventStream, error_event, event
from app.generation import Answer, Generated, collect, generate, now
from app.interleave import interleaved
from app.reply import Reply
from app.schemas import BatchCompletion, BatchErrorEvent, ErrorAnswer, UsageCounts
from app.settings import Settings
from app.worker.pool import WorkerPool
from protocol.messages import Submit, TokenDelta, Usage

logger = logging.getLogger(__name__)


class Prompt(NamedTuple):
    """One that can be generated for, and how its answer is put."""

    submit: Submit
    reply: Reply


class Generating(NamedTuple):
    """What is generated for a prompt, and how its answer is put."""

    generated: Generated
    reply: Reply


Prompts = Sequence[Generating | ApiError]
"""In the order of the request; an error for a prompt that has already failed."""

Said = tuple[int, TokenDelta | Usage | ApiError]
"""What is said of the prompt with this index; a usage or an error is the last of it."""


async def respond_batch(
    request: Request,
    worker: WorkerPool,
    model: str,
    asked: Sequence[Prompt | ApiError],
    stream: bool,
    *,
    settings: Settings,
) -> Response:
    """Generates. When no prompt has an answer, raises the :class:`ApiError` of the first: that is the response.

    As with :func:`app.reply.respond`, whoever calls this shall not keep what was asked.
    """
    request.state.generation_id = batch_id = f"batch-{uuid.uuid4().hex}"
    request.state.body_share.pass_on(*(prompt.submit for prompt in asked if isinstance(prompt, Prompt)))
    prompts = [
        prompt if isinstance(prompt, ApiError) else Generating(generate(worker, prompt.submit), prompt.reply)
        for prompt in asked
    ]
    del asked
    if stream:
        said = interleaved([_said(prompt) for prompt in prompts])
        begun = await unless_disconnected(request.receive, _until_one_succeeds(said))
        return EventStream(_events(batch_id, prompts, begun, said), ping_seconds=settings.ping_seconds)
    answers = await unless_disconnected(request.receive, all_of(map(_answer, prompts)))
    usages = [answer.usage for answer in answers if isinstance(answer, Answer)]
    if not usages:
        raise next(answer for answer in answers if isinstance(answer, ApiError))
    completion = BatchCompletion(
        id=batch_id,
        created=now(),
        model=model,
        answers=[_entry(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)],
        usage=UsageCounts.of(Usage(*map(sum, zip(*map(astuple, usages), strict=True)))),
    )
    return Response(completion.model_dump_json(), media_type="application/json")


async def _answer(prompt: Generating | ApiError) -> Answer | ApiError:
    if isinstance(prompt, ApiError):
        return prompt
    try:
        return await collect(prompt.generated)
    except ApiError as error:
        return error


async def _said(prompt: Generating | ApiError) -> AsyncGenerator[TokenDelta | Usage | ApiError, None]:
    """What is said of one prompt; a failure is said, not raised, so that the others go on."""
    if isinstance(prompt, ApiError):
        yield prompt
        return
    try:
        async with aclosing(prompt.generated) as generated:
            async for item in generated:
                yield item
    except ApiError as error:
        yield error
    except Exception:
        logger.exception("a prompt of a batch failed")
        yield internal_error()


async def _until_one_succeeds(said: AsyncGenerator[Said, None]) -> list[Said]:
    """The failures that come first, and the first of something else. Raises the first prompt's if there is no other."""
    begun: list[Said] = []
    async for index, item in said:
        begun.append((index, item))
        if not isinstance(item, ApiError):
            return begun
    raise next(item for _, item in sorted(begun, key=lambda one: one[0]) if isinstance(item, ApiError))


async def _events(
    batch_id: str, prompts: Prompts, begun: list[Said], rest: AsyncGenerator[Said, None]
) -> AsyncGenerator[bytes, None]:
    """The stream. ``[DONE]`` says that each prompt came to its end."""
    async with aclosing(rest):
        try:
            for index, item in begun:
                for document in _documents(prompts[index], index, item):
                    yield event(document)
            async for index, item in rest:
                for document in _documents(prompts[index], index, item):
                    yield event(document)
        except Exception:
            logger.exception("stream of %s failed", batch_id)
            yield error_event(internal_error())
        else:
            yield DONE


def _documents(prompt: Generating | ApiError, index: int, item: TokenDelta | Usage | ApiError) -> Iterator[str]:
    if isinstance(item, ApiError):
        yield BatchErrorEvent(prompt_index=index, error=item.body()).model_dump_json()
        return
    assert isinstance(prompt, Generating), "nothing is generated for a prompt that has failed"
    yield from prompt.reply.events(item)


def _entry(prompt: Generating | ApiError, answer: Answer | ApiError) -> BaseModel:
    if isinstance(answer, ApiError):
        return ErrorAnswer(error=answer.body())
    assert isinstance(prompt, Generating), "nothing is generated for a prompt that has failed"
    return prompt.reply.completed(answer)
