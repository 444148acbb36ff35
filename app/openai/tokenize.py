"""``POST /tokenize``, in vLLM's form: the tokens of a prompt, as a generation would have them."""

from __future__ import annotations

import asyncio
import uuid

from fastapi import APIRouter, Request

from app.disconnect import unless_disconnected
from app.errors import bad_request, internal_error
from app.generation import collect, generate, served_model, user_message
from app.intake import check_length, read_json
from app.openai.messages import read_conversation
from app.openai.operations import TOKENIZE_OPERATION
from app.openai.schemas import TokenizeRequest, Tokens
from app.pictures import Picture
from app.settings import Settings
from app.worker.connection import WorkerConnection
from protocol.messages import ChatMessage, Submit


def router(settings: Settings, worker: WorkerConnection) -> APIRouter:
    routes = APIRouter(tags=["openai"])

    @routes.post("/v1/tokenize", include_in_schema=False)
    @routes.post("/tokenize", response_model=Tokens, **TOKENIZE_OPERATION)
    async def tokenize(request: Request) -> Tokens:
        asked = await read_json(request, TokenizeRequest)
        messages, pictures = await asyncio.to_thread(_conversation, asked, settings)
        submit = Submit(
            request_id=f"tok-{uuid.uuid4().hex}",
            model=served_model(worker, asked.model),
            messages=messages,
            pictures=tuple(picture.data for picture in pictures),
            deadline_seconds=settings.deadline_seconds,
            prompt_only=True,
            return_prompt_token_ids=True,
        )
        request.state.generation_id = submit.request_id
        answer = await unless_disconnected(request.receive, collect(generate(worker, submit)))
        if answer.prompt_token_ids is None or worker.status is None:
            raise internal_error()
        tokens = list(answer.prompt_token_ids)
        return Tokens(count=len(tokens), max_model_len=worker.status.context_length, tokens=tokens)

    return routes


def _conversation(asked: TokenizeRequest, settings: Settings) -> tuple[tuple[ChatMessage, ...], list[Picture]]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request('Either "prompt" or "messages" is needed.', "prompt")
    if asked.messages is not None:
        return read_conversation(asked.messages, settings)
    assert asked.prompt is not None
    check_length(len(asked.prompt), "prompt", settings)
    return (user_message(asked.prompt),), []
