"""An engine in a process of its own, and the handle that the front holds."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

import torch

from protocol.messages import HEARTBEAT_SECONDS
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStatus,
    FromEngine,
    Generate,
    LoadProgress,
    Shutdown,
    StepOutput,
    ToEngine,
)
from triton_worker.models.registry import UnknownModelFamily, load_model
from triton_worker.processing.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.1
_EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class EngineSettings:
    """What an engine process is started with."""

    checkpoint: str
    tokenizer: str | None
    image_token_id: int
    device: str
    dtype: str
    """A torch dtype's name: ``float32``, ``bfloat16`` or ``float16``."""
    limits: EngineLimits = field(default_factory=EngineLimits)


class EngineProcess:
    """Starts an engine process and carries messages to and from it.

    ``on_message`` and ``on_exit`` are called in a thread of this object's own; ``on_exit`` once, as the last call.
    """

    def __init__(
        self, settings: EngineSettings, on_message: Callable[[FromEngine], None], on_exit: Callable[[], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=run_engine, args=(child_end, settings), name="engine", daemon=True)
        self._process.start()
        child_end.close()
        self._on_message = on_message
        self._on_exit = on_exit
        # Sending a picture blocks while a step runs: a thread waits for it, so that the caller never does.
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, name="engine-sender", daemon=True).start()
        threading.Thread(target=self._receive_all, name="engine-receiver", daemon=True).start()

    def send(self, message: ToEngine) -> None:
        """Queue a message; never blocks, and is silently void once the process has ended."""
        self._outbox.put(message)

    def stop(self) -> None:
        """End the process after its current step, by force if it takes too long."""
        self.send(Shutdown())
        self._process.join(_EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._outbox.put(None)

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended; the receiver says so
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)

    def _receive_all(self) -> None:
        try:
            while True:
                self._on_message(self._connection.recv())
        except (EOFError, OSError):
            pass
        finally:
            self._on_exit()


def run_engine(connection: Connection, settings: EngineSettings) -> None:
    """The engine process: load, warm up, then step until told to stop or the front is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front decides when we stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            engine = _build(connection, settings)
            connection.send(EngineReady(engine.context_length))
            _serve(engine, connection)
        except (CheckpointError, EngineError, UnknownModelFamily) as error:
            connection.send(EngineFailed(str(error)))
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise
        except Exception:
            logger.exception("The engine failed.")
            connection.send(EngineFailed("The engine failed; its log says where."))
    connection.close()
    os._exit(0)  # no interpreter shutdown: threads of torch and CUDA may hang in it


def _build(connection: Connection, settings: EngineSettings) -> Engine:
    checkpoint = open_checkpoint(settings.checkpoint, settings.tokenizer)
    last_sent = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last_sent
        if done == total or time.monotonic() - last_sent > _PROGRESS_SECONDS:
            last_sent = time.monotonic()
            connection.send(LoadProgress(done, total))

    if settings.device == "cpu":
        # Triton, front and gateway share the cores. One of torch's threads that waits for a core holds up all of them:
        # with a thread for each core, 64 streams on two cores ran at a fifth of the speed.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    dtype: torch.dtype = getattr(torch, settings.dtype)
    model = load_model(checkpoint, dtype, torch.device(settings.device), report)
    tokenizer = Tokenizer(checkpoint.tokenizer_directory)
    grammars = GrammarCompiler(tokenizer.to_json(), tokenizer.size, tokenizer.end_token_ids, torch.get_num_threads())
    engine = Engine(model, settings.image_token_id, checkpoint.seq_length, settings.limits, grammars)
    engine.warm_up()
    return engine


def _serve(engine: Engine, connection: Connection) -> None:
    output = _Output(connection)
    while True:
        while connection.poll(0.0 if engine.has_work else HEARTBEAT_SECONDS):
            message: ToEngine = connection.recv()
            match message:
                case Generate():
                    _add(engine, message, output)
                case Abort(request_id):
                    engine.abort(request_id)
                case Shutdown():
                    return
        output.send(engine.step())


def _add(engine: Engine, request: Generate, output: _Output) -> None:
    try:
        engine.add(request)
    except Exception:
        logger.exception("Request %s cannot be computed.", request.request_id)
        output.send(StepOutput(failed=(request.request_id,), status=engine.status))


class _Output:
    """Sends what steps make, and says that the engine lives while a step is long or nothing happens."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._sent_at = time.monotonic()
        self._stepped_at = time.monotonic()
        self._status = EngineStatus()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, output: StepOutput) -> None:
        """After each step; an output of nothing is left out."""
        self._stepped_at = time.monotonic()
        self._status = output.status
        if output.tokens or output.failed:
            self._send(output)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the front is gone; the main thread notices too
            while True:
                time.sleep(HEARTBEAT_SECONDS / 4)
                now = time.monotonic()
                if now - self._sent_at > HEARTBEAT_SECONDS / 2:
                    self._send(StepOutput(status=replace(self._status, step_seconds=now - self._stepped_at)))

    def _send(self, output: StepOutput) -> None:
        with self._lock:
            self._connection.send(output)
            self._sent_at = time.monotonic()
