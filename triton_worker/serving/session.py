"""One gateway's deltas stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from protocol.messages import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    Delta,
    DeltaBatch,
    EndDelta,
    TokenDelta,
    WorkerStatus,
)

TICK_SECONDS = 0.015
"""Deltas in the middle of an answer wait up to so long, so that Triton responses follow the clock and not the load."""
URGENT_TICK_SECONDS = 0.003
"""First and last deltas wait only until the previous response is so old."""


class Session:
    """Collects deltas and hands them out in batches. Used from one event loop."""

    def __init__(self, status: Callable[[], WorkerStatus], clock: Callable[[], float] = time.monotonic) -> None:
        self._status = status
        self._clock = clock
        self._pending: list[Delta] = []
        self._mergeable: dict[tuple[str, int], int] = {}  # (request, choice) → place in _pending of its TokenDelta
        self._begun: set[str] = set()
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._sent_at = float("-inf")
        self._status_at = float("-inf")
        self._lease_until = clock() + LEASE_SECONDS
        self._closed = False

    @property
    def lapsed(self) -> bool:
        """Whether the gateway was silent for longer than its lease."""
        return self._clock() > self._lease_until

    def renew(self) -> None:
        """Start the lease anew."""
        self._lease_until = self._clock() + LEASE_SECONDS

    def push(self, delta: Delta) -> None:
        """Add a delta; what a request says within one tick becomes one delta."""
        if isinstance(delta, EndDelta):
            self._pending.append(delta)
            self._begun.discard(delta.request_id)
            self._urgent.set()
        else:
            self._push_tokens(delta)
            if delta.request_id not in self._begun:
                self._begun.add(delta.request_id)
                self._urgent.set()
        self._some.set()

    def tell_status(self) -> None:
        """Send the worker's status with the next batch, and that at once: it has changed."""
        self._status_at = float("-inf")
        self._urgent.set()
        self._some.set()

    def close(self) -> None:
        """End the stream after what is pending."""
        self._closed = True
        self._urgent.set()
        self._some.set()

    async def next_batch(self) -> DeltaBatch | None:
        """The next batch, when it is due; ``None`` when the session is closed and drained."""
        await _wait(self._some, self._status_at + HEARTBEAT_SECONDS - self._clock())
        if self._pending or self._closed:
            await asyncio.sleep(max(0.0, self._sent_at + URGENT_TICK_SECONDS - self._clock()))
            await _wait(self._urgent, self._sent_at + TICK_SECONDS - self._clock())
        if self._closed and not self._pending:
            return None
        return self._take()

    def _push_tokens(self, delta: TokenDelta) -> None:
        key = (delta.request_id, delta.index)
        place = self._mergeable.get(key)
        if place is None:
            self._mergeable[key] = len(self._pending)
            self._pending.append(delta)
        else:
            earlier = self._pending[place]
            assert isinstance(earlier, TokenDelta)
            self._pending[place] = _merged(earlier, delta)

    def _take(self) -> DeltaBatch:
        now = self._clock()
        heartbeat = now - self._status_at >= HEARTBEAT_SECONDS
        batch = DeltaBatch(tuple(self._pending), self._status() if heartbeat else None)
        self._pending.clear()
        self._mergeable.clear()
        if not self._closed:
            self._some.clear()
            self._urgent.clear()
        self._sent_at = now
        if heartbeat:
            self._status_at = now
        return batch


def _merged(earlier: TokenDelta, later: TokenDelta) -> TokenDelta:
    return TokenDelta(
        request_id=earlier.request_id,
        index=earlier.index,
        text=earlier.text + later.text,
        token_ids=earlier.token_ids + later.token_ids,
        logprobs=earlier.logprobs + later.logprobs,
        finish_reason=later.finish_reason or earlier.finish_reason,
        prompt_token_ids=earlier.prompt_token_ids,
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set or the time is over."""
    if seconds <= 0:
        return
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
