"""How much work a worker has before it, as far as this gateway process knows: an estimate, to compare workers by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.messages import Delta, Submit, TextPart, TokenDelta

CHARACTERS_A_TOKEN = 4
PICTURE_TOKENS = 1000
"""About what a picture of a megapixel takes."""
ANSWER_TOKENS = 256
"""What an answer is thought to take whose length nobody bounded."""


class Load:
    """The tokens that one worker has yet to compute."""

    def __init__(self) -> None:
        self.tokens = 0.0

    @contextmanager
    def share(self, prompt: float, answer: float) -> Iterator[Share]:
        """One request's part of it, gone when the request ends."""
        share = Share(self, prompt, answer)
        try:
            yield share
        finally:
            share.shrink(0.0)


class Share:
    """Shrinks as tokens come: by the prompt with the first, then by each."""

    def __init__(self, load: Load, prompt: float, answer: float) -> None:
        self._load = load
        self._answer = answer
        self._tokens = prompt + answer
        load.tokens += self._tokens

    def note(self, delta: Delta) -> None:
        if isinstance(delta, TokenDelta):
            self._answer = max(0.0, self._answer - len(delta.token_ids))
            self.shrink(self._answer)

    def shrink(self, tokens: float) -> None:
        self._load.tokens -= self._tokens - tokens
        self._tokens = tokens


def prompt_tokens(submit: Submit) -> float:
    """About how many tokens the prompt has."""
    parts = (part for message in submit.messages for part in message.content)
    characters = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    characters += len(submit.rendered_prompt or "")
    return characters / CHARACTERS_A_TOKEN + PICTURE_TOKENS * len(submit.pictures)


def answer_tokens(submit: Submit) -> float:
    """About how many tokens the answer will have, at most."""
    if submit.prompt_only:
        return 0.0
    return float(submit.sampling.n * (submit.sampling.max_tokens or ANSWER_TOKENS))
