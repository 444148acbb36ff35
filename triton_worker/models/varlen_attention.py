"""Attention within segments of different lengths that lie one after another, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from triton_worker.transfer import send


@dataclass(frozen=True)
class Segments:
    """How tokens are cut into segments."""

    lengths: tuple[int, ...]
    starts: Tensor
    """int32 [segments + 1], on the device of the tokens"""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        """`lengths` add up to all tokens."""
        return cls(tuple(lengths), send(np.cumsum([0, *lengths], dtype=np.int32), device))


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Each token attends to all tokens of its own segment, in both directions.

    query, key and value: [tokens, heads, head_dim]. Returns that shape. In plain PyTorch neighbouring segments of
    equal length run as one batch, so order them by length where order is free.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from triton_worker.kernels import varlen_attention

        return varlen_attention.varlen_attention(query, key, value, segments.starts, max(segments.lengths))
    outputs = []
    start = 0
    for length, run in itertools.groupby(segments.lengths):
        end = start + length * sum(1 for _ in run)
        # [segments, heads, length, head_dim], views of the inputs
        q, k, v = (torch.unflatten(x[start:end], 0, (-1, length)).transpose(1, 2) for x in (query, key, value))
        outputs.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
