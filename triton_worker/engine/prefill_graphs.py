"""Small steps with prompts in CUDA graphs: a GPU computes a thousand tokens while Python launches their kernels."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from triton_worker.engine.cuda_graphs import GraphLadder
from triton_worker.engine.kv_cache import KVCache, blocks_for
from triton_worker.engine.paged_attention import Contexts, Decodes, PagedAttention, Prefills
from triton_worker.models.interface import MultimodalModel

_MOST_PROMPTS = 8
"""Prompts of a step in a graph: each has its programs launched in every step, also where it is padding."""

_MOST_TOKENS = 2048
"""With so many, computing takes longer than launching."""


class PrefillGraphs:
    """A graph for each number of tokens of a ladder, with any number of decodes among them."""

    def __init__(
        self, model: MultimodalModel, cache: KVCache, max_sequences: int, sizes: SequenceOf[int], max_context: int
    ) -> None:
        """``sizes``: the ladder, rising."""
        self.ladder = GraphLadder(sizes, self._compute)
        self._model = model
        self._cache = cache
        self._max_context = max_context
        most, device = sizes[-1], model.device
        self._embeddings = torch.zeros(most, model.hidden_size, dtype=model.dtype, device=device)
        self._positions = torch.zeros(3, most, dtype=torch.int64, device=device)
        self._rows = torch.full((most,), -1, dtype=torch.int64, device=device)
        self._decodes = _no_contexts(max_sequences, max_context, device)
        self._prompts = _no_contexts(_MOST_PROMPTS, max_context, device)
        self._prompt_starts = torch.zeros(_MOST_PROMPTS + 1, dtype=torch.int32, device=device)
        # One for all graphs: a result of its own would hold its memory in each.
        self._output = torch.empty_like(self._embeddings)

    def forward(self, embeddings: Tensor, positions: Tensor, attention: PagedAttention) -> Tensor:
        """What :meth:`MultimodalModel.forward` returns, valid until the next run.

        Large steps run without a graph, and so do those with pictures beside their sequences.
        """
        tokens, decodes, prefills = len(embeddings), attention.decodes, attention.prefills
        prompts = 0 if prefills is None else len(prefills.contexts.lengths)
        if tokens > self.ladder.sizes[-1] or prompts > _MOST_PROMPTS or attention.pictures is not None:
            return self._model.forward(embeddings, positions, attention)
        size = self.ladder.size_for(tokens)
        self._embeddings[:tokens] = embeddings
        self._positions[:, :tokens] = positions
        self._rows[:size] = -1
        self._rows[:tokens] = attention.rows
        _replace(self._decodes, None if decodes is None else decodes.contexts)
        _replace(self._prompts, None if prefills is None else prefills.contexts)
        self._prompt_starts.fill_(tokens)
        if prefills is not None:
            self._prompt_starts[: prompts + 1] = prefills.query_starts
        self.ladder.replay(size)
        return self._output[:tokens]

    def _compute(self, size: int) -> None:
        # The rows of missing decodes are prompts' or padding: what comes of those is not looked at.
        decodes = Contexts(self._decodes.block_tables[:size], self._decodes.lengths[:size])
        attention = PagedAttention(
            self._cache,
            self._rows[:size],
            Decodes.split(decodes, self._max_context, self._cache),
            Prefills(self._prompts, self._prompt_starts, longest_query=size),
        )
        # The model may use up what it is given.
        embeddings = self._embeddings[:size].clone()
        self._output[:size] = self._model.forward(embeddings, self._positions[:, :size], attention)


def token_ladder(max_prefill_tokens: int, max_sequences: int) -> list[int]:
    """Numbers of tokens to record: every 128, the height of a tile of matrix products, and from 1024 on every 256."""
    most = min(_MOST_TOKENS, max_prefill_tokens + max_sequences)
    ladder = [*range(128, 1024, 128), *range(1024, _MOST_TOKENS + 1, 256)]
    largest = next(size for size in ladder if size >= most)
    return [size for size in ladder if size <= largest]


def _no_contexts(count: int, max_context: int, device: torch.device) -> Contexts:
    tables = torch.zeros(count, blocks_for(max_context), dtype=torch.int32, device=device)
    return Contexts(tables, torch.zeros(count, dtype=torch.int32, device=device))


def _replace(contexts: Contexts, others: Contexts | None) -> None:
    """Fill ``contexts`` with ``others``; those that are left have nothing to attend to."""
    contexts.lengths.zero_()
    if others is not None:
        count, blocks = others.block_tables.shape
        contexts.lengths[:count] = others.lengths
        contexts.block_tables[:count, :blocks] = others.block_tables
