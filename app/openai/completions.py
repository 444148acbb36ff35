"""``POST /v1/completions``.

OpenAI's own gives the prompt to the model as it is. Here it goes through the chat template as one message of the user:
the worker's one way past the template reads special tokens in a prompt as special, which no REST caller may write.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.generation import ChoiceText, new_submit, served_model, user_message
from app.intake import check_length, read_json
from app.openai.logprobs import ChoiceTokens
from app.openai.operations import COMPLETIONS_OPERATION
from app.openai.parameters import OpenAIParameters
from app.openai.reply import OpenAIReply
from app.openai.schemas import CompletionRequest, TextChoice, TextChunkChoice, TextCompletion, TextCompletionChunk
from app.reply import Reply, respond
from app.settings import Settings
from app.validation import validated_json
from app.worker.pool import WorkerPool
from protocol.messages import Submit, TokenDelta


def router(settings: Settings, worker: WorkerPool) -> APIRouter:
    routes = APIRouter(tags=["openai"])

    @routes.post("/v1/completions/", include_in_schema=False)
    @routes.post("/v1/completions", response_model=TextCompletion, **COMPLETIONS_OPERATION)
    async def completions(request: Request) -> Response:
        return await respond(request, worker, *await read(request), settings=settings)

    async def read(request: Request) -> tuple[list[Submit], Reply, bool]:
        asked = await read_json(request, partial(validated_json, CompletionRequest))
        check_length(sum(map(len, asked.prompt)), "prompt", settings)
        model = served_model(worker, asked.model)
        submits = [
            new_submit(request, "cmpl", model, (user_message(text),), [], asked, settings) for text in asked.prompt
        ]
        return submits, _Reply(submits[0], asked), asked.stream

    return routes


class _Reply(OpenAIReply):
    completion = TextCompletion
    chunk = TextCompletionChunk

    def __init__(self, submit: Submit, asked: OpenAIParameters) -> None:
        super().__init__(submit, asked)
        self._choices: defaultdict[int, ChoiceTokens] = defaultdict(ChoiceTokens)

    def choice(self, index: int, choice: ChoiceText, token_ids: list[int] | None) -> TextChoice:
        return TextChoice(
            index=index,
            text=choice.text,
            logprobs=self._choices[index].logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
            token_ids=token_ids,
        )

    def choice_delta(self, delta: TokenDelta, token_ids: list[int] | None) -> TextChunkChoice:
        return TextChunkChoice(
            index=delta.index,
            text=delta.text,
            logprobs=self._choices[delta.index].logprobs(delta.logprobs),
            finish_reason=delta.finish_reason,
            token_ids=token_ids,
        )
