"""What a worker is started with."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.engine.limits import EngineLimits
from triton_worker.processing.pictures import ResizeBounds


@dataclass(frozen=True)
class TritonAddresses:
    """Where Triton listens."""

    http_address: str
    http_port: int
    grpc_address: str
    grpc_port: int
    metrics_port: int


@dataclass(frozen=True)
class WorkerSettings:
    """All that a worker is started with."""

    nemo_checkpoint: str
    model_name: str
    tokenizer: str | None
    dtype: str
    device: str
    triton: TritonAddresses
    limits: EngineLimits
    max_requests: int
    resize_bounds: ResizeBounds
    debug: bool
