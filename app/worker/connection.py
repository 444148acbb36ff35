"""The connection to one worker: sessions, one after the other, for as long as the gateway lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from app.metrics import Metrics
from app.worker.session import Session, failed
from app.worker.triton import LinkError, TritonLink
from protocol.messages import Delta, ErrorCode, RequestError, Submit, WorkerStatus

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 2.0
FAREWELL_SECONDS = 2.0
"""Closing waits so long for the last cancels to leave."""

NOT_CONNECTED = RequestError(ErrorCode.UNAVAILABLE, "The model server cannot be reached. Try again shortly.")
STARTING = RequestError(ErrorCode.UNAVAILABLE, "The model server is starting. Try again shortly.")
SHUTTING_DOWN = RequestError(ErrorCode.UNAVAILABLE, "The gateway is shutting down. Try again shortly.")

logger = logging.getLogger(__name__)


class WorkerConnection:
    """Reconnects by itself; a request never moves from one session to the next."""

    def __init__(self, url: str, metrics: Metrics, *, connect_seconds: float, call_seconds: float) -> None:
        self._url = url
        self._metrics = metrics
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def status(self) -> WorkerStatus | None:
        """What the worker said last; ``None`` while it cannot be heard."""
        return None if self._session is None else self._session.status

    @property
    def ready(self) -> bool:
        return self.status is not None and self.status.ready

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep_connected())

    def cancel_all(self) -> None:
        """Ends what is in flight: the callers are told, and so is the worker."""
        if self._session is not None:
            self._session.cancel_all(SHUTTING_DOWN)

    async def close(self) -> None:
        """Cancels what is in flight, and hangs up."""
        self.cancel_all()
        if self._session is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._session.flush(), FAREWELL_SECONDS)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        """The deltas of one request, its one ``EndDelta`` last. Closed before that, it cancels the request.

        Failures, an absent worker among them, are told by that end and never raised. The submit is kept until the
        worker has it, and no longer. One that generates nothing is not measured.
        """
        deltas = self._generate(submit)
        return deltas if submit.prompt_only else self._metrics.measured(deltas)

    async def _generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        session = self._session
        if session is None or session.status is None:
            yield failed(submit.request_id, NOT_CONNECTED)
        elif not session.status.ready:
            yield failed(submit.request_id, STARTING)
        else:
            all_deltas = session.generate(submit)
            del submit
            async with aclosing(all_deltas) as deltas:
                async for delta in deltas:
                    yield delta

    async def _keep_connected(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            heard = await self._hold_session(
                log_level=logging.WARNING if pause == FIRST_PAUSE_SECONDS else logging.DEBUG
            )
            await asyncio.sleep(pause)
            pause = FIRST_PAUSE_SECONDS if heard else min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _hold_session(self, log_level: int) -> bool:
        """Runs one session to its end; whether the worker was heard in it."""
        link = TritonLink(self._url)
        session = Session(link, connect_seconds=self._connect_seconds, call_seconds=self._call_seconds)
        self._session = session
        try:
            await session.run()
        except LinkError as error:
            logger.log(logging.WARNING if session.heard else log_level, "worker at %s: %s", self._url, error)
        except Exception:
            logger.exception("worker at %s: the session failed", self._url)
        finally:
            self._session = None
            await link.close()
        return session.heard
