"""A real engine, a process a rank, and what it says."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from protocol.messages import SamplingParameters
from tests.triton_worker.models.reference import Prompt
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    FromEngine,
    Generate,
    LoadProgress,
    NewToken,
    Picture,
    StepOutput,
)
from triton_worker.engine.process import EngineProcess
from triton_worker.engine.rank import EngineSettings
from triton_worker.parallel import Layout

IMAGE_PAD = 412
GREEDY = SamplingParameters(temperature=0.0)
SECONDS = 120.0


def settings(checkpoint: Path, layout: Layout, tokenizer: Path | None = None, **fields: object) -> EngineSettings:
    made = EngineSettings(
        checkpoint=str(checkpoint),
        tokenizer=None if tokenizer is None else str(tokenizer),
        image_token_id=IMAGE_PAD,
        device="cpu",
        dtype="float32",
        limits=EngineLimits(max_sequences=8, kv_cache_bytes=2**24, context_length=512),
        layout=layout,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def request(name: str, prompt: Prompt, sampling: SamplingParameters = GREEDY, max_tokens: int = 24) -> Generate:
    pictures = tuple(Picture.of(np.asarray(picture)) for picture in prompt.pictures)
    return Generate(name, tuple(prompt.token_ids), pictures, sampling, max_tokens, seed=0, stop_token_ids=frozenset())


class RunningEngine:
    """Collects what the engine says."""

    def __init__(self, settings: EngineSettings) -> None:
        self._said: queue.Queue[FromEngine | None] = queue.Queue()
        self.progress: list[LoadProgress] = []
        self.failure: str | None = None
        self.free_blocks = 0
        self.process = EngineProcess(settings, self._said.put, lambda: self._said.put(None))

    def wait_ready(self) -> None:
        while not isinstance(message := self._next(), EngineReady):
            assert message is not None, self.failure

    def wait_exit(self) -> float:
        """Seconds until all processes are gone."""
        began = time.monotonic()
        while self._next() is not None:
            pass
        return time.monotonic() - began

    def tokens(self) -> Iterator[NewToken]:
        """Tokens as they come; ends with the engine."""
        while (message := self._next()) is not None:
            if isinstance(message, StepOutput):
                self.free_blocks = message.status.free_blocks
                assert not message.failed
                yield from message.tokens

    def answers(self, *requests: Generate, cancel: str = "", after: int = 5) -> dict[str, list[int]]:
        """The tokens of each request; that of the name `cancel` is aborted after so many."""
        for item in requests:
            self.process.send(item)
        answers: dict[str, list[int]] = {item.request_id: [] for item in requests}
        left = set(answers) - {cancel}
        for token in self.tokens():
            answers[token.request_id].append(token.token_id)
            if token.request_id == cancel and len(answers[cancel]) == after:
                self.process.send(Abort(cancel))
            if token.finish_reason is not None:
                left.discard(token.request_id)
            if not left:
                return answers
        raise AssertionError(f"the engine ended: {self.failure}")

    def _next(self) -> FromEngine | None:
        message = self._said.get(timeout=SECONDS)
        if isinstance(message, LoadProgress):
            self.progress.append(message)
        if isinstance(message, EngineFailed):
            self.failure = message.message
        return message


@contextlib.contextmanager
def running(settings: EngineSettings) -> Iterator[RunningEngine]:
    engine = RunningEngine(settings)
    try:
        engine.wait_ready()
        yield engine
    finally:
        engine.process.stop()
