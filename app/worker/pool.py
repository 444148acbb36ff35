"""The workers behind the gateway, to its routes as good as one."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from app.metrics import Metrics
from app.tracing import Tracing
from app.worker.connection import NOT_CONNECTED, SHUTTING_DOWN, STARTING, WorkerConnection
from app.worker.session import failed
from app.worker.triton import TritonHealth
from protocol.messages import Delta, EndDelta, ErrorCode, RequestError, Submit, WorkerStatus

AFFINITY_FACTOR = 2.0
AFFINITY_TOKENS = 4000.0
"""A picture goes to the worker that has seen it while that one's outstanding tokens are at most ``AFFINITY_FACTOR``
times those of the least loaded worker and so many more: what encoding some pictures anew costs."""

ELSEWHERE = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.QUEUE_FULL})
"""Ends of a request that another worker may serve."""


class WorkerPool:
    """Chooses a worker for each request, and once another one where the first had produced nothing."""

    def __init__(
        self,
        urls: Sequence[str],
        metrics: Metrics,
        tracing: Tracing | None = None,
        *,
        connect_seconds: float,
        call_seconds: float,
    ) -> None:
        self._workers = [
            WorkerConnection(url, connect_seconds=connect_seconds, call_seconds=call_seconds) for url in urls
        ]
        self._metrics = metrics
        self._tracing = tracing
        self._draining = False
        self._ending = False

    @property
    def statuses(self) -> dict[str, WorkerStatus | None]:
        """What each worker said last, by its address; ``None`` for those that cannot be heard."""
        return {worker.url: worker.status for worker in self._workers}

    @property
    def status(self) -> WorkerStatus | None:
        """What the first worker that can be heard said last; ``None`` while none can."""
        return next((worker.status for worker in self._workers if worker.status is not None), None)

    @property
    def ready(self) -> bool:
        """Whether a generation would succeed, and the gateway means to stay."""
        return self.unready is None

    @property
    def unready(self) -> RequestError | None:
        """Why the gateway should get no requests, if it should not."""
        if self._draining:
            return SHUTTING_DOWN
        if any(worker.ready for worker in self._workers):
            return None
        return NOT_CONNECTED if self.status is None else STARTING

    @property
    def models(self) -> dict[str, int]:
        """The models of the workers that can be heard, each with the context length of all of its workers."""
        lengths: dict[str, int] = {}
        for status in filter(None, self.statuses.values()):
            lengths[status.model] = min(status.context_length, lengths.get(status.model, status.context_length))
        return lengths

    @property
    def default_model(self) -> str | None:
        """That of the first address whose worker was ever heard: it stays when that worker goes away."""
        return next((worker.model for worker in self._workers if worker.model is not None), None)

    def may_serve(self, model: str) -> bool:
        """Whether a worker that cannot be heard now may have ``model``."""
        return any(worker.status is None and worker.model in (None, model) for worker in self._workers)

    async def triton_health(self) -> list[TritonHealth]:
        """What each worker's Triton says of itself, in the order of their addresses."""
        return await asyncio.gather(*(worker.triton_health() for worker in self._workers))

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def drain(self) -> None:
        """Not ready any more; everything is served as before."""
        self._draining = True

    def cancel_all(self) -> None:
        """Ends what is in flight: the callers are told, and so are the workers."""
        self._ending = True
        for worker in self._workers:
            worker.cancel_all()

    async def close(self) -> None:
        """Cancels what is in flight, and hangs up."""
        self._ending = True
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        """The deltas of one request, its one ``EndDelta`` last. Closed before that, it cancels the request.

        Failures, absent workers among them, are told by that end and never raised. The submit is kept until its worker
        has it; where there are other workers, until there is a first delta. What generates nothing is not measured.
        """
        traced = self._generate(submit) if self._tracing is None else self._tracing.generation(submit, self._generate)
        return traced if submit.prompt_only else self._metrics.measured(traced)

    async def _generate(self, submit: Submit) -> AsyncGenerator[Delta, None]:
        began = time.monotonic()
        picture = await self._picture(submit)
        worker = self._choose(submit.model, picture)
        if worker is None:
            yield failed(submit.request_id, self._absence(submit.model))
            return
        first_try = worker.generate(submit)
        spare = submit if len(self._workers) > 1 else None
        del submit
        async with aclosing(first_try) as deltas:
            first = await anext(deltas)
            other = None if spare is None else self._instead(spare.model, picture, worker, first)
            if spare is None or other is None:
                spare = None
                yield first
                async for delta in deltas:
                    yield delta
                return
        async with aclosing(other.generate(_later(spare, time.monotonic() - began))) as deltas:
            async for delta in deltas:
                yield delta

    def _instead(
        self, model: str, picture: bytes | None, worker: WorkerConnection, first: Delta
    ) -> WorkerConnection | None:
        """Another worker for a request that ``worker`` ended with ``first`` of all deltas, if another may serve it."""
        error = first.error if isinstance(first, EndDelta) else None
        if error is None or error.code not in ELSEWHERE or self._ending:
            return None
        other = self._choose(model, picture, without=worker)
        if other is not None:
            self._metrics.retried(error.code)
        return other

    async def _picture(self, submit: Submit) -> bytes | None:
        """What tells a request's first picture from others, where that matters."""
        if not submit.pictures or len(self._workers) < 2:
            return None
        return await asyncio.to_thread(_digest, submit.pictures[0])

    def _choose(
        self, model: str, picture: bytes | None, without: WorkerConnection | None = None
    ) -> WorkerConnection | None:
        """The worker with the fewest outstanding tokens, or else the picture's own."""
        ready = [worker for worker in self._workers if worker.ready and worker.model == model and worker is not without]
        if not ready:
            return None
        workers = [worker for worker in ready if not worker.quiet] or ready
        least = min(workers, key=lambda worker: (worker.load.tokens, random.random()))
        if picture is not None:
            # Rendezvous hashing: when a worker comes or goes, no pictures move but its own.
            own = max(workers, key=lambda worker: hashlib.sha256(picture + worker.url.encode()).digest())
            if own.load.tokens <= AFFINITY_FACTOR * least.load.tokens + AFFINITY_TOKENS:
                return own
        return least

    def _absence(self, model: str) -> RequestError:
        starting = any(worker.status is not None and worker.model == model for worker in self._workers)
        return STARTING if starting else NOT_CONNECTED


def _digest(picture: bytes) -> bytes:
    return hashlib.sha256(picture).digest()


def _later(submit: Submit, seconds: float) -> Submit:
    """The same request, its time running since before."""
    if submit.deadline_seconds is None:
        return submit
    return replace(submit, deadline_seconds=max(submit.deadline_seconds - seconds, 0.001))
