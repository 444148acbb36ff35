"""How often a part of the worker that ends is started again."""

from __future__ import annotations

import time
from collections.abc import Callable

RESTARTS = 3
WINDOW_SECONDS = 300.0
"""A part that ends more often than ``RESTARTS`` within this time is given up."""


class PartGone(Exception):
    """A part of the worker ended and is not started again; the message says why."""


class Restarts:
    """Counts how often one part has ended."""

    def __init__(self, most: int = RESTARTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._ends: list[float] = []

    def delay(self, reason: str) -> float:
        """Count an end: in how many seconds the part is due to be started again, 1, 2, 4, …

        Raises:
            PartGone: for this ``reason``, and because it was one time too many.
        """
        now = self._clock()
        self._ends = [at for at in self._ends if now - at < WINDOW_SECONDS] + [now]
        if len(self._ends) > self._most:
            often = f" It has ended {len(self._ends)} times within {WINDOW_SECONDS / 60:g} minutes."
            raise PartGone(reason + (often if self._most else ""))
        return 2.0 ** (len(self._ends) - 1)
