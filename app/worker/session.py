"""One session with the worker: a deltas stream, the requests that hang on it, and their end when it ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.worker.control import RETRY_SECONDS, ControlSender
from app.worker.inbox import Inbox
from app.worker.triton import LinkError, TritonLink
from protocol.messages import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    Control,
    ControlReply,
    Delta,
    DeltaBatch,
    EndDelta,
    ErrorCode,
    OpenSession,
    Outcome,
    RequestError,
    Submit,
    WorkerStatus,
)

SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
"""A stream silent for longer is dead, whatever Triton says."""
WATCH_SECONDS = HEARTBEAT_SECONDS / 10
RENEW_SECONDS = LEASE_SECONDS / 3
DEADLINE_GRACE_SECONDS = 2.0
"""Deadlines are the worker's to keep; the gateway steps in for a worker that does not."""

WENT_AWAY = RequestError(ErrorCode.UNAVAILABLE, "The model server went away before the answer was complete. Try again.")
TOO_LATE = RequestError(ErrorCode.DEADLINE_EXCEEDED, "The answer was not complete within the time limit.")


class Session:
    """Runs once. A worker that comes back is met in a new session."""

    def __init__(self, link: TritonLink, *, connect_seconds: float, call_seconds: float) -> None:
        self.status: WorkerStatus | None = None
        self.heard = False
        self.model: str | None = None
        self.quiet_seconds = 0.0
        """Since the last batch, by the gateway's own turns."""
        self._id = uuid.uuid4().hex
        self._link = link
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        self._inboxes: dict[str, Inbox] = {}
        """Requests that the worker has not ended yet."""
        self._unknown = asyncio.Event()
        self._sender = ControlSender(self._id, self._control, self._fail, self._unknown.set)

    async def run(self) -> None:
        """Holds the session until it ends; ends with :class:`LinkError` always."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(), self._watch(), self._keep_lease(), self._end_when_unknown())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.status = None
            self._fail(list(self._inboxes))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, self._sender.close(), return_exceptions=True)

    async def generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        """The deltas of one request, exactly one end. Closed before that, it cancels the request."""
        request_id = submit.request_id
        inbox = self._inboxes[request_id] = Inbox()
        overdue = self._schedule_deadline(submit, inbox)
        self._sender.submit(submit)
        del submit  # the sender's alone from here, until the worker has it
        try:
            while True:
                for delta in await inbox.take():
                    yield delta
                    if isinstance(delta, EndDelta):
                        return
        finally:
            if overdue is not None:
                overdue.cancel()
            if self._inboxes.pop(request_id, None) is not None:
                self._sender.cancel(request_id)

    def cancel_all(self, reason: RequestError) -> None:
        """Ends every request, here and at the worker."""
        for request_id in list(self._inboxes):
            self._sender.cancel(request_id)
            self._end(request_id, reason)

    async def flush(self) -> None:
        """Returns when the worker has been told everything."""
        await self._sender.flush()

    async def _read(self) -> None:
        opening = OpenSession(self._id)
        while await self._read_stream(opening):
            opening = OpenSession(self._id, resume=True)
        raise LinkError("deltas stream ended")

    async def _read_stream(self, opening: OpenSession) -> bool:
        """Takes all that is said in one stream; whether the session goes on in another."""
        async with aclosing(self._link.deltas(opening)) as batches:
            async for batch in batches:
                self.quiet_seconds = 0.0
                self._deliver(batch)
                if batch.resume:
                    return True
        return False

    async def _watch(self) -> None:
        """Ends a silent session. Counts its own turns: if the gateway itself stood still, the worker did not."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.quiet_seconds += WATCH_SECONDS
            patience = SILENCE_SECONDS if self.heard else self._connect_seconds
            if self.quiet_seconds > patience:
                raise LinkError(f"deltas stream silent for {patience:g} s")

    def _deliver(self, batch: DeltaBatch) -> None:
        if batch.refusal is not None:
            raise LinkError(f"session refused: {batch.refusal.message}")
        self.heard = True
        if batch.status is not None:
            self.status = batch.status
            self.model = batch.status.model
        for delta in batch.deltas:
            inbox = self._inboxes.get(delta.request_id)
            if inbox is None:  # cancelled by us; the two crossed on the way
                continue
            if isinstance(delta, EndDelta):
                del self._inboxes[delta.request_id]
            inbox.put(delta)

    async def _keep_lease(self) -> None:
        pause = RENEW_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                reply = await self._link.control(Control(self._id), RENEW_SECONDS)
            except LinkError:
                pause = RETRY_SECONDS  # a slow call must not cost the lease; a worker that is gone shows on the stream
                continue
            pause = RENEW_SECONDS
            if not reply.session_known:
                self._unknown.set()

    async def _end_when_unknown(self) -> None:
        await self._unknown.wait()
        raise LinkError("the worker no longer knows the session")

    async def _control(self, message: Control) -> ControlReply:
        return await self._link.control(message, self._call_seconds)

    def _fail(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._end(request_id, WENT_AWAY)

    def _end(self, request_id: str, reason: RequestError) -> None:
        inbox = self._inboxes.pop(request_id, None)
        if inbox is not None:
            inbox.put(failed(request_id, reason))

    def _schedule_deadline(self, submit: Submit, inbox: Inbox) -> asyncio.TimerHandle | None:
        if submit.deadline_seconds is None:
            return None
        delay = submit.deadline_seconds + DEADLINE_GRACE_SECONDS
        return asyncio.get_running_loop().call_later(delay, inbox.put, failed(submit.request_id, TOO_LATE))


def failed(request_id: str, error: RequestError) -> EndDelta:
    """The end of a request that the worker did not end itself."""
    return EndDelta(request_id=request_id, outcome=Outcome.FAILED, error=error)
