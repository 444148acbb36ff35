"""What one rank of an engine does: load its part of the model, then step with the others until told to stop.

All ranks run the same scheduler on the same messages. Rank 0 has the pipe to the front and hands on what came in before
each step; tokens are drawn by one rank and known to all. So the ranks agree on every step without asking each other.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
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
    CaptureProgress,
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
from triton_worker.models.registry import UnknownModelFamily, load_model, prompts_of
from triton_worker.parallel import EXCHANGE_SECONDS, Layout, ParallelismError, Ranks, RanksLost, connect
from triton_worker.parallel.torchrun import Torchrun
from triton_worker.processing.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Say = Callable[[FromEngine], None]

_PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class EngineSettings:
    """What the ranks of an engine are started with."""

    checkpoint: str
    tokenizer: str | None
    image_token_id: int
    device: str
    dtype: str
    """A torch dtype's name: ``float32``, ``bfloat16`` or ``float16``."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    layout: Layout = field(default_factory=Layout)
    exchange_seconds: float = EXCHANGE_SECONDS
    """Deadline of every exchange between ranks."""


@dataclass(frozen=True)
class RankPlace:
    """Which rank a process is, and how it finds the others."""

    rank: int = 0
    local_rank: int = 0
    """Its number among those of this machine; on GPUs, that of its GPU."""
    local_count: int = 1
    meeting_file: str | None = None
    """See :func:`triton_worker.parallel.connect`."""

    @classmethod
    def under(cls, torchrun: Torchrun) -> RankPlace:
        """The place that torchrun gave this process."""
        return cls(torchrun.rank, torchrun.local_rank, torchrun.local_count)


def run_rank(settings: EngineSettings, place: RankPlace, say: Say, inbox: Connection | None) -> bool:
    """Whether the rank ended because it was told to.

    ``say`` takes what is to be told: progress and failures of any rank, all else of rank 0. ``inbox`` gives rank 0 the
    messages of the front; the others have none. The process should end afterwards.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front decides when we stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            engine, ranks = _build(settings, place, say)
            if inbox is not None:
                say(EngineReady(engine.context_length, engine.picture_room))
            _serve(engine, ranks, inbox, say)
            ranks.leave_together()
            return True
        except (CheckpointError, EngineError, ParallelismError, UnknownModelFamily) as error:
            say(EngineFailed(str(error)))
        except RanksLost as error:
            logger.warning("Rank %d: %s (%s)", place.rank, error, error.__cause__)
            say(EngineFailed(str(error)))
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise
        except Exception:
            logger.exception("The engine failed.")
            say(EngineFailed("The engine failed; its log says where."))
    return False


def _build(settings: EngineSettings, place: RankPlace, say: Say) -> tuple[Engine, Ranks]:
    checkpoint = open_checkpoint(settings.checkpoint, settings.tokenizer)
    device = torch.device(settings.device)
    if device.type == "cuda":
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    else:
        # Triton, front and gateway share the cores. One of torch's threads that waits for a core holds up all of them:
        # with a thread for each core, 64 streams on two cores ran at a fifth of the speed.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2 // place.local_count))
    ranks = Ranks()
    if settings.layout.count > 1:
        ranks = connect(settings.layout, place.rank, place.meeting_file, device, settings.exchange_seconds)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    model = load_model(checkpoint, dtype, device, _progress_teller(say), ranks)
    ranks.wait_until_loaded()
    tokenizer = Tokenizer(checkpoint.tokenizer_directory, prompts_of(checkpoint.family).TOKENIZER)
    grammars = GrammarCompiler(tokenizer.to_json(), tokenizer.size, tokenizer.end_token_ids, torch.get_num_threads())
    engine = Engine(model, settings.image_token_id, checkpoint.seq_length, settings.limits, grammars)
    # All ranks record the same.
    engine.warm_up(lambda done, total: say(CaptureProgress(done, total)) if ranks.rank == 0 else None)
    # What is here now stays: looking through it for garbage would hold a step up for a tenth of a second.
    gc.collect()
    gc.freeze()
    return engine, ranks


def _progress_teller(say: Say) -> Callable[[int, int], None]:
    last_said = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last_said
        if done == total or time.monotonic() - last_said > _PROGRESS_SECONDS:
            last_said = time.monotonic()
            say(LoadProgress(done, total))

    return tell


def _serve(engine: Engine, ranks: Ranks, inbox: Connection | None, say: Say) -> None:
    output = _Output(say) if inbox is not None else None
    while True:
        received = [] if inbox is None else _receive(inbox, 0.0 if engine.has_work else HEARTBEAT_SECONDS)
        state = _state(engine)
        # Also when nothing came: the others wait here for rank 0, not for longer than a heartbeat.
        messages, state_of_first = ranks.from_first((received, state))
        if state != state_of_first:
            raise EngineError("The ranks of the model do not agree on what to compute.")
        failed = []
        for message in messages:
            match message:
                case Generate():
                    failed += _add(engine, message)
                case Abort(request_id):
                    engine.abort(request_id)
                case Shutdown():
                    return
        if output is not None and failed:
            output.send(StepOutput(failed=tuple(failed), status=engine.status))
        step = engine.step()
        if output is not None:
            output.send(step)


def _receive(inbox: Connection, seconds: float) -> list[ToEngine]:
    """All messages that are there; where there are none, those that come within ``seconds``."""
    messages: list[ToEngine] = []
    while inbox.poll(0.0 if messages else seconds):
        messages.append(inbox.recv())
    return messages


def _state(engine: Engine) -> tuple[int, int, int]:
    """What is the same on every rank, as long as they compute the same."""
    status = engine.status
    return status.running, status.waiting, status.free_blocks


def _add(engine: Engine, request: Generate) -> list[str]:
    """Queue a request; its id if it cannot be computed."""
    try:
        engine.add(request)
        return []
    except Exception:
        logger.exception("Request %s cannot be computed.", request.request_id)
        return [request.request_id]


class _Output:
    """Sends what steps make, and says that the engine lives while a step is long or nothing happens."""

    def __init__(self, say: Say) -> None:
        self._say = say
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
            self._say(output)
            self._sent_at = time.monotonic()
