"""What a worker is started with."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.engine.limits import EngineLimits


class UnusableSettings(Exception):
    """Settings that do not go together; the message is for the person who gave them."""


@dataclass(frozen=True)
class TritonAddresses:
    """Where Triton listens."""

    http_address: str
    http_port: int
    grpc_address: str
    grpc_port: int
    metrics_port: int

    @property
    def grpc_target(self) -> str:
        """``host:port`` by which this machine reaches the gRPC port."""
        return f"{'127.0.0.1' if self.grpc_address == '0.0.0.0' else self.grpc_address}:{self.grpc_port}"


@dataclass(frozen=True)
class WorkerSettings:
    """All that a worker is started with."""

    nemo_checkpoint: str
    model_name: str
    model_version: int
    max_batch_size: int
    tokenizer: str | None
    dtype: str
    device: str
    triton: TritonAddresses
    tensor_parallel_size: int
    pipeline_parallel_size: int
    limits: EngineLimits
    max_requests: int
    min_pixels: int | None
    max_pixels: int | None
    debug: bool
    otlp_endpoint: str | None = None
    """Where traces go, if anywhere."""
