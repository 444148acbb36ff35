"""The requests and answers of OpenAI's two generating routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.openai.messages import Message
from app.openai.parameters import OpenAIParameters, Unsupported
from app.schemas import ANSWERED, AnswerHead, Choice, ChoiceDelta, TokenIds, is_none
from protocol.messages import FinishReason, Usage


class ChatCompletionRequest(OpenAIParameters):
    """A conversation to be continued."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    logprobs: Annotated[Any, Unsupported(False)] = None
    top_logprobs: Annotated[Any, Unsupported(0)] = None
    response_format: Annotated[Any, Unsupported({"type": "text"})] = None
    tools: Annotated[Any, Unsupported([])] = None
    tool_choice: Annotated[Any, Unsupported("none")] = None
    parallel_tool_calls: Annotated[Any, Unsupported()] = None
    functions: Annotated[Any, Unsupported([])] = None
    function_call: Annotated[Any, Unsupported("none")] = None
    modalities: Annotated[Any, Unsupported(["text"])] = None
    audio: Annotated[Any, Unsupported()] = None
    prediction: Annotated[Any, Unsupported()] = None
    reasoning_effort: Annotated[Any, Unsupported("none")] = None
    store: Annotated[Any, Unsupported(False)] = None
    metadata: Annotated[Any, Unsupported({})] = None


def _one_prompt(prompt: Any) -> Any:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    raise ValueError("must be a string, or a list with one string in it; more are not supported by this server yet.")


OneOrOneInAList = str | Annotated[list[str], Field(min_length=1, max_length=1)]


class CompletionRequest(OpenAIParameters):
    """A text to be answered."""

    prompt: Annotated[
        str, Field(min_length=1), BeforeValidator(_one_prompt, json_schema_input_type=OneOrOneInAList)
    ] = Field(description="The user's text.", examples=["Say hello."])
    # 0 asks for the log probabilities of the chosen tokens, so it is not neutral here.
    logprobs: Annotated[Any, Unsupported()] = None
    best_of: Annotated[Any, Unsupported(1)] = None
    echo: Annotated[Any, Unsupported(False)] = None
    suffix: Annotated[Any, Unsupported("")] = None


class PromptTokensDetails(BaseModel):
    image_tokens: int = Field(description="Those of the prompt tokens that stand for pictures.")


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int = Field(description="Prompt and completion together.")
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> CompletionUsage:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(image_tokens=usage.image_tokens),
        )


ChunkUsage = Annotated[
    CompletionUsage | None,
    Field(description='Only with "stream_options.include_usage": null, and counted in a last event without choices.'),
]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    model_config = ANSWERED

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason
    token_ids: TokenIds = None


class ChatCompletion(AnswerHead):
    """The whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_token_ids: TokenIds = None


class ChatDelta(BaseModel):
    role: Annotated[Literal["assistant"] | None, Field(exclude_if=is_none, description="In the first delta.")] = None
    content: str = Field(description="What comes after the text sent so far.")


class ChatChunkChoice(BaseModel):
    model_config = ANSWERED

    index: int
    delta: ChatDelta
    logprobs: None = None
    finish_reason: FinishReason | None = Field(description="Set on the last delta of a choice.")
    token_ids: TokenIds = None


class ChatCompletionChunk(AnswerHead):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: ChunkUsage = None
    prompt_token_ids: TokenIds = None


class TextChoice(Choice):
    logprobs: None = None


class TextCompletion(AnswerHead):
    """The whole answer."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: CompletionUsage
    prompt_token_ids: TokenIds = None


class TextChunkChoice(ChoiceDelta):
    logprobs: None = None


class TextCompletionChunk(AnswerHead):
    """One event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChunkChoice]
    usage: ChunkUsage = None
    prompt_token_ids: TokenIds = None
