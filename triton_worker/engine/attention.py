"""Attention over the KV cache: the one seam between the model and the hardware.

:class:`PlainAttention` is plain PyTorch: for the CPU, and what faster implementations are tested against.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.scheduler import Chunk
from triton_worker.models.decoder.rope import Rotary, apply_rotary


class PlainAttention:
    """Attends each chunk of one step causally to its own sequence, and to the pictures beside it.

    The tokens of all chunks are concatenated without padding. Decode chunks (one token) are computed as one padded
    batch, longer ones one by one, and so are the runs of tokens that see the same pictures.
    """

    def __init__(self, chunks: SequenceOf[Chunk], cache: KVCache) -> None:
        self._cache = cache
        self._device = cache.keys.device
        self._rows = torch.cat([c.sequence.cache_rows(c.start, c.stop) for c in chunks]).to(self._device)
        offsets = [0]
        for chunk in chunks:
            offsets.append(offsets[-1] + chunk.stop - chunk.start)
        spans = list(zip(chunks, offsets, strict=False))
        self._decodes = self._decode_batch([span for span in spans if span[0].stop - span[0].start == 1])
        self._prefills = [
            (slice(at, at + c.stop - c.start), c.start, c.sequence.cache_rows(0, c.stop).to(self._device))
            for c, at in spans
            if c.stop - c.start > 1
        ]
        self._pictures = [
            (slice(at + run.start - c.start, at + run.stop - c.start), cache.picture_rows(run.blocks, run.length))
            for c, at in spans
            for run in c.sequence.picture_runs(c.start, c.stop)
            if run.length
        ]
        self.sees_pictures = self._seeing(offsets[-1])

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        """See :class:`triton_worker.models.interface.Attention`."""
        kv_heads = self._cache.kv_heads
        query_heads = heads.shape[1] - 2 * kv_heads
        # Query and key heads lie side by side, so one rotation serves both.
        query, key = torch.split(apply_rotary(heads[:, :-kv_heads], rotary), [query_heads, kv_heads], dim=1)
        value = heads[:, -kv_heads:]
        self._cache.write(layer, self._rows, key, value)
        output = torch.empty_like(query)
        if self._decodes is not None:
            tokens, rows, mask = self._decodes
            output[tokens] = self._decode(layer, query[tokens], rows, mask)
        for span, start, rows in self._prefills:
            output[span] = self._prefill(layer, query[span], start, rows)
        return output

    def to_pictures(self, layer: int, query: Tensor) -> Tensor:
        """See :class:`triton_worker.models.interface.Attention`."""
        keys, values = self._cache.of_pictures(layer)
        output = torch.zeros_like(query)
        for span, rows in self._pictures:
            q, k, v = (x.transpose(0, 1)[None] for x in (query[span], keys[rows], values[rows]))
            output[span] = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)
        return output

    def _seeing(self, tokens: int) -> Tensor | None:
        if not self._pictures:
            return None
        sees = torch.zeros(tokens, 1, dtype=torch.bool, device=self._device)
        for span, _ in self._pictures:
            sees[span] = True
        return sees

    def _decode_batch(self, spans: list[tuple[Chunk, int]]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Token indices ``[batch]``, padded cache rows ``[batch, longest]``, and which rows count (bool)."""
        if not spans:
            return None
        contexts = [chunk.sequence.cache_rows(0, chunk.stop) for chunk, _ in spans]
        lengths = torch.tensor([len(context) for context in contexts])
        rows = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True)
        mask = torch.arange(rows.shape[1])[None, :] < lengths[:, None]
        # Padding reads the sequence's own first row: a weight of zero does not make another's NaN harmless.
        rows = torch.where(mask, rows, rows[:, :1])
        tokens = torch.tensor([at for _, at in spans])
        return tokens.to(self._device), rows.to(self._device), mask.to(self._device)

    def _decode(self, layer: int, query: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """One query token a sequence. The heads of a KV group take the place of query tokens, so KV is not repeated."""
        batch, heads, head_dim = query.shape
        key = self._cache.keys[layer][rows].transpose(1, 2)  # [batch, kv_heads, context, head_dim]
        value = self._cache.values[layer][rows].transpose(1, 2)
        grouped = query.view(batch, key.shape[1], -1, head_dim)
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask[:, None, None, :])
        return output.reshape(batch, heads, head_dim)

    def _prefill(self, layer: int, query: Tensor, start: int, rows: Tensor) -> Tensor:
        """Tokens from position ``start`` of one sequence against all its tokens so far."""
        key = self._cache.keys[layer][rows].transpose(0, 1)[None]  # [1, kv_heads, context, head_dim]
        value = self._cache.values[layer][rows].transpose(0, 1)[None]
        mask = None
        if start > 0:
            mask = torch.ones(len(query), len(rows), dtype=torch.bool, device=self._device).tril(diagonal=start)
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return output[0].transpose(0, 1)
