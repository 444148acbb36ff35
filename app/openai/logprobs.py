"""Log probabilities of an answer's tokens, as OpenAI's completions tell them."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence

from pydantic import BaseModel, Field

from app.logprobs import finite, token_text
from protocol.messages import ChosenToken


class CompletionLogprobs(BaseModel):
    """The tokens of a choice, or of an event's part of it, in order."""

    tokens: list[str] = Field(
        description="A token whose bytes are no UTF-8, being part of a character, is written `bytes:\\xf0\\x9f`."
    )
    token_logprobs: list[float] = Field(description="Before temperature and the other sampling parameters.")
    top_logprobs: list[dict[str, float]] | None = Field(
        description="The likeliest tokens at each place, as many as were asked for, and the chosen one; null where "
        "none were asked for."
    )
    text_offset: list[int] = Field(description="Where each token begins, in characters of the choice's text.")


class ChoiceTokens:
    """The tokens of one choice as they come: where a token begins depends on those before it."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def logprobs(self, tokens: Sequence[ChosenToken]) -> CompletionLogprobs | None:
        """Those of the next tokens; ``None`` for none."""
        if not tokens:
            return None
        return CompletionLogprobs(
            tokens=[_text(token.token) for token in tokens],
            token_logprobs=[finite(token.logprob) for token in tokens],
            top_logprobs=[_likeliest(token) for token in tokens] if tokens[0].likeliest else None,
            text_offset=[self._pass(token.token) for token in tokens],
        )

    def _pass(self, token: bytes) -> int:
        began = self._offset
        self._offset += len(self._decoder.decode(token))
        return began


def _likeliest(chosen: ChosenToken) -> dict[str, float]:
    return {_text(token.token): finite(token.logprob) for token in (*chosen.likeliest, chosen)}


def _text(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return f"bytes:{token_text(token)}"
