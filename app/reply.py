"""From a submitted request to its HTTP response, whole or as events, in the words of the route that was asked."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from app.disconnect import unless_disconnected
from app.errors import ApiError, internal_error
from app.event_stream import DONE, EventStream, error_event, event
from app.generation import Answer, ChoiceText, Generated, collect, generate_all, now
from app.settings import Settings
from app.worker.pool import WorkerPool
from protocol.messages import Submit, TokenDelta, Usage

logger = logging.getLogger(__name__)


class Reply(ABC):
    """One generation as a route answers it, in JSON."""

    completion: ClassVar[type[BaseModel]]
    chunk: ClassVar[type[BaseModel]]

    def __init__(self, submit: Submit, *, with_token_ids: bool) -> None:
        self.head: dict[str, Any] = {"id": submit.request_id, "created": now(), "model": submit.model}
        self._with_token_ids = with_token_ids

    @abstractmethod
    def choice(self, index: int, choice: ChoiceText, token_ids: list[int] | None) -> BaseModel:
        """A choice of the whole answer."""

    @abstractmethod
    def choice_delta(self, delta: TokenDelta, token_ids: list[int] | None) -> BaseModel:
        """What an event says of a choice."""

    @abstractmethod
    def counts(self, usage: Usage) -> BaseModel:
        """The usage."""

    def completed(self, answer: Answer) -> BaseModel:
        """The answer in one piece."""
        choices = [
            self.choice(index, choice, self._token_ids(choice.token_ids))
            for index, choice in sorted(answer.choices.items())
        ]
        prompt_token_ids = self._token_ids(answer.prompt_token_ids)
        usage = self.counts(answer.usage)
        return self.completion(**self.head, choices=choices, usage=usage, prompt_token_ids=prompt_token_ids)

    def events(self, item: TokenDelta | Usage) -> Iterator[str]:
        """What a stream says of it, mostly one event."""
        if isinstance(item, Usage):
            yield self.dump_chunk(self.chunk(**self.head, choices=[], usage=self.counts(item)))
            return
        choice = self.choice_delta(item, self._token_ids(item.token_ids))
        prompt_token_ids = self._token_ids(item.prompt_token_ids)
        yield self.dump_chunk(self.chunk(**self.head, choices=[choice], prompt_token_ids=prompt_token_ids))

    def dump_chunk(self, chunk: BaseModel) -> str:
        """An event in JSON."""
        return chunk.model_dump_json()

    def _token_ids(self, token_ids: Sequence[int] | None) -> list[int] | None:
        return list(token_ids) if self._with_token_ids and token_ids is not None else None


async def respond(
    request: Request, worker: WorkerPool, submits: list[Submit], reply: Reply, stream: bool, *, settings: Settings
) -> Response:
    """Generates. Raises :class:`ApiError` for a failure before the first delta, which can still have its own status.

    Whoever calls this shall not keep the submits or what they were made of: the body's bytes are given back to the
    budget when they are gone, which is when the worker has them.
    """
    request.state.generation_id = reply.head["id"]
    request.state.body_share.pass_on(*submits)
    generated = generate_all(worker, submits)
    del submits
    if stream:
        first = await unless_disconnected(request.receive, anext(generated))
        return EventStream(_events(reply, first, generated), ping_seconds=settings.ping_seconds)
    answer = await unless_disconnected(request.receive, collect(generated))
    return Response(reply.completed(answer).model_dump_json(), media_type="application/json")


async def _events(reply: Reply, first: TokenDelta | Usage, rest: Generated) -> AsyncGenerator[bytes, None]:
    """The stream. ``[DONE]`` comes after a whole answer only; after an error the stream just ends."""
    async with aclosing(rest):
        try:
            for document in reply.events(first):
                yield event(document)
            async for item in rest:
                for document in reply.events(item):
                    yield event(document)
        except ApiError as error:
            yield error_event(error)
        except Exception:
            logger.exception("stream of %s failed", reply.head["id"])
            yield error_event(internal_error())
        else:
            yield DONE
