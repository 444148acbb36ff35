"""An engine process that is asked directly, as the worker's front asks it: no HTTP, no Triton, no text."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.messages import Submit
from tests.e2e.deployment import MODEL, WORKER_FLAGS
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.messages import EngineFailed, EngineReady, FromEngine, Generate, StepOutput
from triton_worker.engine.process import EngineProcess
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor
from triton_worker.serving.engine_settings import engine_settings, prompt_format
from triton_worker.serving.flags import parse_worker_flags


@dataclass
class Tokens:
    """When the tokens of one request came, by ``time.perf_counter``."""

    ended: asyncio.Future[None]
    began: float = field(default_factory=time.perf_counter)
    arrived: list[float] = field(default_factory=list)

    @property
    def first_seconds(self) -> float:
        """Time to first token."""
        return self.arrived[0] - self.began

    @property
    def token_seconds(self) -> float:
        """Mean time between two tokens."""
        return (self.arrived[-1] - self.arrived[0]) / max(1, len(self.arrived) - 1)

    @property
    def completion_tokens(self) -> int:
        """How many there were."""
        return len(self.arrived)


class EngineAlone:
    """To be made and used in a running event loop; the process ends with the context."""

    def __init__(self, checkpoint_path: Path, *worker_flags: str) -> None:
        """``worker_flags``: those of the deployment that it is compared with, beyond what each deployment gets."""
        common = ["--nemo_checkpoint", str(checkpoint_path), "--triton_model_name", MODEL]
        settings = parse_worker_flags([*common, *WORKER_FLAGS, *worker_flags])
        checkpoint = open_checkpoint(settings.nemo_checkpoint, settings.tokenizer)
        prompts = prompt_format(settings, checkpoint)
        self._processor = Processor(checkpoint, prompts, PictureLimits())
        self._ids = itertools.count()
        self._running: dict[str, Tokens] = {}
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[int] = self._loop.create_future()
        computed = engine_settings(settings, prompts, self._processor.tokenizer.image_token_id, settings.device)
        self._engine = EngineProcess(computed, self._on_message, self._on_exit)

    async def prepare(self, submit: Submit) -> Generate:
        """Waits for the engine to be ready, and tokenizes."""
        return self._processor.prepare(submit, "", await self._ready)

    async def ask(self, prompt: Generate) -> Tokens:
        """Have the engine compute a prepared prompt to its end."""
        request_id = str(next(self._ids))
        tokens = self._running[request_id] = Tokens(self._loop.create_future())
        self._engine.send(replace(prompt, request_id=request_id))
        await tokens.ended
        return tokens

    def __enter__(self) -> EngineAlone:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()

    def _on_message(self, message: FromEngine) -> None:
        """In the receiving thread; only futures need the loop's own."""
        match message:
            case StepOutput():
                now = time.perf_counter()
                for token in message.tokens:
                    self._running[token.request_id].arrived.append(now)
                    if token.finish_reason is not None:
                        ended = self._running.pop(token.request_id).ended
                        self._loop.call_soon_threadsafe(ended.set_result, None)
            case EngineReady(context_length):
                self._loop.call_soon_threadsafe(self._ready.set_result, context_length)
            case EngineFailed(text):
                self._loop.call_soon_threadsafe(self._ready.set_exception, RuntimeError(text))

    def _on_exit(self) -> None:
        """Nothing waits for it: the process ends when nobody asks any more."""
