"""The API's answers, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import msgspec

from clients.rest.errors import ConnectionFailed, ErrorObject, UnexpectedAnswer, api_error_from

_NOT_OURS = "The server's answer is not one of the multimodal API. Is its URL right?"


@dataclass(frozen=True)
class UsageCounts:
    """Token counts; ``image_tokens`` and ``cached_tokens`` are part of ``prompt_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    """Those that were not computed again."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely it was, before temperature and the other sampling parameters."""

    token: str
    """Bytes that are a part of a character are written as ``\\xf0``."""
    logprob: float
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class ChosenTokenLogprob(TokenLogprob):
    """The token that was drawn."""

    top_logprobs: tuple[TokenLogprob, ...] = ()
    """As many as were asked for, likeliest first."""


@dataclass(frozen=True)
class ChoiceLogprobs:
    """One for each token of a choice, or of the new part of it."""

    content: tuple[ChosenTokenLogprob, ...]


@dataclass(frozen=True)
class Choice:
    """One answer to the prompt."""

    index: int
    text: str
    finish_reason: str
    """``stop`` or ``length``."""
    token_ids: tuple[int, ...] | None = None
    """Only with ``return_token_ids``."""
    logprobs: ChoiceLogprobs | None = None
    """Only with ``logprobs``."""


@dataclass(frozen=True)
class Completion:
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: UsageCounts
    object: str = "text_completion"
    prompt_token_ids: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text


@dataclass(frozen=True)
class ChoiceDelta:
    """What comes after the text of a choice so far."""

    index: int
    text: str
    finish_reason: str | None = None
    """Set on the last delta of a choice."""
    token_ids: tuple[int, ...] | None = None
    logprobs: ChoiceLogprobs | None = None


@dataclass(frozen=True)
class CompletionChunk:
    """One event of a stream. The last one has no choices and carries the usage."""

    id: str
    created: int
    model: str
    choices: tuple[ChoiceDelta, ...]
    usage: UsageCounts | None = None
    object: str = "text_completion"
    prompt_token_ids: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """What comes after the first choice's text so far."""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


def read_completion(response: httpx.Response) -> Completion:
    """The answer in a response that was read."""
    try:
        return msgspec.json.decode(response.content, type=Completion)
    except msgspec.DecodeError:
        raise UnexpectedAnswer(_NOT_OURS) from None


class _Event(msgspec.Struct):
    error: ErrorObject | None = None


class EventDecoder:
    """Puts a stream's events together from its bytes, however they were cut.

    Not with httpx's ``iter_lines``: it also splits at characters that JSON leaves as they are, U+2028 for one.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._rest = b""
        self._is_done = False

    def feed(self, data: bytes) -> Iterator[CompletionChunk]:
        """The chunks that are complete now; raises the error that the server sends in place of one."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # a comment that keeps the line open, or the empty line after an event
            document = line.removeprefix(b"data:").strip()
            if document == b"[DONE]":
                self._is_done = True
            else:
                yield self._chunk(document)

    def end(self) -> None:
        """To be called when the stream is over: it may have been cut off."""
        if not self._is_done:
            raise ConnectionFailed("The server hung up before the answer was complete.")

    def _chunk(self, document: bytes) -> CompletionChunk:
        try:
            error = msgspec.json.decode(document, type=_Event).error
            if error is None:
                return msgspec.json.decode(document, type=CompletionChunk)
        except msgspec.DecodeError:
            raise UnexpectedAnswer(_NOT_OURS) from None
        raise api_error_from(error, self._response)
