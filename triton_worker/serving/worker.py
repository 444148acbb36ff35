"""The worker process: starts the engine and Triton, watches both, and ends without leaving anything behind."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from protocol import tracing
from triton_worker.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from triton_worker.engine.messages import CaptureProgress, FromEngine, LoadProgress
from triton_worker.engine.process import EngineProcess
from triton_worker.engine.rank import RankPlace
from triton_worker.models.registry import UnknownModelFamily
from triton_worker.parallel.torchrun import Torchrun
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.serving.devices import DeviceError, check_rank_count, resolve_device
from triton_worker.serving.engine_settings import engine_settings, prompt_format
from triton_worker.serving.engine_supervisor import EngineSupervisor
from triton_worker.serving.front import Front
from triton_worker.serving.leftovers import RunDirectory, sweep_dead_runs
from triton_worker.serving.reference_model import ReferenceModel
from triton_worker.serving.restarts import RESTARTS, PartGone
from triton_worker.serving.settings import UnusableSettings, WorkerSettings
from triton_worker.serving.tracing import Tracing
from triton_worker.serving.triton import TritonServer
from triton_worker.serving.triton_supervisor import TritonSupervisor

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 20.0
"""Requests in flight get so long to end after SIGTERM."""
LONGEST_STEP_SECONDS = 600.0
"""An engine that takes longer for one step hangs."""
_SHOWN_LOG_LINES = 20
_PREPARING_THREADS = min(4, os.cpu_count() or 1)  # each may hold a picture of 50 megapixels


class WorkerError(Exception):
    """The worker cannot start or go on; the message is for the person who started it."""


def run_worker(settings: WorkerSettings, stop_asked: threading.Event) -> int:
    """Serve until ``stop_asked`` is set; the exit code. The process should end with it at once: threads may linger."""
    worker = None
    run_directory = None
    try:
        check_rank_count(settings)
        device = resolve_device(settings)
        if settings.otlp_endpoint is not None and not tracing.installed():
            raise WorkerError(tracing.NEEDED)
        checkpoint = open_checkpoint(settings.nemo_checkpoint, settings.tokenizer)
        sweep_dead_runs()  # first: a predecessor's Triton may still hold the ports
        _check_ports(settings)
        run_directory = _make_run_directory()
        # PyTriton's and multiprocessing's temporary files go where a successor would find them.
        os.environ["TMPDIR"] = tempfile.tempdir = str(run_directory.path)
        # PyTriton attaches to segments that others own; Python's tracker would complain of them at every exit.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
        worker = _Worker(settings, device, checkpoint, run_directory, stop_asked)
        worker.serve()
        return 0
    except (CheckpointError, DeviceError, PartGone, UnknownModelFamily, UnusableSettings, WorkerError) as error:
        return _fail(str(error), run_directory)
    except Exception:
        logger.exception("The worker failed.")
        return _fail("The worker failed; the lines above say where.", run_directory)
    finally:
        if worker is not None and run_directory is not None:
            run_directory.note_traces()  # while the processes that hold them live
            worker.stop()
        if run_directory is not None:
            run_directory.remove()


def _fail(message: str, run_directory: RunDirectory | None) -> int:
    """Say why, with the end of Triton's own log, which goes away with the run directory."""
    log = None if run_directory is None else run_directory.path / "triton.log"
    if log is not None and log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        logger.error("The end of Triton's log:\n%s", "\n".join(lines[-_SHOWN_LOG_LINES:]))
    print(f"error: {message}", file=sys.stderr)
    return 1


def _make_run_directory() -> RunDirectory:
    try:
        return RunDirectory()
    except OSError as error:
        raise WorkerError(f"The worker needs a directory of its own in /tmp: {error}") from error


class _Worker:
    """Engine process, front and Triton of one worker, and the main thread's watch over them."""

    def __init__(
        self,
        settings: WorkerSettings,
        device: str,
        checkpoint: Checkpoint,
        run_directory: RunDirectory,
        stop_asked: threading.Event,
    ) -> None:
        self._settings = settings
        self._run_directory = run_directory
        self._stop_asked = stop_asked
        self._progress: tqdm[Any] | None = None
        self._device = device
        prompts = prompt_format(settings, checkpoint)
        processor = Processor(checkpoint, prompts, PictureLimits())
        self._loop = asyncio.new_event_loop()
        self._engine = self._start_engine(prompts, processor)
        self._tracing = None if settings.otlp_endpoint is None else Tracing(settings.otlp_endpoint)
        self._front = Front(
            model=settings.model_name,
            processor=processor,
            to_engine=self._engine.send,
            preparing=ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="preparing"),
            max_requests=settings.max_requests,
            tracing=self._tracing,
        )
        special_tokens = frozenset(processor.tokenizer.special_tokens)
        self._reference_model = ReferenceModel(self._front, settings.model_name, special_tokens)
        threading.Thread(target=self._run_loop, name="front", daemon=True).start()
        self._triton = TritonSupervisor(self._make_triton, self._on_triton_exit)

    def serve(self) -> None:
        """Start, say when ready, and return when asked to stop.

        Raises:
            PartGone: the engine or Triton ended, and is not started again.
        """
        while not (self._triton.ready and self._engine.ready):
            if self._stop_asked.wait(0.05):
                return
            self._engine.check()
            self._triton.check()
        self._run_directory.note_traces()
        logger.info("Ready: %s on %s.", self._settings.model_name, self._device)
        self._watch()
        self._drain()

    def stop(self) -> None:
        """End everything, whatever state it is in."""
        self._loop.call_soon_threadsafe(self._front.stop)
        self._engine.stop()
        self._triton.stop()
        if self._tracing is not None:
            self._tracing.close()

    # -- while it runs -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop_asked.wait(0.5):
            self._engine.check()
            if self._front.engine_step_seconds > LONGEST_STEP_SECONDS:
                logger.error("The engine has not finished a step for %g seconds.", LONGEST_STEP_SECONDS)
                self._engine.kill()
            self._triton.check()
            self._run_directory.note_traces()

    def _drain(self) -> None:
        """Let requests in flight end, up to a limit."""
        self._loop.call_soon_threadsafe(self._front.drain)
        deadline = time.monotonic() + DRAIN_SECONDS
        while not self._front.idle and time.monotonic() < deadline and self._engine.ready:
            time.sleep(0.05)

    def _make_triton(self) -> TritonServer:
        settings = self._settings
        triton = TritonServer(self._front, self._loop, settings.triton, self._run_directory.new_workspace())
        triton.add_reference_model(
            self._reference_model, settings.model_name, settings.model_version, settings.max_batch_size
        )
        return triton

    def _on_triton_exit(self) -> None:
        self._loop.call_soon_threadsafe(self._front.on_triton_exit)

    # -- the engine's and the front's threads --------------------------------------------------------------------------

    def _on_engine_message(self, message: FromEngine) -> None:
        match message:
            case LoadProgress(done, total):
                self._show_progress("Loading weights", "B", done, total)
            case CaptureProgress(done, total):
                self._show_progress("Recording CUDA graphs", "", done, total)
        self._loop.call_soon_threadsafe(self._front.on_engine_message, message)

    def _on_engine_exit(self) -> None:
        self._loop.call_soon_threadsafe(self._front.on_engine_exit)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        lapsing = self._loop.create_task(self._front.close_lapsed_sessions())
        self._loop.run_forever()
        lapsing.cancel()

    def _show_progress(self, what: str, unit: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = tqdm(total=total, unit=unit, unit_scale=True, desc=what, leave=False)
        self._progress.update(done - self._progress.n)
        if done == total:
            self._progress.close()
            self._progress = None

    def _start_engine(self, prompts: PromptFormat, processor: Processor) -> EngineSupervisor:
        settings = engine_settings(self._settings, prompts, processor.tokenizer.image_token_id, self._device)
        torchrun = Torchrun.from_environment()
        place = None if torchrun is None else RankPlace.under(torchrun)
        return EngineSupervisor(
            lambda on_message, on_exit: EngineProcess(settings, on_message, on_exit, place),
            self._on_engine_message,
            self._on_engine_exit,
            # torchrun starts all ranks again, this worker among them.
            restarts=RESTARTS if torchrun is None else 0,
        )


def _check_ports(settings: WorkerSettings) -> None:
    """Say which port is taken before anything is started; Triton would only log it."""
    triton = settings.triton
    for flag, address, port in (
        ("--triton_port", triton.http_address, triton.http_port),
        ("--triton_grpc_port", triton.grpc_address, triton.grpc_port),
        ("--triton_metrics_port", triton.http_address, triton.metrics_port),
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                raise WorkerError(
                    f"Port {port} on {address} is taken or not allowed; choose another with {flag}."
                ) from None
