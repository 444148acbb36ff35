"""The processes of an engine, one for each rank, and the handle that the front holds."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from triton_worker.engine.fork_server import fork_server
from triton_worker.engine.messages import FromEngine, LoadProgress, Shutdown, ToEngine
from triton_worker.engine.rank import EngineSettings, RankPlace, run_rank

logger = logging.getLogger(__name__)

_EXIT_SECONDS = 5.0


class EngineProcess:
    """Starts the ranks of an engine, carries messages to and from them, and ends them all when one ends.

    ``on_message`` and ``on_exit`` are called in a thread of this object's own; ``on_exit`` once, as the last call, when
    all processes are gone. Where torchrun has started the other ranks, and sees to their end, only rank 0 is ours.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_message: Callable[[FromEngine], None],
        on_exit: Callable[[], None],
        place: RankPlace | None = None,
    ) -> None:
        """``place``: that of rank 0 under torchrun."""
        self._on_message = on_message
        self._on_exit = on_exit
        self._meeting = Path(tempfile.mkdtemp(prefix="engine-"))
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._progress: dict[Connection, LoadProgress] = {}
        self._killed = threading.Event()
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        places = [place] if place is not None else self._places(settings.layout.count)
        # A thread, for the fork server may import torch first.
        self._receiver = threading.Thread(
            target=self._receive_all, args=(settings, places), name="engine-receiver", daemon=True
        )
        self._receiver.start()

    @property
    def pids(self) -> list[int | None]:
        """Process ids, in the order of the ranks."""
        return [process.pid for process in self._processes]

    def send(self, message: ToEngine) -> None:
        """Queue a message; never blocks, and is silently void once the processes have ended."""
        self._outbox.put(message)

    def stop(self) -> None:
        """End the processes after their current step, by force if it takes too long."""
        self.send(Shutdown())
        self._receiver.join(_EXIT_SECONDS)
        self.kill()
        self._receiver.join()

    def kill(self) -> None:
        """End the processes by force."""
        self._killed.set()
        for process in list(self._processes):
            process.kill()

    def _places(self, count: int) -> list[RankPlace]:
        """All ranks on this machine."""
        return [RankPlace(rank, rank, count, str(self._meeting / "ranks")) for rank in range(count)]

    def _start_all(self, settings: EngineSettings, places: list[RankPlace]) -> None:
        try:
            for place in places:
                self._start(settings, place)
        except (EOFError, OSError):
            if not self._killed.is_set():
                logger.exception("A rank of the engine could not be started.")
            raise

    def _start(self, settings: EngineSettings, place: RankPlace) -> None:
        server = fork_server()
        connection, child_end = server.Pipe()
        process = server.Process(
            target=_run, args=(child_end, settings, place), name=f"engine-{place.rank}", daemon=True
        )
        process.start()
        child_end.close()
        logger.info("Rank %d of the engine is process %d.", place.rank, process.pid)
        self._processes.append(process)
        self._connections.append(connection)

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended; the receiver says so
            while (message := self._outbox.get()) is not None:
                self._connections[0].send(message)

    def _receive_all(self, settings: EngineSettings, places: list[RankPlace]) -> None:
        try:
            self._start_all(settings, places)
            # Sending a picture blocks while a step runs: a thread waits for it, so that the caller never does.
            threading.Thread(target=self._send_all, name="engine-sender", daemon=True).start()
            while not self._killed.is_set():
                for connection in wait(self._connections):
                    assert isinstance(connection, Connection)
                    self._take(connection, connection.recv())
        except (EOFError, OSError):
            pass  # a rank has ended, and the others cannot go on without it
        finally:
            self.kill()
            for process in self._processes:
                process.join()
            self._outbox.put(None)
            shutil.rmtree(self._meeting, ignore_errors=True)
            self._on_exit()

    def _take(self, connection: Connection, message: FromEngine) -> None:
        if isinstance(message, LoadProgress):
            self._progress[connection] = message
            if len(self._progress) < len(self._connections):
                return  # the total is not known yet
            parts = self._progress.values()
            message = LoadProgress(sum(part.done for part in parts), sum(part.total for part in parts))
        self._on_message(message)


def _run(connection: Connection, settings: EngineSettings, place: RankPlace) -> None:
    told_to_end = run_rank(settings, place, connection.send, connection if place.rank == 0 else None)
    connection.close()
    os._exit(0 if told_to_end else 1)  # no interpreter shutdown: threads of torch and CUDA may hang in it
