"""The way of control messages: many in one call, cancels never behind pictures, a request's own order kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.worker.triton import LinkError
from protocol.messages import Cancel, Control, ControlReply, Submit, TextPart

LARGE_BYTES = 64 * 1024
"""A message of this size or more travels in a lane of its own."""
LARGE_CALLS = 3
"""Calls with large messages that may be under way at once."""
CALL_BYTES = 2**20
"""A call takes no further message once it holds so much."""
RETRY_SECONDS = 0.2

logger = logging.getLogger(__name__)


class ControlSender:
    """Sends one session's messages.

    Small messages have one lane: while a call is under way the next ones gather and go together. Large messages
    (pictures) have lanes beside it. A cancel waits only for the call that carries its own submit.
    """

    def __init__(
        self,
        session_id: str,
        call: Callable[[Control], Awaitable[ControlReply]],
        on_failed: Callable[[list[str]], None],
        on_unknown: Callable[[], None],
    ) -> None:
        self._session_id = session_id
        self._call = call
        self._on_failed = on_failed
        self._on_unknown = on_unknown
        self._small: dict[str, Submit] = {}
        self._large: dict[str, Submit] = {}
        self._cancels: set[str] = set()
        self._on_the_way: set[str] = set()
        self._small_calls: set[asyncio.Task[None]] = set()
        self._large_calls: set[asyncio.Task[None]] = set()
        self._wake_scheduled = False
        self._closed = False

    def submit(self, message: Submit) -> None:
        lane = self._large if _size(message) >= LARGE_BYTES else self._small
        lane[message.request_id] = message
        self._wake()

    def cancel(self, request_id: str) -> None:
        never_sent = self._small.pop(request_id, None) or self._large.pop(request_id, None)
        if never_sent is None:
            self._cancels.add(request_id)
            self._wake()

    async def flush(self) -> None:
        """Returns when everything has been sent."""
        self._start_calls()
        while calls := self._small_calls | self._large_calls:
            await asyncio.wait(calls)

    async def close(self) -> None:
        """Drops what waits and gives up what is under way."""
        self._closed = True
        calls = self._small_calls | self._large_calls
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _wake(self) -> None:
        """Starts calls in the next turn of the loop, so that what is said in this one goes together."""
        if not self._wake_scheduled and not self._closed:
            self._wake_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_calls)

    def _start_calls(self) -> None:
        self._wake_scheduled = False
        if self._closed:
            return
        while self._large and len(self._large_calls) < LARGE_CALLS:
            self._start(self._large_calls, _take(self._large), set())
        cancels = self._cancels - self._on_the_way
        if (self._small or cancels) and not self._small_calls:
            self._cancels -= cancels
            self._start(self._small_calls, _take(self._small), cancels)

    def _start(self, lane: set[asyncio.Task[None]], submits: list[Submit], cancels: set[str]) -> None:
        self._on_the_way.update(submit.request_id for submit in submits)
        call = asyncio.create_task(self._send(submits, cancels))
        lane.add(call)
        call.add_done_callback(lambda done: self._finish(lane, done, submits))

    def _finish(self, lane: set[asyncio.Task[None]], call: asyncio.Task[None], submits: list[Submit]) -> None:
        lane.discard(call)
        self._on_the_way.difference_update(submit.request_id for submit in submits)
        if not call.cancelled() and (error := call.exception()):
            logger.error("sending control messages failed", exc_info=error)
        self._start_calls()

    async def _send(self, submits: list[Submit], cancels: set[str]) -> None:
        messages: tuple[Submit | Cancel, ...] = (*submits, *(Cancel(request_id) for request_id in cancels))
        try:
            reply = await self._call(Control(self._session_id, messages))
        except LinkError as error:
            logger.warning("%s", error)
            submitted = [submit.request_id for submit in submits]
            self._on_failed(submitted)
            self._cancels.update(cancels, submitted)  # the worker may have taken them all the same
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if not reply.session_known:
                self._on_unknown()


def _take(lane: dict[str, Submit]) -> list[Submit]:
    """Removes one call's worth from the front."""
    taken: list[Submit] = []
    size = 0
    while lane and (not taken or size < CALL_BYTES):
        submit = lane.pop(next(iter(lane)))
        taken.append(submit)
        size += _size(submit)
    return taken


def _size(submit: Submit) -> int:
    parts = (part for message in submit.messages for part in message.content)
    return sum(map(len, submit.pictures)) + sum(len(part.text) for part in parts if isinstance(part, TextPart))
