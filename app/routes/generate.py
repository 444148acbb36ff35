"""``POST /v1/multimodal/generate``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.generation import ChoiceText, new_submit, served_model, user_message
from app.intake import read_generate_call
from app.logprobs import ChoiceLogprobs
from app.openapi import GENERATE_OPERATION
from app.reply import Reply, respond
from app.schemas import Choice, ChoiceDelta, Completion, CompletionChunk, UsageCounts
from app.settings import Settings
from app.worker.connection import WorkerConnection
from protocol.messages import Submit, TokenDelta, Usage


def router(settings: Settings, worker: WorkerConnection) -> APIRouter:
    routes = APIRouter(tags=["generate"])

    @routes.post("/v1/multimodal/generate", response_model=Completion, **GENERATE_OPERATION)
    async def multimodal_generate(request: Request) -> Response:
        return await respond(request, worker, *await read(request), settings=settings)

    async def read(request: Request) -> tuple[list[Submit], Reply, bool]:
        call = await read_generate_call(request, settings)
        submit = new_submit(
            "gen",
            served_model(worker, call.model),
            (user_message(call.prompt, len(call.pictures)),),
            call.pictures,
            call.parameters,
            settings,
        )
        return [submit], _Reply(submit, with_token_ids=call.parameters.return_token_ids), call.parameters.stream

    return routes


class _Reply(Reply):
    completion = Completion
    chunk = CompletionChunk

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
