"""Keeps an engine running: one that dies while it serves is started again, a bounded number of times."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from triton_worker.engine.messages import EngineFailed, EngineReady, FromEngine, ToEngine
from triton_worker.serving.restarts import RESTARTS, PartGone, Restarts

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What a supervisor needs of :class:`~triton_worker.engine.process.EngineProcess`."""

    def send(self, message: ToEngine) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


StartEngine = Callable[[Callable[[FromEngine], None], Callable[[], None]], Engine]
"""Starts an engine, given what to call with its messages, and once when it has ended."""


class EngineSupervisor:
    """One engine after the other. ``check`` is to be called often, by one thread; ``send`` by any."""

    def __init__(
        self,
        start: StartEngine,
        on_message: Callable[[FromEngine], None],
        on_exit: Callable[[], None],
        restarts: int = RESTARTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_message`` and ``on_exit`` are called in threads of the engines; ``on_exit`` at each end."""
        self._start = start
        self._on_message = on_message
        self._on_exit = on_exit
        self._restarts = Restarts(restarts, clock)
        self._clock = clock
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._failure: str | None = None
        self._restart_at: float | None = None
        self._served = False
        self._engine = start(self._take, self._end)

    @property
    def ready(self) -> bool:
        """Whether the engine has said so and lives."""
        return self._ready.is_set() and not self._ended.is_set()

    def send(self, message: ToEngine) -> None:
        """Hand a message to the engine of this moment; void while there is none."""
        self._engine.send(message)

    def stop(self) -> None:
        """End the engine; while it starts it does not listen, and is ended by force."""
        if self.ready:
            self._engine.stop()
        else:
            self._engine.kill()

    def kill(self) -> None:
        """End the engine by force; ``check`` then starts another."""
        self._engine.kill()

    def check(self) -> None:
        """Start an engine again that has ended, when it is time.

        Raises:
            PartGone: it never served, or ended too often.
        """
        if not self._ended.is_set():
            return
        if self._restart_at is None:
            self._restart_at = self._clock() + self._delay()
        if self._clock() >= self._restart_at:
            self._restart_at = self._failure = None
            self._ready.clear()
            self._ended.clear()
            self._engine = self._start(self._take, self._end)

    def _delay(self) -> float:
        """Seconds until the next start: 1, 2, 4, …"""
        reason = self._failure or "The engine process ended unexpectedly."
        self._served = self._served or self._ready.is_set()
        if not self._served:
            raise PartGone(reason)
        delay = self._restarts.delay(reason)
        logger.error("%s The engine is started again in %g seconds.", reason, delay)
        return delay

    def _take(self, message: FromEngine) -> None:
        match message:
            case EngineFailed(text):
                self._failure = self._failure or text  # what comes later follows from the first
            case EngineReady():
                self._ready.set()
        self._on_message(message)

    def _end(self) -> None:
        self._ended.set()
        self._on_exit()
