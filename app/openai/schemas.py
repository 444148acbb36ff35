"""The requests and answers of OpenAI's two generating routes, and of ``/tokenize``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from app.logprobs import ChoiceLogprobs
from app.openai.logprobs import CompletionLogprobs
from app.openai.messages import Message
from app.openai.parameters import OpenAIParameters, Unsupported
from app.parameters import ASKED, GenerationParameters, RequestModel, optional_fields_may_be_null
from app.schemas import ANSWERED, AnswerHead, TokenIds, is_none
from protocol.messages import FinishReason, Usage


class ChatCompletionRequest(OpenAIParameters, GenerationParameters):
    """A conversation to be continued."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    safety_identifier: str | None = Field(default=None, description='The new name of "user".')
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
    verbosity: Annotated[Any, Unsupported("medium")] = None
    web_search_options: Annotated[Any, Unsupported()] = None
    moderation: Annotated[Any, Unsupported()] = None
    prompt_cache_key: Annotated[Any, Unsupported()] = None
    prompt_cache_options: Annotated[Any, Unsupported()] = None
    prompt_cache_retention: Annotated[Any, Unsupported()] = None


Prompt = Annotated[str, Field(min_length=1)]
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=16)]


def _as_prompts(prompt: Any) -> Any:
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        return prompt
    raise ValueError("must be a string that is not empty, or a list of such strings; token ids are not taken.")


class CompletionRequest(OpenAIParameters):
    """A text to be answered."""

    prompt: Annotated[Prompts, BeforeValidator(_as_prompts, json_schema_input_type=Prompt | Prompts)] = Field(
        description="The user's text. Several are answered each on its own: the choices of the first come first.",
        examples=["Say hello."],
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None,
        description="Tell the log probability of each token of the answer, and of so many likeliest ones at its place.",
        examples=[2],
    )
    best_of: int | None = Field(default=None, description='Taken only where it says the same as "n".', examples=[1])
    echo: Annotated[Any, Unsupported(False)] = None
    suffix: Annotated[Any, Unsupported("")] = None

    @field_validator("prompt")
    @classmethod
    def _has_one_list_of_token_ids(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if len(value) > 1 and info.data.get("return_token_ids"):
            raise ValueError('must be a single one with "return_token_ids".')
        return value

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int, info: ValidationInfo) -> int:
        if value != info.data.get("n", value):
            raise ValueError('is not supported by this server; leave it out, or send the same as "n".')
        return value

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


def _prompt_or_messages(schema: dict[str, Any]) -> None:
    optional_fields_may_be_null(schema)
    schema["oneOf"] = [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
    ]


class TokenizeRequest(RequestModel):
    """A prompt or a conversation whose tokens are asked for."""

    model_config = ASKED | {"json_schema_extra": _prompt_or_messages}

    model: str | None = Field(
        default=None, description="If given, it must be the served model's name (see /v1/models)."
    )
    prompt: Prompt | None = Field(
        default=None,
        description="The user's text; as in completions, it goes through the chat template as one message.",
        examples=["Say hello."],
    )
    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(
        default=None, description="In place of a prompt: a conversation, as in chat completions."
    )
    add_generation_prompt: Annotated[Any, Unsupported(True)] = None
    add_special_tokens: Annotated[Any, Unsupported()] = None
    continue_final_message: Annotated[Any, Unsupported(False)] = None
    return_token_strs: Annotated[Any, Unsupported(False)] = None


class Tokens(BaseModel):
    """A prompt's tokens, those that stand for pictures included."""

    count: int
    max_model_len: int = Field(description="Prompt and generated tokens together, at most.")
    tokens: list[int] = Field(description="Their ids.")


class PromptTokensDetails(BaseModel):
    image_tokens: int = Field(description="Those of the prompt tokens that stand for pictures.")
    cached_tokens: int = Field(description="Those of the prompt tokens that were not computed again.")


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
            prompt_tokens_details=PromptTokensDetails(
                image_tokens=usage.image_tokens, cached_tokens=usage.cached_tokens
            ),
        )


ChunkUsage = Annotated[
    CompletionUsage | None,
    Field(description='Only with "stream_options.include_usage": null, and counted in a last event without choices.'),
]


ChatLogprobs = Annotated[ChoiceLogprobs | None, Field(description='Null without "logprobs".')]
TextLogprobs = Annotated[CompletionLogprobs | None, Field(description='Null without "logprobs".')]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    model_config = ANSWERED

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs = None
    finish_reason: FinishReason
    token_ids: TokenIds = None


class ChatCompletion(AnswerHead):
    """The whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_token_ids: TokenIds = None


class ChatDelta(BaseModel):
    role: Annotated[
        Literal["assistant"] | None, Field(exclude_if=is_none, description="In a choice's first delta, without text.")
    ] = None
    content: str = Field(description="What comes after the text sent so far.")


class ChatChunkChoice(BaseModel):
    model_config = ANSWERED

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs = None
    finish_reason: FinishReason | None = Field(description="Set on the last delta of a choice.")
    token_ids: TokenIds = None


class ChatCompletionChunk(AnswerHead):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: ChunkUsage = None
    prompt_token_ids: TokenIds = None


class TextChoice(BaseModel):
    model_config = ANSWERED

    index: int = Field(description="Of several prompts, those of the first come first.")
    text: str
    logprobs: TextLogprobs = None
    finish_reason: FinishReason
    token_ids: TokenIds = None


class TextCompletion(AnswerHead):
    """The whole answer."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: CompletionUsage
    prompt_token_ids: TokenIds = None


class TextChunkChoice(BaseModel):
    model_config = ANSWERED

    index: int = Field(description="Of several prompts, those of the first come first.")
    text: str = Field(description="What comes after the text sent so far.")
    logprobs: TextLogprobs = None
    finish_reason: FinishReason | None = Field(description="Set on the last delta of a choice.")
    token_ids: TokenIds = None


class TextCompletionChunk(AnswerHead):
    """One event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChunkChoice]
    usage: ChunkUsage = None
    prompt_token_ids: TokenIds = None
