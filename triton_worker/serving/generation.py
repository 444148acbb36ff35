"""One request in the front, from its prepared prompt to its terminal delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import structs

from protocol.messages import (
    ChosenToken,
    Delta,
    EndDelta,
    FinishReason,
    LikelyToken,
    Outcome,
    RequestError,
    Submit,
    TokenDelta,
    Usage,
)
from triton_worker.engine.messages import Generate, NewToken
from triton_worker.processing.detokenizer import Detokenizer, StopStrings
from triton_worker.processing.tokenizer import Tokenizer
from triton_worker.serving.request_times import RequestTimes


class Generation:
    """Turns the engine's tokens of all choices into deltas, and says the terminal one exactly once."""

    def __init__(self, submit: Submit, emit: Callable[[Delta], None]) -> None:
        # Not the request itself: it holds the pictures, and nobody needs them once they are decoded.
        self.request_id = submit.request_id
        """The gateway's id of the request."""
        self.name = submit.http_request_id or submit.request_id
        """The id that logs name: where there is one, that which the caller knows."""
        self._return_prompt = submit.return_prompt_token_ids or submit.prompt_only
        self._emit = emit
        self._ended = False
        self._prompt_token_ids: tuple[int, ...] | None = None
        self._token_bytes: Callable[[int], bytes] = lambda token_id: b""
        self._image_tokens = 0
        self._completion_tokens = 0
        self._choices = [_Choice(submit.sampling.stop) for _ in range(submit.sampling.n)]
        self._times = RequestTimes()
        self._on_end: list[Callable[[], object]] = []

    @property
    def ended(self) -> bool:
        """Whether the terminal delta was said."""
        return self._ended

    def prepared(self, prompt: Generate, tokenizer: Tokenizer) -> None:
        """The prompt is known; tokens of ``tokenizer`` may come."""
        self._times.prepared()
        self._prompt_token_ids = prompt.prompt_token_ids
        self._image_tokens = prompt.prompt_token_ids.count(tokenizer.image_token_id)
        self._token_bytes = tokenizer.token_bytes
        for choice in self._choices:
            choice.begin(tokenizer.decode)

    def push(self, index: int, token: NewToken) -> bool:
        """Take one token of a choice; whether it was the choice's last."""
        choice = self._choices[index]
        if self._ended or choice.ended or self._prompt_token_ids is None:
            return True
        if token.first is not None and index == 0:
            self._times.first_token(token.first)
        self._completion_tokens += 1
        text, reason = choice.push(token)
        self._say_tokens(
            TokenDelta(
                request_id=self.request_id,
                index=index,
                text=text,
                token_ids=(token.token_id,),
                logprobs=_logprobs(token, self._token_bytes),
                finish_reason=reason,
            )
        )
        if all(choice.ended for choice in self._choices):
            self._end(Outcome.FINISHED)
        return choice.ended

    def finish_without_answer(self) -> None:
        """End a request that asked for its prompt alone."""
        self._say_tokens(TokenDelta(request_id=self.request_id))
        self._end(Outcome.FINISHED)

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` before the terminal delta is said."""
        self._on_end.append(callback)

    def cancel(self) -> None:
        """End without an answer, because the caller asked to or went away."""
        self._end(Outcome.CANCELLED)

    def fail(self, error: RequestError) -> None:
        """End with an error."""
        self._end(Outcome.FAILED, error)

    def _say_tokens(self, delta: TokenDelta) -> None:
        if self._return_prompt:
            self._return_prompt = False
            delta = structs.replace(delta, prompt_token_ids=self._prompt_token_ids)
        self._emit(delta)

    def _end(self, outcome: Outcome, error: RequestError | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        for callback in self._on_end:
            callback()
        usage = None
        if self._prompt_token_ids is not None:
            usage = Usage(
                prompt_tokens=len(self._prompt_token_ids),
                image_tokens=self._image_tokens,
                completion_tokens=self._completion_tokens,
                cached_tokens=self._times.cached_tokens,
            )
        timings = self._times.timings()
        self._emit(EndDelta(request_id=self.request_id, outcome=outcome, usage=usage, timings=timings, error=error))


class _Choice:
    """The text of one choice."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(lambda token_ids: "")
        self._stop_strings = StopStrings(stops)
        self.ended = False

    def begin(self, decode: Callable[[list[int]], str]) -> None:
        """From here on tokens come; ``decode`` gives the text of some."""
        self._detokenizer = Detokenizer(decode)

    def push(self, token: NewToken) -> tuple[str, FinishReason | None]:
        """The text that became certain with this token, and why the choice ended if it did."""
        text = self._stop_strings.push(self._detokenizer.push(token.token_id))
        reason = token.finish_reason
        if reason is not None and not self._stop_strings.found:
            text += self._stop_strings.push(self._detokenizer.flush())
        if self._stop_strings.found:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self._stop_strings.flush()
        self.ended = reason is not None
        return text, reason


def _logprobs(token: NewToken, name: Callable[[int], bytes]) -> tuple[ChosenToken, ...]:
    """The token's own and the likeliest ones' log probabilities, where the request asks for them."""
    if token.logprobs is None:
        return ()
    likeliest = tuple(LikelyToken(i, name(i), logprob) for i, logprob in token.logprobs.likeliest)
    return (ChosenToken(token.token_id, name(token.token_id), token.logprobs.chosen, likeliest),)
