"""How much work a worker has before it, as far as this gateway knows: an estimate, to compare workers by."""

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
    def share(self, submit: Submit) -> Iterator[Share]:
        """One request's part of it, gone when the request ends."""
        share = Share(self, submit)
        try:
            yield share
        finally:
            share.release()


class Share:
    """Shrinks as tokens come: by the prompt with the first, then by each."""

    def __init__(self, load: Load, submit: Submit) -> None:
        self._load = load
        self._prompt = prompt_tokens(submit)
        sampling = submit.sampling
        self._answer = 0.0 if submit.prompt_only else float(sampling.n * (sampling.max_tokens or ANSWER_TOKENS))
        load.tokens += self._prompt + self._answer

    def note(self, delta: Delta) -> None:
        if isinstance(delta, TokenDelta):
            self._shrink(0.0, max(0.0, self._answer - len(delta.token_ids)))

    def release(self) -> None:
        self._shrink(0.0, 0.0)

    def _shrink(self, prompt: float, answer: float) -> None:
        self._load.tokens -= self._prompt - prompt + self._answer - answer
        self._prompt, self._answer = prompt, answer


def prompt_tokens(submit: Submit) -> float:
    """About how many tokens the prompt has."""
    parts = (part for message in submit.messages for part in message.content)
    characters = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    characters += len(submit.rendered_prompt or "")
    return characters / CHARACTERS_A_TOKEN + PICTURE_TOKENS * len(submit.pictures)
