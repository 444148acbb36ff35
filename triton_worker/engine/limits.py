"""Sizes of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """How much one engine takes on."""

    max_sequences: int = 64
    """Requests computed at once; more wait."""
    max_prefill_tokens: int = 4096
    """Prompt tokens that one step computes at most; longer prompts are spread over several steps."""
    context_length: int | None = None
    """Prompt and generated tokens together; ``None``: what the checkpoint was trained for."""
    max_picture_tokens: int = 1280
    """Embeddings of the largest picture that may come."""
    prefix_cache: bool = True
    """Whether requests that begin alike share what was computed for their beginning."""
    picture_cache_bytes: int | None = None
    """Embeddings of pictures that are kept; ``None``: 1 GiB on a GPU, 256 MiB on the CPU."""
    cuda_graphs: bool = True
    """Whether decode steps are recorded, on a single GPU, when the engine starts."""
    overlap_steps: bool | None = None
    """Whether a step is prepared while the one before is computed, by a single rank; ``None``: on a GPU."""
    gpu_memory_fraction: float = 0.9
    """Part of the free GPU memory, after the weights, that the engine takes."""
    kv_cache_bytes: int | None = None
    """Size of the KV cache, at most; ``None``: 1 GiB on the CPU, on a GPU what is left of the engine's part."""
