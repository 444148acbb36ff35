"""The REST API's own types: what may be sent, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from app.logprobs import ChoiceLogprobs
from app.parameters import ASKED, GenerationParameters, RequestModel, optional_fields_may_be_null, without_null_defaults
from protocol.messages import FinishReason, Usage
from protocol.pictures import FORMATS_IN_WORDS

ANSWERED = ConfigDict(json_schema_extra=without_null_defaults)

LINKS = "Where this server is set up to fetch pictures (`--allowed_media_domains`), an http or https URL too."
Prompt = Annotated[str, Field(min_length=1, description="The user's text.", examples=["What is in this image?"])]


def _one_of_its_fields(schema: dict[str, Any]) -> None:
    optional_fields_may_be_null(schema)
    names = list(schema["properties"])
    schema["oneOf"] = [
        {"required": [name], "properties": {one: {"type": "string" if one == name else "null"} for one in names}}
        for name in names
    ]


class PictureSource(RequestModel):
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


class GenerateBody(RequestModel):
    """The request as JSON."""

    prompt: Prompt
    images: list[PictureSource] = Field(default=[], description="The pictures, in prompt order.")
    params: Parameters = GenerationParameters()
    model: AskedModel = None
    stream: AskedStream = None


class BatchBody(RequestModel):
    """Several prompts in one request. Each is answered as if it had been asked alone, with the same parameters."""

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
