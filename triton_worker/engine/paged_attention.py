"""Attention on a GPU, over the blocks of the KV cache as they lie."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.picture_context import PictureRun
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
    """Where the KV cache holds what each sequence attends to: all its tokens so far, or the pictures beside it."""

    block_tables: Tensor
    """int32 ``[sequences, most blocks]``"""
    lengths: Tensor
    """int32 ``[sequences]``, with the tokens that are computed now; 0: nothing is computed"""

    @classmethod
    def of(cls, chunks: SequenceOf[Chunk], device: torch.device) -> Contexts:
        """The tokens of ``chunks``."""
        return cls._of([chunk.sequence.blocks for chunk in chunks], [chunk.stop for chunk in chunks], device)

    @classmethod
    def of_pictures(cls, runs: SequenceOf[PictureRun], cache: KVCache, device: torch.device) -> Contexts:
        """What ``runs`` of tokens see."""
        contexts = cls._of([run.blocks for run in runs], [run.length for run in runs], device)
        return replace(contexts, block_tables=cache.picture_table(contexts.block_tables))

    @classmethod
    def _of(cls, blocks: SequenceOf[SequenceOf[int]], lengths: list[int], device: torch.device) -> Contexts:
        tables = np.zeros((len(blocks), max(map(len, blocks))), dtype=np.int32)
        for row, own in enumerate(blocks):
            tables[row, : len(own)] = own
        return cls(send(tables, device), send(lengths, device, torch.int32))


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
    def of(
        cls, contexts: Contexts, queries: SequenceOf[Chunk | PictureRun], first: int, device: torch.device
    ) -> Prefills:
        """Those of ``queries``, the ``first`` of whose tokens has this place in the step, with a context for each."""
        counts = [query.stop - query.start for query in queries]
        starts = send(np.cumsum([first, *counts], dtype=np.int32), device)
        return cls(contexts, starts, max(counts))


@dataclass(frozen=True)
class Pictures:
    """What the tokens of a step see in cross-attention layers."""

    sees: Tensor
    """bool ``[tokens, 1]``: whether it is anything"""
    decodes: Decodes | None
    prefills: Prefills | None
    """Each of its sequences is a run of tokens that see the same."""

    @classmethod
    def of(cls, chunks: SequenceOf[Chunk], decode_count: int, cache: KVCache, device: torch.device) -> Pictures | None:
        """Those beside ``chunks``; ``None`` where there are none."""
        runs = [chunk.sequence.picture_runs(chunk.start, chunk.stop) for chunk in chunks]
        one_by_one = [run for of_chunk in runs[:decode_count] for run in of_chunk]
        others = [run for of_chunk in runs[decode_count:] for run in of_chunk]
        if not any(run.length for run in (*one_by_one, *others)):
            return None
        seeing = np.concatenate([np.full(run.stop - run.start, run.length > 0) for run in (*one_by_one, *others)])
        decodes = prefills = None
        if one_by_one:
            longest = max(run.length for run in one_by_one)
            decodes = Decodes.split(Contexts.of_pictures(one_by_one, cache, device), longest, cache)
        if others:
            prefills = Prefills.of(Contexts.of_pictures(others, cache, device), others, decode_count, device)
        return cls(send(seeing[:, None], device), decodes, prefills)


@dataclass(frozen=True)
class PagedAttention:
    """Attends each chunk of one step causally to its own sequence, and to the pictures beside it."""

    cache: KVCache
    rows: Tensor
    """Where in the cache each token is stored, int64 ``[tokens]``; negative: nowhere"""
    decodes: Decodes | None = None
    prefills: Prefills | None = None
    pictures: Pictures | None = None

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
            prefills = Prefills.of(Contexts.of(chunks[count:], device), chunks[count:], count, device)
        pictures = Pictures.of(chunks, count, cache, device) if cache.cross_span else None
        return cls(cache, rows, decodes, prefills, pictures)

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
        return _attend(query, keys, values, decodes, prefills, causal=True)

    @property
    def sees_pictures(self) -> Tensor | None:
        """See :class:`triton_worker.models.interface.Attention`."""
        return None if self.pictures is None else self.pictures.sees

    def to_pictures(self, layer: int, query: Tensor) -> Tensor:
        """See :class:`triton_worker.models.interface.Attention`."""
        if self.pictures is None:
            return torch.zeros_like(query)
        keys, values = self.cache.of_pictures(layer)
        return _attend(query, keys, values, self.pictures.decodes, self.pictures.prefills, causal=False)


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, decodes: Decodes | None, prefills: Prefills | None, *, causal: bool
) -> Tensor:
    """The tokens of both, whose queries are turned and whose keys and values are stored."""
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
        paged_prefill_attention(query, keys, values, tables, starts, lengths, longest, output=output, causal=causal)
    return output
