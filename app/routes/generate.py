"""``POST /v1/multimodal/generate``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.batch import Prompt, respond_batch
from app.disconnect import unless_disconnected
from app.errors import ApiError
from app.generation import ChoiceText, new_submit, served_model, user_message
from app.intake import read_generate_call
from app.logprobs import ChoiceLogprobs
from app.openapi import GENERATE_OPERATION
from app.picture_intake import PictureIntake
from app.pictures import Picture
from app.reply import Reply, respond
from app.schemas import BatchChunk, BatchCompletion, Choice, ChoiceDelta, Completion, CompletionChunk, UsageCounts
from app.settings import Settings
from app.worker.pool import WorkerPool
from protocol.messages import Submit, TokenDelta, Usage


def router(settings: Settings, worker: WorkerPool, intake: PictureIntake) -> APIRouter:
    routes = APIRouter(tags=["generate"])

    @routes.post("/v1/multimodal/generate", response_model=Completion | BatchCompletion, **GENERATE_OPERATION)
    async def multimodal_generate(request: Request) -> Response:
        return await (await read(request))()

    async def read(request: Request) -> Callable[[], Awaitable[Response]]:
        """The call that answers the request. It holds the pictures: whoever makes the call shall not keep it."""
        call = await read_generate_call(request, settings)
        model = served_model(worker, call.model)
        pictures = await unless_disconnected(request.receive, intake.take_each([ask.pictures for ask in call.asks]))
        stream, with_token_ids = call.parameters.stream, call.parameters.return_token_ids

        def submit(prompt: str, taken: list[Picture] | ApiError) -> Submit | ApiError:
            if isinstance(taken, ApiError):
                return taken
            message = user_message(prompt, len(taken))
            return new_submit(request, "gen", model, (message,), taken, call.parameters, settings)

        submits = [submit(ask.prompt, taken) for ask, taken in zip(call.asks, pictures, strict=True)]
        if call.is_batch:
            prompts = [
                one if isinstance(one, ApiError) else Prompt(one, _BatchReply(one, i, with_token_ids=with_token_ids))
                for i, one in enumerate(submits)
            ]
            return partial(respond_batch, request, worker, model, prompts, stream, settings=settings)
        [single] = submits
        if isinstance(single, ApiError):
            raise single
        reply = _Reply(single, with_token_ids=with_token_ids)
        return partial(respond, request, worker, [single], reply, stream, settings=settings)

    return routes


class _Reply(Reply):
    completion = Completion
    chunk: ClassVar[type[CompletionChunk]] = CompletionChunk

    def choice(self, index: int, choice: ChoiceText, token_ids: list[int] | None) -> Choice:
        return Choice(
            index=index,
            text=choice.text,
            logprobs=ChoiceLogprobs.of(choice.logprobs),
            finish_reason=choice.finish_reason,
            token_ids=token_ids,
        )

    def choice_delta(self, delta: TokenDelta, token_ids: list[int] | None) -> ChoiceDelta:
        return ChoiceDelta(
            index=delta.index,
            text=delta.text,
            logprobs=ChoiceLogprobs.of(delta.logprobs),
            finish_reason=delta.finish_reason,
            token_ids=token_ids,
        )

    def counts(self, usage: Usage) -> UsageCounts:
        return UsageCounts.of(usage)


class _BatchReply(_Reply):
    """The answer to one prompt of a batch; its events say to which."""

    chunk = BatchChunk

    def __init__(self, submit: Submit, index: int, *, with_token_ids: bool) -> None:
        super().__init__(submit, with_token_ids=with_token_ids)
        self.head["prompt_index"] = index  # the whole answer has no such field: there it stands in its place
