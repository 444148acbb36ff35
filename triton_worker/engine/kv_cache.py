"""The KV cache: keys and values of all tokens in flight, in blocks of equal size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triton_worker.transfer import send

BLOCK_TOKENS = 16
"""Tokens a KV block holds."""


def blocks_for(tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    return -(-tokens // BLOCK_TOKENS)


class KVCache:
    """Keys and values of every layer, in the model's dtype, on its device.

    A block of number ``b`` is rows ``b * BLOCK_TOKENS`` … of ``keys[layer]`` and ``values[layer]``, each
    ``[total_blocks * BLOCK_TOKENS, kv_heads, head_dim]``.

    A block of pictures is one in which each cross-attention layer has the room of ``cross_span`` layers. So it holds
    ``cross_span`` times as many tokens, and text and pictures take each other's blocks.
    """

    def __init__(
        self,
        total_blocks: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        cross_span: int = 0,
    ) -> None:
        shape = (layers, total_blocks * BLOCK_TOKENS, kv_heads, head_dim)
        # No row is read before it is written, but memory that is promised is taken now, not while requests run.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.kv_heads = kv_heads
        self.cross_span = cross_span
        self._parts = torch.arange(cross_span, dtype=torch.int32, device=device) * total_blocks

    @staticmethod
    def block_bytes(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes one block takes, keys and values of all layers together."""
        return 2 * layers * BLOCK_TOKENS * kv_heads * head_dim * dtype.itemsize

    def write(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` (``[tokens, kv_heads, head_dim]``) at ``rows`` (int64 ``[tokens]``)."""
        self.keys[layer].index_copy_(0, rows, key)
        self.values[layer].index_copy_(0, rows, value)

    def write_pictures(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """The same for a cross-attention layer, in :meth:`of_pictures`."""
        for cached, new in zip(self.of_pictures(layer), (key, value), strict=True):
            cached.index_copy_(0, rows, new)

    def of_pictures(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a cross-attention layer, each ``[cross_span * total_blocks * BLOCK_TOKENS, ...]``."""
        own = slice(layer * self.cross_span, (layer + 1) * self.cross_span)
        return self.keys[own].flatten(0, 1), self.values[own].flatten(0, 1)

    def picture_table(self, blocks: Tensor) -> Tensor:
        """Where in :meth:`of_pictures` blocks of pictures lie: int32 ``[..., n]`` -> ``[..., n * cross_span]``.

        The result counts in blocks of :data:`BLOCK_TOKENS` rows, as a block table does.
        """
        return (blocks[..., None] + self._parts).flatten(-2)

    def picture_rows(self, blocks: Sequence[int], length: int) -> Tensor:
        """The first ``length`` rows of :meth:`of_pictures` in blocks of pictures: int64 ``[length]``."""
        table = self.picture_table(send(blocks, self.keys.device, torch.int32)).long()
        places = torch.arange(BLOCK_TOKENS, device=table.device)
        return (table[:, None] * BLOCK_TOKENS + places).flatten()[:length]
