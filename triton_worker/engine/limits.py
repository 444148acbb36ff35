"""Sizes of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """How much one engine takes on."""

    max_sequences: int = 64
    """Requests computed at once; more wait."""
    max_prefill_tokens: int = 4096
    """Prompt tokens that one step starts at most (one prompt is always let through)."""
    context_length: int | None = None
    """Prompt and generated tokens together; ``None``: what the checkpoint was trained for."""
    gpu_memory_fraction: float = 0.9
    """Part of the free GPU memory, after the weights, that the KV cache takes."""
    cpu_kv_cache_bytes: int = 2**30
    """Size of the KV cache on the CPU, at most."""
