"""One request in the front, from its prepared prompt to its terminal delta."""

from __future__ import annotations

from collections.abc import Callable

from protocol.messages import Delta, EndDelta, FinishReason, Outcome, RequestError, Submit, TokenDelta, Usage
from triton_worker.engine.messages import Generate, NewToken
from triton_worker.processing.detokenizer import Detokenizer, StopStrings


class Generation:
    """Turns the engine's tokens into deltas, and says the terminal one exactly once."""

    def __init__(self, submit: Submit, emit: Callable[[Delta], None]) -> None:
        # Not the request itself: it holds the pictures, and nobody needs them once they are decoded.
        self.request_id = submit.request_id
        """The gateway's id of the request."""
        self._return_prompt = submit.return_prompt_token_ids
        self._emit = emit
        self._ended = False
        self._prompt_token_ids: tuple[int, ...] | None = None
        self._image_tokens = 0
        self._completion_tokens = 0
        self._detokenizer = Detokenizer(lambda token_ids: "")
        self._stop_strings = StopStrings(submit.sampling.stop)
        self._on_end: list[Callable[[], object]] = []

    @property
    def ended(self) -> bool:
        """Whether the terminal delta was said."""
        return self._ended

    def prepared(self, prompt: Generate, image_token_id: int, decode: Callable[[list[int]], str]) -> None:
        """The prompt is known; tokens may come."""
        self._prompt_token_ids = prompt.prompt_token_ids
        self._image_tokens = prompt.prompt_token_ids.count(image_token_id)
        self._detokenizer = Detokenizer(decode)

    def push(self, token: NewToken) -> None:
        """Take one token of the engine; :attr:`ended` tells whether it was the last."""
        if self._ended or self._prompt_token_ids is None:
            return
        first = self._completion_tokens == 0
        self._completion_tokens += 1
        text = self._stop_strings.push(self._detokenizer.push(token.token_id))
        reason = token.finish_reason
        if reason is not None and not self._stop_strings.found:
            text += self._stop_strings.push(self._detokenizer.flush())
        if self._stop_strings.found:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self._stop_strings.flush()
        with_prompt = first and self._return_prompt
        self._emit(
            TokenDelta(
                request_id=self.request_id,
                text=text,
                token_ids=(token.token_id,),
                finish_reason=reason,
                prompt_token_ids=self._prompt_token_ids if with_prompt else None,
            )
        )
        if reason is not None:
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

    def _end(self, outcome: Outcome, error: RequestError | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        for callback in self._on_end:
            callback()
        usage = None
        if self._prompt_token_ids is not None:
            usage = Usage(len(self._prompt_token_ids), self._image_tokens, self._completion_tokens)
        self._emit(EndDelta(request_id=self.request_id, outcome=outcome, usage=usage, error=error))
