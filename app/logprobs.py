"""Log probabilities of an answer's tokens, as OpenAI's chat completions tell them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from protocol.messages import ChosenToken, LikelyToken

LEAST_LOGPROB = -9999.0
"""What OpenAI tells of a token that is as good as impossible: JSON has no infinity."""


class TokenLogprob(BaseModel):
    token: str = Field(
        description="The token's text. Bytes of it that are no UTF-8, those of a part of a character, are written as "
        r"`\xf0`.",
        examples=[" red"],
    )
    logprob: float = Field(description="Before temperature and the other sampling parameters.", examples=[-0.31])
    bytes: list[int] = Field(description="The token's bytes, of which the characters are made.", examples=[[114]])


class ChosenTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob] = Field(description="As many as were asked for, likeliest first.")


class ChoiceLogprobs(BaseModel):
    """The tokens of a choice, or of an event's part of it, in order."""

    content: list[ChosenTokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[ChosenToken]) -> ChoiceLogprobs | None:
        return cls(content=[_chosen(token) for token in tokens]) if tokens else None


def token_text(token: bytes) -> str:
    """As OpenAI writes it."""
    return token.decode("utf-8", "backslashreplace")


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _chosen(token: ChosenToken) -> ChosenTokenLogprob:
    top_logprobs = [TokenLogprob(**_fields(likely)) for likely in token.likeliest]
    return ChosenTokenLogprob(**_fields(token), top_logprobs=top_logprobs)


def _fields(token: LikelyToken) -> dict[str, object]:
    return {"token": token_text(token.token), "logprob": finite(token.logprob), "bytes": list(token.token)}
