"""Attention within segments of different lengths that lie one after another, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, segment_lengths: Sequence[int]) -> Tensor:
    """Each token attends to all tokens of its own segment, in both directions.

    query, key and value: [tokens, heads, head_dim]; `segment_lengths` add up to tokens. Returns that shape.
    Neighbouring segments of equal length run as one batch, so order them by length where order is free.
    """
    outputs = []
    start = 0
    for length, run in itertools.groupby(segment_lengths):
        end = start + length * sum(1 for _ in run)
        # [segments, heads, length, head_dim], views of the inputs
        q, k, v = (torch.unflatten(x[start:end], 0, (-1, length)).transpose(1, 2) for x in (query, key, value))
        outputs.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
