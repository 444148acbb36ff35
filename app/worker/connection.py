"""The connection to one worker: sessions, one after the other, for as long as the gateway lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from app.worker.load import Load, answer_tokens, prompt_tokens
from app.worker.session import Session, failed
from app.worker.triton import LinkError, TritonHealth, TritonLink
from protocol.messages import HEARTBEAT_SECONDS, Delta, ErrorCode, RequestError, Submit, WorkerStatus
from protocol.wire import CONTROL_MODEL, DELTAS_MODEL

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 2.0
QUIET_SECONDS = 2 * HEARTBEAT_SECONDS
"""New requests go elsewhere, where they can, when a worker said nothing for so long."""
HEALTH_SECONDS = 2.0
"""For Triton to say whether it is ready."""
FAREWELL_SECONDS = 2.0
"""Closing waits so long for the last cancels to leave."""

NOT_CONNECTED = RequestError(ErrorCode.UNAVAILABLE, "The model server cannot be reached. Try again shortly.")
STARTING = RequestError(ErrorCode.UNAVAILABLE, "The model server is starting. Try again shortly.")
SHUTTING_DOWN = RequestError(ErrorCode.UNAVAILABLE, "The gateway is shutting down. Try again shortly.")

logger = logging.getLogger(__name__)


class WorkerConnection:
    """Reconnects by itself; a request never moves from one session to the next."""

    def __init__(self, url: str, *, connect_seconds: float, call_seconds: float) -> None:
        self.url = url
        self.load = Load()
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        self._session: Session | None = None
        self._last_model: str | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def status(self) -> WorkerStatus | None:
        """What the worker said last; ``None`` while it cannot be heard."""
        return None if self._session is None else self._session.status

    @property
    def ready(self) -> bool:
        return self.status is not None and self.status.ready

    @property
    def model(self) -> str | None:
        """What it served when it was heard last."""
        return (self._session and self._session.model) or self._last_model

    @property
    def quiet(self) -> bool:
        """Whether it missed heartbeats, so that it may hang."""
        return self._session is None or self._session.quiet_seconds > QUIET_SECONDS

    async def triton_health(self) -> TritonHealth:
        """Asks Triton itself, beside the session."""
        link = TritonLink(self.url)
        models = {CONTROL_MODEL, DELTAS_MODEL, self.model or DELTAS_MODEL}
        try:
            return await link.health(models, HEALTH_SECONDS)
        finally:
            await link.close()

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

    async def generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        """The deltas of one request, its one ``EndDelta`` last. Closed before that, it cancels the request.

        Failures, an absent worker among them, are told by that end and never raised.
        """
        session = self._session
        if session is None or session.status is None:
            yield failed(submit.request_id, NOT_CONNECTED)
        elif not session.status.ready:
            yield failed(submit.request_id, STARTING)
        else:
            all_deltas = session.generate(submit)
            share_of_load = self.load.share(prompt_tokens(submit), answer_tokens(submit))
            del submit
            async with aclosing(all_deltas) as deltas:
                with share_of_load as share:
                    async for delta in deltas:
                        share.note(delta)
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
        link = TritonLink(self.url)
        session = Session(link, connect_seconds=self._connect_seconds, call_seconds=self._call_seconds)
        self._session = session
        try:
            await session.run()
        except LinkError as error:
            logger.log(logging.WARNING if session.heard else log_level, "worker at %s: %s", self.url, error)
        except Exception:
            logger.exception("worker at %s: the session failed", self.url)
        finally:
            self._last_model = session.model or self._last_model
            self._session = None
            await link.close()
        return session.heard
