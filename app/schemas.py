"""The REST API's own types: what may be sent, and what is answered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.logprobs import ChoiceLogprobs
from app.parameters import GenerationParameters, RequestModel, without_null_defaults
from protocol.messages import FinishReason, Usage

ANSWERED = ConfigDict(json_schema_extra=without_null_defaults)


class EncodedPicture(RequestModel):
    """A PNG, JPEG, WEBP, GIF or BMP file."""

    data: str = Field(description="The file's bytes in base64.", json_schema_extra={"contentEncoding": "base64"})


class GenerateBody(RequestModel):
    """The request as JSON."""

    prompt: str = Field(min_length=1, description="The user's text.", examples=["What is in this image?"])
    images: list[EncodedPicture] = Field(default=[], description="The pictures, in prompt order.")
    params: GenerationParameters = Field(default=GenerationParameters(), description="Sampling parameters.")
    model: str | None = Field(
        default=None, description="If given, it must be the served model's name (see /v1/models)."
    )
    stream: bool | None = Field(default=None, description='The same as "stream" in "params".')


def is_none(value: object) -> bool:
    return value is None


TokenIds = Annotated[
    list[int] | SkipJsonSchema[None], Field(exclude_if=is_none, description='Only with "return_token_ids".')
]
Logprobs = Annotated[
    ChoiceLogprobs | SkipJsonSchema[None], Field(exclude_if=is_none, description='Only with "logprobs".')
]


class UsageCounts(BaseModel):
    prompt_tokens: int
    image_tokens: int = Field(description="Those of the prompt tokens that stand for pictures.")
    cached_tokens: int = Field(description="Those of the prompt tokens that were not computed again.")
    completion_tokens: int
    total_tokens: int = Field(description="Prompt and completion together.")

    @classmethod
    def of(cls, usage: Usage) -> UsageCounts:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class AnswerHead(BaseModel):
    model_config = ANSWERED

    id: str = Field(examples=["gen-0b9d5c1e6f0a4a0e8f4b7d1f0a6f4c11"])
    object: str
    created: int = Field(description="Unix time in seconds.")
    model: str


class Choice(BaseModel):
    model_config = ANSWERED

    index: int
    text: str
    logprobs: Logprobs = None
    finish_reason: FinishReason
    token_ids: TokenIds = None


class Completion(AnswerHead):
    """The whole answer."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]
    usage: UsageCounts
    prompt_token_ids: TokenIds = None


class ChoiceDelta(BaseModel):
    model_config = ANSWERED

    index: int
    text: str = Field(description="What comes after the text sent so far.")
    logprobs: Logprobs = None
    finish_reason: FinishReason | None = Field(description="Set on the last delta of a choice.")
    token_ids: TokenIds = None


class CompletionChunk(AnswerHead):
    """One event of a stream. The last one has no choices and carries the usage."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[ChoiceDelta]
    usage: Annotated[UsageCounts | SkipJsonSchema[None], Field(exclude_if=is_none)] = None
    prompt_token_ids: TokenIds = None


class ErrorBody(BaseModel):
    message: str = Field(description="A sentence for the person who meets it.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field at fault, if one is.")
    code: str = Field(description="For programs.", examples=["invalid_request"])


class ErrorAnswer(BaseModel):
    error: ErrorBody


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds since which this gateway serves.")
    owned_by: str = "local"
    context_length: int = Field(description="Prompt and generated tokens together, at most.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok", "ready"]
