"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.generation import ChoiceText, new_submit, served_model
from app.intake import read_json
from app.logprobs import ChoiceLogprobs
from app.openai.messages import read_conversation
from app.openai.operations import CHAT_OPERATION
from app.openai.parameters import OpenAIParameters
from app.openai.reply import OpenAIReply
from app.openai.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from app.reply import Reply, respond
from app.settings import Settings
from app.worker.connection import WorkerConnection
from protocol.messages import Submit, TokenDelta


def router(settings: Settings, worker: WorkerConnection) -> APIRouter:
    routes = APIRouter(tags=["openai"])

    @routes.post("/v1/chat/completions/", include_in_schema=False)
    @routes.post("/v1/chat/completions", response_model=ChatCompletion, **CHAT_OPERATION)
    async def chat_completions(request: Request) -> Response:
        return await respond(request, worker, *await read(request), settings=settings)

    async def read(request: Request) -> tuple[list[Submit], Reply, bool]:
        asked = await read_json(request, ChatCompletionRequest)
        messages, pictures = await asyncio.to_thread(read_conversation, asked.messages, settings)
        model = served_model(worker, asked.model)
        submit = new_submit("chatcmpl", model, messages, pictures, asked, settings)
        return [submit], _Reply(submit, asked), asked.stream

    return routes


class _Reply(OpenAIReply):
    completion = ChatCompletion
    chunk = ChatCompletionChunk

    def __init__(self, submit: Submit, asked: OpenAIParameters) -> None:
        super().__init__(submit, asked)
        self._begun: set[int] = set()

    def choice(self, index: int, choice: ChoiceText, token_ids: list[int] | None) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=choice.text),
            logprobs=ChoiceLogprobs.of(choice.logprobs),
            finish_reason=choice.finish_reason,
            token_ids=token_ids,
        )

    def choice_delta(self, delta: TokenDelta, token_ids: list[int] | None) -> ChatChunkChoice:
        role = None if delta.index in self._begun else "assistant"
        self._begun.add(delta.index)
        return ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(role=role, content=delta.text),
            logprobs=ChoiceLogprobs.of(delta.logprobs),
            finish_reason=delta.finish_reason,
            token_ids=token_ids,
        )
