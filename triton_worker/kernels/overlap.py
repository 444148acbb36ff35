"""Programmatic dependent launch: a kernel starts while the one before it in the stream still runs.

A kernel so launched may read before `wait_for_inputs` only what no kernel writes while a model runs: weights. All else
waits, to read it because an earlier kernel may still be writing it, to write it because an earlier one may still be
reading it. "Earlier" is not just the one before: a kernel counts as finished once all its programs are, and every
program here waits, so the end of the one before is the end of all before that. A kernel launched with `overlap` that
did not wait in every program would break this for its successors. Kernels launched without it wait for all before them,
and nobody starts before their end.

What kernels without overlap write, weights that are loaded above all, is there for all kernels behind them. Each step
begins with such a kernel, the embedding.
CUDA graphs record such launches as programmatic edges.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Let the next kernel have the places that are left, once every program of this one has said so."""
    if OVERLAP:
        cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Until all earlier kernels are finished and what they wrote is visible."""
    if OVERLAP:
        cuda.gdc_wait()


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether the GPU (from Hopper on) and the installed Triton (from 3.6 on, or a little before) know of it."""
    known = torch.version.cuda is not None and hasattr(cuda, "gdc_wait")
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(overlap: bool) -> dict[str, bool]:
    """For a kernel whose OVERLAP is `overlap`."""
    return {"launch_pdl": True} if overlap else {}
