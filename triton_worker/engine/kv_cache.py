"""The KV cache: keys and values of all tokens in flight, in blocks of equal size."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_TOKENS = 16
"""Tokens a KV block holds."""


def blocks_for(tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    return -(-tokens // BLOCK_TOKENS)


class KVCache:
    """Keys and values of every layer, in the model's dtype, on its device.

    A block of number ``b`` is rows ``b * BLOCK_TOKENS`` … of ``keys[layer]`` and ``values[layer]``, each
    ``[total_blocks * BLOCK_TOKENS, kv_heads, head_dim]``.
    """

    def __init__(
        self, total_blocks: int, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, total_blocks * BLOCK_TOKENS, kv_heads, head_dim)
        # No row is read before it is written, but memory that is promised is taken now, not while requests run.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.kv_heads = kv_heads

    @staticmethod
    def block_bytes(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes one block takes, keys and values of all layers together."""
        return 2 * layers * BLOCK_TOKENS * kv_heads * head_dim * dtype.itemsize

    def write(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` (``[tokens, kv_heads, head_dim]``) at ``rows`` (int64 ``[tokens]``)."""
        self.keys[layer].index_copy_(0, rows, key)
        self.values[layer].index_copy_(0, rows, value)
