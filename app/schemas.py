"""The REST API's own types: what may be sent, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from protocol.messages import FinishReason, SamplingParameters, Usage


def _without_null_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        if field.get("default", 0) is None:
            del field["default"]


def _without_null(schema: dict[str, Any]) -> None:
    """A field that may be left out is not a field that may be null."""
    for field in schema["properties"].values():
        if {"type": "null"} in field.get("anyOf", ()):
            field |= field.pop("anyOf")[0]
    _without_null_defaults(schema)


ASKED = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=_without_null)
ANSWERED = ConfigDict(json_schema_extra=_without_null_defaults)

TokenLimit = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class GenerationParameters(BaseModel):
    """How tokens are chosen, when to stop, and what the answer holds."""

    model_config = ASKED

    max_tokens: TokenLimit | None = Field(
        default=None,
        description="Tokens to generate at most; without it, as many as the context has room for.",
        examples=[40],
    )
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 is greedy decoding.", examples=[0.2])
    top_k: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Sample among the k likeliest tokens; 0 is all of them.",
        examples=[50],
    )
    top_p: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Sample among the likeliest tokens whose probabilities add up to p; 0 leaves only the likeliest.",
        examples=[0.9],
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        default=None,
        description="Makes sampling repeatable; without it, drawn anew for each request.",
        examples=[7],
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        default=[],
        description="Generation ends before this string, or the first of these; it is not part of the text.",
        examples=[["\n\n"]],
    )
    ignore_eos: bool = Field(default=False, description="Go on after the end-of-sequence token (for measurements).")
    return_token_ids: bool = Field(default=False, description="Answer with the token ids of prompt and choices too.")
    stream: bool = Field(default=False, description="Answer with server-sent events while tokens are generated.")

    def sampling(self) -> SamplingParameters:
        return SamplingParameters(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            ignore_eos=self.ignore_eos,
        )


class EncodedPicture(BaseModel):
    """A PNG, JPEG, WEBP, GIF or BMP file."""

    model_config = ASKED

    data: str = Field(description="The file's bytes in base64.", json_schema_extra={"contentEncoding": "base64"})


class GenerateBody(BaseModel):
    """The request as JSON."""

    model_config = ASKED

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


class UsageCounts(BaseModel):
    prompt_tokens: int
    image_tokens: int = Field(description="Those of the prompt tokens that stand for pictures.")
    completion_tokens: int
    total_tokens: int = Field(description="Prompt and completion together.")

    @classmethod
    def of(cls, usage: Usage) -> UsageCounts:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
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


class TritonState(BaseModel):
    """One Triton, by its own word."""

    server_ready: bool = Field(description="Triton answers, and calls itself ready.")
    models_ready: bool = Field(description="So it does of our models in it.")


class TritonHealth(BaseModel):
    status: Literal["Triton server is reachable and ready"] = "Triton server is reachable and ready"
    workers: list[TritonState] = Field(description="In the order of `--triton_grpc_url`; at least one is ready.")
