"""``POST /tokenize``, in vLLM's form: the tokens of a prompt, as a generation would have them."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request

from app.disconnect import unless_disconnected
from app.errors import bad_request, internal_error
from app.generation import collect, generate, served_model, user_message
from app.intake import check_length, read_json
from app.openai.messages import read_conversation
from app.openai.operations import TOKENIZE_OPERATION
from app.openai.schemas import TokenizeRequest, Tokens
from app.picture_intake import PictureIntake
from app.pictures import AskedPicture
from app.settings import Settings
from app.validation import validated_json
from app.worker.pool import WorkerPool
from protocol.messages import ChatMessage, Submit


def router(settings: Settings, worker: WorkerPool, intake: PictureIntake) -> APIRouter:
    routes = APIRouter(tags=["openai"])

    @routes.post("/v1/tokenize", include_in_schema=False)
    @routes.post("/tokenize", response_model=Tokens, **TOKENIZE_OPERATION)
    async def tokenize(request: Request) -> Tokens:
        asked, messages, asked_pictures = await read_json(request, read_body)
        model = served_model(worker, asked.model)
        pictures = await unless_disconnected(request.receive, intake.take(asked_pictures))
        submit = Submit(
            request_id=f"tok-{uuid.uuid4().hex}",
            model=model,
            messages=messages,
            pictures=tuple(picture.data for picture in pictures),
            deadline_seconds=settings.deadline_seconds,
            prompt_only=True,
            return_prompt_token_ids=True,
            http_request_id=request.state.request_id,
        )
        request.state.generation_id = submit.request_id
        answer = await unless_disconnected(request.receive, collect(generate(worker, submit)))
        if answer.prompt_token_ids is None or model not in worker.models:
            raise internal_error()
        tokens = list(answer.prompt_token_ids)
        return Tokens(count=len(tokens), max_model_len=worker.models[model], tokens=tokens)

    def read_body(body: bytes) -> tuple[TokenizeRequest, tuple[ChatMessage, ...], list[AskedPicture]]:
        asked = validated_json(TokenizeRequest, body)
        return asked, *_conversation(asked, settings)

    return routes


def _conversation(asked: TokenizeRequest, settings: Settings) -> tuple[tuple[ChatMessage, ...], list[AskedPicture]]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request('Either "prompt" or "messages" is needed.', "prompt")
    if asked.messages is not None:
        return read_conversation(asked.messages, settings)
    assert asked.prompt is not None
    check_length(len(asked.prompt), "prompt", settings)
    return (user_message(asked.prompt),), []
