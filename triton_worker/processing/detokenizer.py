"""From generated tokens to text, as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"  # what an unfinished UTF-8 character decodes to
_LONGEST_CHARACTER = 4  # bytes, and so tokens, of a UTF-8 character


class Detokenizer:
    """Text of one growing token sequence. A character spread over several tokens comes with the last of them."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        # Tokens before `_context` no longer matter; those before `_done` are already text. A token's text may depend on
        # the one before it, so the text of new tokens is the difference of two decodes that share a beginning.
        self._context = 0
        self._done = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        self._token_ids.append(token_id)
        text = self._pending(len(self._token_ids))
        if not text.endswith(_INCOMPLETE):
            return self._take(text, len(self._token_ids))
        if len(self._token_ids) - self._done <= _LONGEST_CHARACTER:
            return ""
        # Bytes that never become a character: all but what may still begin one is certain.
        certain = len(self._token_ids) - (_LONGEST_CHARACTER - 1)
        return self._take(self._pending(certain), certain)

    def flush(self) -> str:
        """What is left at the end: an unfinished character, as the replacement character."""
        return self._take(self._pending(len(self._token_ids)), len(self._token_ids))

    def _take(self, text: str, end: int) -> str:
        self._context, self._done = self._done, end
        return text

    def _pending(self, end: int) -> str:
        """Text of the tokens that are no text yet, up to ``end``."""
        before = self._decode(self._token_ids[self._context : self._done])
        return self._decode(self._token_ids[self._context : end])[len(before) :]


class StopStrings:
    """Ends a text before the first stop string, and holds back what may turn out to begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of all text so far that is new and certain."""
        if not self._stops:
            return text
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            certain, self._held = self._held[: min(ends)], ""
            return certain
        keep = max(self._overlap(stop) for stop in self._stops)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins ``stop``."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
