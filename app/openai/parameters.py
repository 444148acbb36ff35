"""OpenAI's request parameters: what works here, and what is refused rather than ignored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec.structs import replace
from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from app.parameters import CommonParameters, RequestModel, TokenLimit
from protocol.messages import SamplingParameters


class Unsupported:
    """The type of a field that this server does not have yet: it takes only values that ask for nothing."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = neutral

    def _check(self, value: object) -> None:
        if not any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in self._neutral):
            or_send = f" or send {' or '.join(map(json.dumps, self._neutral))}" if self._neutral else ""
            raise ValueError(f"is not supported by this server yet; leave it out{or_send}.")

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._neutral), "description": "Not supported yet: only what asks for nothing is taken."}


class StreamOptions(RequestModel):
    """What a stream says beside the answer."""

    include_usage: bool = Field(
        default=False, description="End with an event that carries `usage` and no choices; in the others it is null."
    )
    include_obfuscation: Annotated[Any, Unsupported(False)] = None


class OpenAIParameters(CommonParameters):
    """What chat completions and completions share."""

    model: str | None = Field(
        default=None, description="If given, it must be the served model's name (see /v1/models)."
    )
    max_completion_tokens: TokenLimit | None = Field(
        default=None,
        description="Tokens to generate at most; without it, as many as the context has room for. `max_tokens` is its "
        "older name.",
        examples=[40],
    )
    stream_options: StreamOptions | None = Field(default=None, description='Only with "stream".')
    user: str | None = Field(
        default=None, description="Taken because OpenAI's clients send it; it is neither used nor logged."
    )
    service_tier: Literal["auto", "default"] | None = Field(
        default=None, description="There is one tier, which both of these ask for."
    )

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_max_tokens(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("max_tokens", value) not in (None, value):
            raise ValueError('and "max_tokens" are the same parameter and must not differ.')
        return value

    @field_validator("stream_options")
    @classmethod
    def _is_for_streams(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream", True):
            raise ValueError('is for streams only: send "stream": true too.')
        return value

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingParameters:
        return replace(super().sampling(), max_tokens=self.max_completion_tokens or self.max_tokens)
