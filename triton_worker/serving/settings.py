"""What a worker is started with."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.engine.limits import EngineLimits


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
    min_pixels: int | None
    max_pixels: int | None
    debug: bool
