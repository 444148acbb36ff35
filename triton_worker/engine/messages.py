"""What the front and an engine process say to each other: both are ours and local, so pickling carries it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocol.messages import EngineCounters, FinishReason, SamplingParameters


@dataclass(frozen=True, eq=False)
class Picture:
    """A resized picture, and what tells it from every other."""

    pixels: NDArray[np.uint8]
    """RGB, ``[height, width, 3]``, each side a multiple of the model's picture unit."""
    digest: bytes
    """SHA-256 of size and pixels as the model will see them, so that no way of processing need be part of it."""

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Picture:
        """The picture with its digest, which takes some milliseconds: not for the thread that steps."""
        height, width = pixels.shape[:2]
        hashed = hashlib.sha256(f"{height} {width} ".encode())
        hashed.update(np.ascontiguousarray(pixels).data)
        return cls(pixels, hashed.digest())


@dataclass(frozen=True)
class Generate:
    """A prepared request: token ids with one placeholder run per picture, and the resized pictures."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    sampling: SamplingParameters
    max_tokens: int
    """Resolved: never more than the context has room for."""
    seed: int
    stop_token_ids: frozenset[int]
    """Tokens that end the text (end of sequence); empty when they are to be ignored."""
    cache_salt: str | None = None
    """Results are shared with requests of the same salt alone."""


@dataclass(frozen=True)
class Abort:
    """Forget a request and free what it holds; unknown ids are ignored."""

    request_id: str


@dataclass(frozen=True)
class Shutdown:
    """End the process after the current step."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities at one place of an answer."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...]
    """Token ids with theirs, likeliest first: as many as were asked for."""


@dataclass(frozen=True)
class FirstToken:
    """What is known of a request once its prompt is computed."""

    prefill_seconds: float
    """From the step that began with the prompt to the first token."""
    cached_tokens: int
    """Prompt tokens whose keys and values were in the cache when it began."""


@dataclass(frozen=True)
class NewToken:
    """One token of one request."""

    request_id: str
    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    """Where the request asks for them."""
    first: FirstToken | None = None
    """With the request's first token."""


@dataclass(frozen=True)
class EngineStatus:
    """The engine is alive between two steps."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    counters: EngineCounters = field(default_factory=EngineCounters)
    step_seconds: float = 0.0
    """Since the last step ended; long while a step is long."""

    @property
    def kv_cache_usage(self) -> float:
        """Part of the KV blocks in use, 0 to 1."""
        return 1 - self.free_blocks / self.total_blocks if self.total_blocks else 0.0


@dataclass(frozen=True)
class EngineReady:
    """The weights are loaded and a warm-up generation went through."""

    context_length: int
    """Prompt and generated tokens together, at most."""
    picture_room: int | None = None
    """Embeddings of a request's pictures together, at most, where they stand beside the prompt."""


@dataclass(frozen=True)
class EngineFailed:
    """The engine cannot start, or cannot go on; the process ends after it."""

    message: str


@dataclass(frozen=True)
class CaptureProgress:
    """CUDA graphs recorded so far."""

    done: int
    total: int


@dataclass(frozen=True)
class LoadProgress:
    """Bytes of weights read so far."""

    done: int
    total: int


@dataclass(frozen=True)
class StepOutput:
    """All that one step produced."""

    tokens: tuple[NewToken, ...] = ()
    failed: tuple[str, ...] = ()
    """Ids of requests that cannot be computed; the engine has dropped them."""
    status: EngineStatus = field(default_factory=EngineStatus)


ToEngine = Generate | Abort | Shutdown
FromEngine = StepOutput | EngineReady | EngineFailed | LoadProgress | CaptureProgress
