"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.disconnect import unless_disconnected
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
from app.picture_intake import PictureIntake
from app.pictures import AskedPicture
from app.reply import Reply, respond
from app.settings import Settings
from app.validation import validated_json
from app.worker.pool import WorkerPool
from protocol.messages import ChatMessage, Submit, TokenDelta, Usage


def router(settings: Settings, worker: WorkerPool, intake: PictureIntake) -> APIRouter:
    routes = APIRouter(tags=["openai"])

    @routes.post("/v1/chat/completions/", include_in_schema=False)
    @routes.post("/v1/chat/completions", response_model=ChatCompletion, **CHAT_OPERATION)
    async def chat_completions(request: Request) -> Response:
        return await respond(request, worker, *await read(request), settings=settings)

    async def read(request: Request) -> tuple[list[Submit], Reply, bool]:
        asked, messages, asked_pictures = await read_json(request, read_body)
        model = served_model(worker, asked.model)
        pictures = await unless_disconnected(request.receive, intake.take(asked_pictures))
        submit = new_submit(request, "chatcmpl", model, messages, pictures, asked, settings)
        return [submit], _Reply(submit, asked), asked.stream

    def read_body(body: bytes) -> tuple[ChatCompletionRequest, tuple[ChatMessage, ...], list[AskedPicture]]:
        asked = validated_json(ChatCompletionRequest, body)
        return asked, *read_conversation(asked.messages, settings)

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

    def events(self, item: TokenDelta | Usage) -> Iterator[str]:
        """Each choice begins with an event for its role: OpenAI's SDK doubles log probabilities in a first event."""
        if isinstance(item, TokenDelta) and item.index not in self._begun:
            self._begun.add(item.index)
            choice = ChatChunkChoice(
                index=item.index, delta=ChatDelta(role="assistant", content=""), finish_reason=None
            )
            yield self.dump_chunk(ChatCompletionChunk(**self.head, choices=[choice]))
        yield from super().events(item)

    def choice_delta(self, delta: TokenDelta, token_ids: list[int] | None) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(content=delta.text),
            logprobs=ChoiceLogprobs.of(delta.logprobs),
            finish_reason=delta.finish_reason,
            token_ids=token_ids,
        )
