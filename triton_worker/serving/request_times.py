"""Where one request's time goes, from its arrival at the front to its end."""

from __future__ import annotations

import time

from protocol.messages import Timings
from triton_worker.engine.messages import FirstToken


class RequestTimes:
    """Notes when a request passes from one part of the worker to the next."""

    def __init__(self) -> None:
        self._arrived_at = time.monotonic()
        self._prepared_at: float | None = None
        self._first_token_at: float | None = None
        self._first: FirstToken | None = None

    def prepared(self) -> None:
        """The prompt goes to the engine."""
        self._prepared_at = time.monotonic()

    def first_token(self, first: FirstToken) -> None:
        """The engine said the first token."""
        self._first_token_at = time.monotonic()
        self._first = first

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed again."""
        return self._first.cached_tokens if self._first is not None else 0

    def timings(self) -> Timings | None:
        """The times up to now, which add up to the request's whole; ``None`` when its prompt was never prepared.

        The way to the engine's process and back counts as waiting.
        """
        if self._prepared_at is None:
            return None
        now = time.monotonic()
        prepare = self._prepared_at - self._arrived_at
        if self._first is None or self._first_token_at is None:
            return Timings(prepare=prepare, queue=now - self._prepared_at)
        return Timings(
            prepare=prepare,
            queue=max(0.0, self._first_token_at - self._prepared_at - self._first.prefill_seconds),
            prefill=self._first.prefill_seconds,
            decode=now - self._first_token_at,
        )
