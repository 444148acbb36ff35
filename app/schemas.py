"""The REST API's own types: what may be sent, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from protocol.messages import FinishReason, SamplingParameters, Usage
from protocol.pictures import FORMATS_IN_WORDS


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


LINKS = "Where this server is set up to fetch pictures (`--allowed_media_domains`), an http or https URL too."
Prompt = Annotated[str, Field(min_length=1, description="The user's text.", examples=["What is in this image?"])]


def _one_of_its_fields(schema: dict[str, Any]) -> None:
    _without_null(schema)
    schema["oneOf"] = [{"required": [name]} for name in schema["properties"]]


class PictureSource(BaseModel):
    """A picture file: itself, or where it is."""

    model_config = ASKED | ConfigDict(json_schema_extra=_one_of_its_fields)

    data: str | None = Field(
        default=None,
        description=f"The bytes of a {FORMATS_IN_WORDS} file in base64.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    url: str | None = Field(default=None, description=f"The file as a data URL. {LINKS}")

    @model_validator(mode="after")
    def _is_one(self) -> PictureSource:
        if (self.data is None) == (self.url is None):
            raise ValueError('must have either "data" or "url".')
        return self


Parameters = Annotated[GenerationParameters, Field(description="Sampling parameters.")]
AskedModel = Annotated[str | None, Field(description="If given, it must be the served model's name (see /v1/models).")]
AskedStream = Annotated[bool | None, Field(description='The same as "stream" in "params".')]


class GenerateBody(BaseModel):
    """The request as JSON."""

    model_config = ASKED

    prompt: Prompt
    images: list[PictureSource] = Field(default=[], description="The pictures, in prompt order.")
    params: Parameters = GenerationParameters()
    model: AskedModel = None
    stream: AskedStream = None


class BatchBody(BaseModel):
    """Several prompts in one request. Each is answered as if it had been asked alone, with the same parameters."""

    model_config = ASKED

    prompts: list[Prompt] = Field(min_length=1, description="The texts, one for each answer.")
    images: list[list[PictureSource]] = Field(
        default=[], description="The pictures of each prompt: as many lists as prompts, or none at all."
    )
    params: Parameters = GenerationParameters()
    model: AskedModel = None
    stream: AskedStream = None


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


class BatchChunk(CompletionChunk):
    """One event of a batch's stream. The last one of each prompt has no choices and carries its usage."""

    prompt_index: int = Field(description="The prompt that it belongs to.")


class ErrorBody(BaseModel):
    message: str = Field(description="A sentence for the person who meets it.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field at fault, if one is.")
    code: str = Field(description="For programs.", examples=["invalid_request"])


class ErrorAnswer(BaseModel):
    error: ErrorBody


class BatchCompletion(AnswerHead):
    """The answers to several prompts."""

    object: Literal["text_completion.batch"] = "text_completion.batch"
    answers: list[Completion | ErrorAnswer] = Field(description="In the order of the prompts.")
    usage: UsageCounts = Field(description="Of all answers together.")


class BatchErrorEvent(ErrorAnswer):
    """An event of a batch's stream: one prompt failed, and the others go on."""

    prompt_index: int


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
