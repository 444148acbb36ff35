"""How an answer is generated: the parameters that every generating route takes, and what the worker makes of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from app.answer_format import MAX_GRAMMAR_CHARACTERS, ResponseFormat
from protocol.messages import Grammar, RegexGrammar, SamplingParameters


def without_null_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        if field.get("default", 0) is None:
            del field["default"]


def optional_fields_may_be_null(schema: dict[str, Any]) -> None:
    for name, field in schema["properties"].items():
        if name in schema.get("required", ()) or {"type": "null"} in field.get("anyOf", ()):
            continue
        if "anyOf" in field:
            field["anyOf"] = [*field["anyOf"], {"type": "null"}]
        elif "$ref" in field:
            field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]
        if "enum" in field:
            field["enum"] = [*field["enum"], None]
        if "type" in field:
            field["type"] = [field["type"], "null"]
    without_null_defaults(schema)


ASKED = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=optional_fields_may_be_null)


class RequestModel(BaseModel):
    """An object in which null says the same as leaving the field out: many clients send both."""

    model_config = ASKED

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name not in cls.model_fields}


TokenLimit = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


TokenIdAsText = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class CommonParameters(RequestModel):
    """All but ``logprobs``, which OpenAI's completions write in another way."""

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
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Drop tokens less likely than this part of the likeliest one's probability; 0 drops none.",
        examples=[0.05],
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Divides positive logits and multiplies negative ones of tokens in prompt or answer so far; "
        "1 does nothing.",
        examples=[1.1],
    )
    presence_penalty: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="Subtracted from the logit of each token in the answer so far.",
        examples=[0.5],
    )
    frequency_penalty: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="Subtracted from the logit of each token once for every time that the answer so far has it.",
        examples=[0.5],
    )
    logit_bias: Annotated[dict[TokenIdAsText, Bias], Field(max_length=1024)] = Field(
        default={},
        description="Added to the logits of these tokens, whose ids are the keys: -100 all but forbids a token, 100 "
        "all but forces it.",
        examples=[{"42": -100}],
        json_schema_extra={"additionalProperties": False},
    )
    response_format: ResponseFormat | None = Field(
        default=None,
        description="What the answer must be: text (the default), a JSON object, or JSON of a schema. Tokens that "
        "would break it are never chosen; an answer that ends at its token limit may still be incomplete.",
        examples=[{"type": "json_object"}],
    )
    guided_regex: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)] | None = Field(
        default=None,
        description='A regular expression that the whole answer must match; not together with a "response_format".',
        examples=["(yes|no)"],
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
    n: int = Field(
        default=1, ge=1, le=16, description="Choices, each drawn on its own; a choice takes one place in the queue."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Requests reuse cached results of their own salt alone, so that callers who keep theirs secret "
        "cannot probe each other's prompts by their speed.",
        examples=["a-secret-of-one-tenant"],
    )
    return_token_ids: bool = Field(default=False, description="Answer with the token ids of prompt and choices too.")
    stream: bool = Field(default=False, description="Answer with server-sent events while tokens are generated.")

    @field_validator("guided_regex")
    @classmethod
    def _is_the_only_grammar(cls, value: str, info: ValidationInfo) -> str:
        asked = info.data.get("response_format")
        if asked is not None and asked.grammar() is not None:
            raise ValueError('and "response_format" cannot both be given.')
        return value

    @property
    def likeliest(self) -> int | None:
        """How many tokens' log probabilities are told beside the chosen one's; ``None``: of none."""
        raise NotImplementedError

    def grammar(self) -> Grammar | None:
        if self.guided_regex is not None:
            return RegexGrammar(self.guided_regex)
        return None if self.response_format is None else self.response_format.grammar()

    def sampling(self) -> SamplingParameters:
        return SamplingParameters(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            grammar=self.grammar(),
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            ignore_eos=self.ignore_eos,
            n=self.n,
            logprobs=self.likeliest,
        )


class GenerationParameters(CommonParameters):
    """How tokens are chosen, when to stop, and what the answer holds."""

    logprobs: bool = Field(default=False, description="Tell the log probability of each token of the answer.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None,
        description='Tell those of so many likeliest tokens too, at each place; only with "logprobs".',
        examples=[5],
    )

    @field_validator("top_logprobs")
    @classmethod
    def _is_for_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if not info.data.get("logprobs", True):
            raise ValueError('is only for "logprobs": send "logprobs": true too.')
        return value

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
