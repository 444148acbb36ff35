"""Attention on a GPU, over the blocks of the KV cache as they lie."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.scheduler import Chunk
from triton_worker.kernels.decode_attention import (
    decode_arrivals,
    decode_attention,
    decode_splits,
    rotate_and_decode,
)
from triton_worker.kernels.prefill_attention import paged_prefill_attention
from triton_worker.kernels.rotate_and_store import rotate_and_store
from triton_worker.models.decoder.rope import Rotary
from triton_worker.transfer import send


@dataclass(frozen=True)
class Contexts:
    """Where the KV cache holds all tokens so far of each sequence."""

    block_tables: Tensor
    """int32 ``[sequences, most blocks]``"""
    lengths: Tensor
    """int32 ``[sequences]``, with the tokens that are computed now; 0: nothing is computed"""

    @classmethod
    def of(cls, chunks: SequenceOf[Chunk], device: torch.device) -> Contexts:
        """Those of ``chunks``."""
        tables = np.zeros((len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks)), dtype=np.int32)
        for row, chunk in enumerate(chunks):
            tables[row, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
        return cls(send(tables, device), send([chunk.stop for chunk in chunks], device, torch.int32))


@dataclass(frozen=True)
class Decodes:
    """Sequences of which one token each is computed, the first tokens of the step."""

    contexts: Contexts
    splits: int
    """Parts that each context is computed in at once."""
    arrivals: Tensor
    """int32, zeros: how many of them are done"""

    @classmethod
    def split(cls, contexts: Contexts, longest: int, cache: KVCache) -> Decodes:
        """Contexts of at most ``longest`` tokens, split so that the whole GPU has work."""
        batch, device = len(contexts.lengths), contexts.lengths.device
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        splits = decode_splits(batch, cache.kv_heads, longest, multiprocessors)
        return cls(contexts, splits, decode_arrivals(batch, cache.kv_heads, device))


@dataclass(frozen=True)
class Prefills:
    """Sequences of which several tokens each are computed, the last tokens of the step."""

    contexts: Contexts
    query_starts: Tensor
    """int32 ``[sequences + 1]``: where the tokens of each begin among those of the step, and where the last ones end"""
    longest_query: int

    @classmethod
    def of(cls, chunks: SequenceOf[Chunk], first: int, device: torch.device) -> Prefills:
        """Those of ``chunks``, the ``first`` of whose tokens has this place in the step."""
        counts = [chunk.stop - chunk.start for chunk in chunks]
        starts = send(np.cumsum([first, *counts], dtype=np.int32), device)
        return cls(Contexts.of(chunks, device), starts, max(counts))


@dataclass(frozen=True)
class PagedAttention:
    """Attends each chunk of one step causally to its own sequence."""

    cache: KVCache
    rows: Tensor
    """Where in the cache each token is stored, int64 ``[tokens]``; negative: nowhere"""
    decodes: Decodes | None = None
    prefills: Prefills | None = None

    @classmethod
    def of(cls, chunks: SequenceOf[Chunk], cache: KVCache, device: torch.device) -> PagedAttention:
        """That of a step; chunks of one token may only stand before others or among them."""
        rows = send(torch.cat([c.sequence.cache_rows(c.start, c.stop) for c in chunks]), device)
        count = next((at for at, c in enumerate(chunks) if c.stop - c.start > 1), len(chunks))
        decodes = prefills = None
        if count:
            longest = max(chunk.stop for chunk in chunks[:count])
            decodes = Decodes.split(Contexts.of(chunks[:count], device), longest, cache)
        if count < len(chunks):
            prefills = Prefills.of(chunks[count:], count, device)
        return cls(cache, rows, decodes, prefills)

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        """See :class:`triton_worker.models.interface.Attention`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        decodes, prefills = self.decodes, self.prefills
        if decodes is not None and prefills is None:
            tables, lengths = decodes.contexts.block_tables, decodes.contexts.lengths
            return rotate_and_decode(
                heads, rotary.cos, rotary.signed_sin, self.rows, keys, values, tables, lengths,
                decodes.splits, decodes.arrivals,
            )  # fmt: skip
        query = rotate_and_store(heads, rotary.cos, rotary.signed_sin, self.rows, keys, values)
        output = torch.empty_like(query)
        # In this order: a decode that is padding writes to its row, which may be a prefill's.
        if decodes is not None:
            tables, lengths = decodes.contexts.block_tables, decodes.contexts.lengths
            count = len(lengths)
            decode_attention(
                query[:count], keys, values, tables, lengths, decodes.splits, decodes.arrivals, output=output[:count]
            )
        if prefills is not None:
            tables, lengths = prefills.contexts.block_tables, prefills.contexts.lengths
            starts, longest = prefills.query_starts, prefills.longest_query
            paged_prefill_attention(query, keys, values, tables, starts, lengths, longest, output=output)
        return output
