"""``POST /v1/multimodal/generate``."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.disconnect import unless_disconnected
from app.errors import ApiError, internal_error
from app.event_stream import DONE, EventStream, error_event, event
from app.generation import Answer, Generated, collect, generate, new_generation_id, now, served_model
from app.intake import GenerateCall, read_generate_call
from app.openapi import GENERATE_OPERATION
from app.schemas import Choice, ChoiceDelta, Completion, CompletionChunk, UsageCounts
from app.settings import Settings
from app.worker.connection import WorkerConnection
from protocol.messages import ChatMessage, PicturePart, Submit, TextPart, TokenDelta, Usage

logger = logging.getLogger(__name__)


def router(settings: Settings, worker: WorkerConnection) -> APIRouter:
    routes = APIRouter(tags=["generate"])

    @routes.post("/v1/multimodal/generate", response_model=Completion, **GENERATE_OPERATION)
    async def multimodal_generate(request: Request) -> Response:
        call = await read_generate_call(request, settings)
        submit = _submit(call, served_model(worker, call.model), settings)
        request.state.generation_id = submit.request_id
        reply = _Reply(submit, with_token_ids=call.parameters.return_token_ids)
        generated = generate(worker, submit)
        if call.parameters.stream:
            # A failure before the first delta can still have its own status.
            first = await unless_disconnected(request.receive, anext(generated))
            return EventStream(reply.events(first, generated), ping_seconds=settings.ping_seconds)
        answer = await unless_disconnected(request.receive, collect(generated))
        return Response(reply.completion(answer).model_dump_json(), media_type="application/json")

    return routes


def _submit(call: GenerateCall, model: str, settings: Settings) -> Submit:
    places = (PicturePart(index) for index in range(len(call.pictures)))
    return Submit(
        request_id=new_generation_id(),
        model=model,
        messages=(ChatMessage("user", (*places, TextPart(call.prompt))),),
        pictures=tuple(picture.data for picture in call.pictures),
        sampling=call.parameters.sampling(),
        deadline_seconds=settings.deadline_seconds,
        return_prompt_token_ids=call.parameters.return_token_ids,
    )


class _Reply:
    """One generation in the words of this route."""

    def __init__(self, submit: Submit, *, with_token_ids: bool) -> None:
        self._head: dict[str, Any] = {"id": submit.request_id, "created": now(), "model": submit.model}
        self._with_token_ids = with_token_ids

    def completion(self, answer: Answer) -> Completion:
        choices = [
            Choice(
                index=index,
                text="".join(choice.texts),
                finish_reason=choice.finish_reason,
                token_ids=choice.token_ids if self._with_token_ids else None,
            )
            for index, choice in sorted(answer.choices.items())
        ]
        return Completion(
            **self._head,
            choices=choices,
            usage=UsageCounts.of(answer.usage),
            prompt_token_ids=self._prompt_token_ids(answer.prompt_token_ids),
        )

    async def events(self, first: TokenDelta | Usage, rest: Generated) -> AsyncGenerator[bytes, None]:
        """The stream. ``[DONE]`` comes after a whole answer only; after an error the stream just ends."""
        async with aclosing(rest):
            try:
                yield self._event(first)
                async for item in rest:
                    yield self._event(item)
            except ApiError as error:
                yield error_event(error)
            except Exception:
                logger.exception("stream of %s failed", self._head["id"])
                yield error_event(internal_error())
            else:
                yield DONE

    def _event(self, item: TokenDelta | Usage) -> bytes:
        return event(self._chunk(item).model_dump_json())

    def _chunk(self, item: TokenDelta | Usage) -> CompletionChunk:
        if isinstance(item, Usage):
            return CompletionChunk(**self._head, choices=[], usage=UsageCounts.of(item))
        choice = ChoiceDelta(
            index=item.index,
            text=item.text,
            finish_reason=item.finish_reason,
            token_ids=list(item.token_ids) if self._with_token_ids else None,
        )
        prompt_token_ids = self._prompt_token_ids(item.prompt_token_ids)
        return CompletionChunk(**self._head, choices=[choice], prompt_token_ids=prompt_token_ids)

    def _prompt_token_ids(self, token_ids: tuple[int, ...] | None) -> list[int] | None:
        return list(token_ids) if self._with_token_ids and token_ids is not None else None
