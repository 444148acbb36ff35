"""The bytes of request bodies that the gateway holds at once, in all."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from app.errors import too_many_requests

RETRY_SECONDS = 1.0
"""When the budget is spent: bodies come and go within seconds."""


class BodyBudget:
    """``max_bytes`` for all; one request alone gets what it needs, so that no request is refused for ever."""

    def __init__(self, max_bytes: int, on_change: Callable[[int], object] = lambda used: None) -> None:
        self.used = 0
        self._on_change = on_change
        self._max_bytes = max_bytes

    def add(self, size: int) -> None:
        self.used += size
        self._on_change(self.used)

    def fits(self, more: int, held: int) -> bool:
        """Whether a request that holds ``held`` bytes may have ``more``."""
        return self.used == held or self.used + more <= self._max_bytes


class BodyShare:
    """What one request takes of the budget, and until when.

    It is given back when the request ends; once the request has passed it on, when the objects are gone that its body
    was made into, which is sooner for an answer that takes long, and later for a request that is on its way.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._held = 0
        self._heirs: int | None = None

    def take(self, size: int) -> None:
        """Raises :class:`ApiError` when the budget is spent."""
        if not self._budget.fits(size, self._held):
            message = "The server holds all the request bytes that it takes. Try again shortly."
            raise too_many_requests("server_busy", message, RETRY_SECONDS)
        self._held += size
        self._budget.add(size)

    def pass_on(self, *heirs: object) -> None:
        """From now on the share lasts as long as one of ``heirs``, objects that can be referenced weakly."""
        self._heirs = len(heirs) or None
        for heir in heirs:
            weakref.finalize(heir, self._lose_heir).atexit = False

    def end(self) -> None:
        """The request has been answered."""
        if self._heirs is None:
            self._give_back()

    def _lose_heir(self) -> None:
        assert self._heirs is not None
        self._heirs -= 1
        if self._heirs == 0:
            self._give_back()

    def _give_back(self) -> None:
        self._budget.add(-self._held)
        self._held = 0
