"""OpenAI's routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.openai.schemas import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    CompletionRequest,
    TextCompletionChunk,
    TokenizeRequest,
)
from app.openapi import ERRORS, REF, STREAM_ENDS, error_responses, generation_responses

OPENAI_MODELS = (ChatCompletionRequest, ChatCompletionChunk, CompletionRequest, TextCompletionChunk, TokenizeRequest)

COMMON = (
    "Null is the same as leaving a field out. What is not supported is refused with a 400 that names the field. With "
    "`stream`, the answer is server-sent events: chunks as tokens are generated, with `stream_options.include_usage` a "
    f"last chunk without choices that carries `usage`, then `data: [DONE]`. {STREAM_ENDS}"
)


def _json_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


CHAT_OPERATION: dict[str, Any] = {
    "summary": "Continue a conversation about pictures (OpenAI)",
    "description": f"OpenAI's chat completions: its SDKs work with this server's `/v1` as their base URL. {COMMON}",
    "openapi_extra": _json_body(
        ChatCompletionRequest,
        {
            "text": {
                "summary": "Text only",
                "value": {"messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 20},
            },
            "picture": {
                "summary": "A picture of one pixel",
                "value": {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "What is in this image?"},
                                {
                                    "type": "image_url",
                                    "image_url": {
                                        "url": "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs="
                                    },
                                },
                            ],
                        }
                    ],
                    "max_completion_tokens": 40,
                },
            },
        },
    ),
    "responses": generation_responses(
        '{"id": "chatcmpl-…", "choices": [{"index": 0, "delta": {"content": "A red"}, …}], …}', ChatCompletionChunk
    ),
}

COMPLETIONS_OPERATION: dict[str, Any] = {
    "summary": "Answer a text (OpenAI)",
    "description": (
        "OpenAI's completions, with one difference: the prompt is not continued as raw text but answered, as one "
        f"message of the user in the model's chat template. {COMMON}"
    ),
    "openapi_extra": _json_body(
        CompletionRequest,
        {"text": {"summary": "A text", "value": {"prompt": "Say hello.", "max_tokens": 20, "temperature": 0}}},
    ),
    "responses": generation_responses(
        '{"id": "cmpl-…", "choices": [{"index": 0, "text": "A red", …}], …}', TextCompletionChunk
    ),
}

TOKENIZE_OPERATION: dict[str, Any] = {
    "summary": "The tokens of a prompt",
    "description": (
        "In vLLM's form. The prompt is made as for a generation: through the chat template, with the beginning of the "
        "answer, and each picture as the tokens that stand for it. So `count` is what `usage.prompt_tokens` would be."
    ),
    "openapi_extra": _json_body(
        TokenizeRequest,
        {
            "text": {"summary": "A text", "value": {"prompt": "Say hello."}},
            "messages": {
                "summary": "A conversation",
                "value": {"messages": [{"role": "user", "content": "Say hello."}]},
            },
        },
    ),
    "responses": error_responses(*ERRORS),
}
