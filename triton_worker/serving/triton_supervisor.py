"""Keeps Triton running: one that dies or hangs while it serves is started again, a bounded number of times.

The engine goes on meanwhile: to start Triton takes seconds, to load a large model minutes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from triton_worker.serving.restarts import PartGone, Restarts

logger = logging.getLogger(__name__)

PROBE_PERIOD_SECONDS = 5.0
PROBE_FAILURES = 3
"""A Triton that answers none of so many probes hangs."""


class Server(Protocol):
    """What a supervisor needs of :class:`~triton_worker.serving.triton.TritonServer`."""

    def launch(self) -> None: ...
    def connect(self) -> None: ...
    def is_alive(self) -> bool: ...
    def probe(self, timeout_seconds: float) -> bool: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...


class TritonSupervisor:
    """One Triton after the other, all from one thread, which must live as long as they do (see ``launch``)."""

    def __init__(
        self,
        make: Callable[[], Server],
        on_exit: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_exit`` is called at each end, before the next is started."""
        self._make = make
        self._on_exit = on_exit
        self._clock = clock
        self._restarts = Restarts(clock=clock)
        self._threads = ThreadPoolExecutor(thread_name_prefix="triton")
        self._served = False
        self._restart_at: float | None = None
        self._server: Server
        self._connecting: Future[None]
        self._failures = 0
        self._probed_at = clock()
        self._start()

    @property
    def ready(self) -> bool:
        """Whether calls come through to the front, as far as was known at the last ``check``."""
        return self._restart_at is None and self._connecting.done() and self._connecting.exception() is None

    def stop(self) -> None:
        """End Triton, whatever state it is in."""
        self._server.stop()

    def check(self) -> None:
        """Find out whether Triton has ended or hangs, and start another when it is time. To be called often.

        Raises:
            PartGone: it never served, or ended too often.
        """
        if self._restart_at is not None:
            if self._clock() >= self._restart_at:
                self._start()
        elif self._connecting.done():
            self._check_connected()

    def _check_connected(self) -> None:
        if (error := self._connecting.exception()) is not None:
            self._end("Triton did not start; its log above says why.", error)
        elif not self._server.is_alive():
            self._end("Triton ended unexpectedly.")
        else:
            self._served = True
            if self._clock() - self._probed_at > PROBE_PERIOD_SECONDS:
                self._probe()

    def _probe(self) -> None:
        self._failures = 0 if self._server.probe(PROBE_PERIOD_SECONDS) else self._failures + 1
        self._probed_at = self._clock()
        if self._failures >= PROBE_FAILURES and self._server.is_alive():
            self._end(f"Triton answered none of {self._failures} calls in a row.")

    def _start(self) -> None:
        self._restart_at = None
        self._failures = 0
        self._probed_at = self._clock()
        self._server = self._make()
        self._server.launch()
        self._connecting = self._threads.submit(self._server.connect)

    def _end(self, reason: str, cause: BaseException | None = None) -> None:
        self._on_exit()
        if not self._served:
            raise PartGone(reason) from cause
        delay = self._restarts.delay(reason)
        logger.error("%s It is started again in %g seconds.", reason, delay)
        self._restart_at = self._clock() + delay
        self._server.kill()
        self._threads.submit(self._server.stop)
