"""When to try again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from clients.rest.errors import ApiError, ConnectionFailed, MultimodalError

_RETRIED_STATUSES = (429, 503)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, added to the seconds that the server asks for in ``Retry-After``.

    Tried again are 429, 503 and failed connections, and only before the first byte of an answer: what was generated
    is never asked for twice. A server that asks for more than ``longest_pause`` is not waited for.
    """

    retries: int = 4
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def pause(self, attempt: int, error: MultimodalError) -> float:
        """The seconds to wait after the attempt of this number, from 0; raises the error where it is final."""
        asked = (error.retry_after or 0.0) if isinstance(error, ApiError) else 0.0
        if attempt >= self.retries or not _is_passing(error) or asked > self.longest_pause:
            raise error
        backoff = min(self.first_pause * 2.0**attempt, self.longest_pause)
        return asked + backoff * random.uniform(0.5, 1.0)


def _is_passing(error: MultimodalError) -> bool:
    if isinstance(error, ApiError):
        return error.status in _RETRIED_STATUSES
    return isinstance(error, ConnectionFailed)
