"""Several gateway processes behind one listening socket, and the one that watches over them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that lived so long is replaced without much waiting, whatever those before it did."""
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Where the processes' counters lie side by side; the variable is prometheus-client's own."""

Target = Callable[..., None]
"""Runs in a process of its own; its last argument is a :class:`Connection` to say that it serves."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps ``count`` processes running ``target`` until a signal ends it."""

    def __init__(self, count: int, target: Target, arguments: tuple[Any, ...], *, patience: float) -> None:
        """``patience``: seconds that a process may take to end."""
        self._count = count
        self._target = target
        self._arguments = arguments
        self._patience = patience
        self._children: list[_Child] = []
        self._pause = FIRST_PAUSE_SECONDS
        self._start_at = 0.0

    def run(self, on_stop: Callable[[], object]) -> int:
        """The exit code. ``on_stop`` is called when the processes are asked to end."""
        with _stop_signals() as stop_asked, _metrics_directory():
            try:
                failed = not self._watch(stop_asked)
            finally:
                on_stop()
                ended = self._stop()
            return 0 if ended and not failed else 1

    def _watch(self, stop_asked: Connection) -> bool:
        """Returns when asked to stop, or with ``False`` when nothing can be served."""
        while True:
            self._start_missing()
            missing = len(self._children) < self._count
            timeout = max(0.0, self._start_at - time.monotonic()) if missing else None
            if stop_asked in wait([stop_asked, *(child.process.sentinel for child in self._children)], timeout):
                return True
            for child in [child for child in self._children if not child.process.is_alive()]:
                self._bury(child)
                if not child.served and not any(other.served for other in self._children):
                    logger.error("the gateway's processes cannot start")
                    return False

    def _start_missing(self) -> None:
        if time.monotonic() >= self._start_at:
            while len(self._children) < self._count:
                self._children.append(_Child(self._target, self._arguments))

    def _bury(self, child: _Child) -> None:
        self._children.remove(child)
        child.process.join()
        assert child.process.pid is not None
        mark_process_dead(child.process.pid)  # type: ignore[no-untyped-call]
        steady = time.monotonic() - child.began > STEADY_SECONDS
        self._pause = FIRST_PAUSE_SECONDS if steady else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._start_at = time.monotonic() + self._pause
        logger.error("process %d ended with %s", child.process.pid, child.process.exitcode)

    def _stop(self) -> bool:
        """Ends all processes; whether each ended as it should."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + self._patience
        for child in self._children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                logger.error("process %s did not end and is killed", child.process.pid)
                child.process.kill()
                child.process.join()
        # One that was asked to end before it could listen to that ends by the signal itself.
        return all(child.process.exitcode in (0, -signal.SIGTERM) for child in self._children)


class _Child:
    """One process. Not forked: what gRPC and asyncio have running does not survive that."""

    def __init__(self, target: Target, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._serves, serves = context.Pipe(duplex=False)
        self._served = False
        self.began = time.monotonic()
        self.process = context.Process(target=target, args=(*arguments, serves))
        self.process.start()
        serves.close()

    @property
    def served(self) -> bool:
        """Whether it ever said that it serves."""
        if not self._served and self._serves.poll():
            with suppress(EOFError):  # it ended without a word
                self._served = bool(self._serves.recv())
        return self._served


@contextmanager
def _stop_signals() -> Iterator[Connection]:
    """A connection that becomes readable with SIGTERM or SIGINT."""
    asked, ask = multiprocessing.Pipe(duplex=False)
    with asked, ask:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ask.send(None))
        yield asked
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _metrics_directory() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="multimodal-gateway-") as directory:
        os.environ[METRICS_DIRECTORY] = directory  # before a process begins: prometheus-client looks when imported
        yield
