"""The decode step in CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from triton_worker.engine.cuda_graphs import GraphLadder
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache, blocks_for
from triton_worker.engine.paged_attention import Contexts, Decodes, PagedAttention, Pictures
from triton_worker.engine.scheduler import Chunk
from triton_worker.models.interface import MultimodalModel

_TOKEN, _SOURCE, _POSITION, _CACHE_ROW, _CONTEXT, _PICTURE_CONTEXT = range(6)
_BLOCKS = 6
"""Columns of a row of the inputs: these six, then the sequence's blocks, then those of the pictures that it sees."""
_PADDING = (0, -1, 0, -1, 0, 0)
"""Token 0 of no sequence, stored nowhere, with nothing to attend to."""

_PICTURES_SEEN = 4
"""What a graph has room for, in the largest pictures side by side. More are rare, and decoded without a graph."""


class DecodeGraphs:
    """A graph for each batch size of a ladder."""

    def __init__(
        self, model: MultimodalModel, cache: KVCache, drawn: Tensor, sizes: SequenceOf[int], max_context: int
    ) -> None:
        """``drawn``: int64 ``[most]``, the tokens that the step before drew; ``sizes``: the ladder, rising."""
        self.ladder = GraphLadder(sizes, self._compute)
        self._model = model
        self._cache = cache
        self._drawn = drawn
        self._max_context = max_context
        self._picture_blocks = _BLOCKS + blocks_for(max_context)
        shape = (sizes[-1], self._picture_blocks + _most_picture_blocks(model))
        self._inputs = torch.zeros(shape, dtype=torch.int32, device=model.device)
        self._inputs[:, :_BLOCKS] = torch.tensor(_PADDING, dtype=torch.int32, device=model.device)
        # A step is prepared while the one before is being copied from the other.
        self._prepared = [torch.zeros(shape, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        # One for all graphs: a result of its own would hold its memory in each.
        self._output = torch.empty(sizes[-1], model.vocab_size, dtype=model.dtype, device=model.device)

    def take(self, chunks: SequenceOf[Chunk]) -> bool:
        """Whether there is a graph for all that these chunks need."""
        return all(
            chunk.stop - chunk.start == 1 and chunk.reaches_end and not chunk.pictures and self._sees_few(chunk)
            for chunk in chunks
        )

    def _sees_few(self, chunk: Chunk) -> bool:
        if not chunk.sequence.contexts:
            return True
        [run] = chunk.sequence.picture_runs(chunk.start, chunk.stop)
        return not chunk.new_contexts and len(run.blocks) <= self._inputs.shape[1] - self._picture_blocks

    def run(self, chunks: SequenceOf[Chunk]) -> Tensor:
        """Logits ``[chunks, vocabulary]``, valid until the next run; each chunk is one token that reaches its end."""
        size = self.ladder.size_for(len(chunks))
        prepared = self._prepared[0]
        self._prepared.reverse()
        rows = prepared.numpy()
        rows[:size, :_BLOCKS] = _PADDING
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            place = chunk.start
            rows[row, :_BLOCKS] = (
                *sequence.decode_token(place),
                sequence.position(place),
                sequence.blocks[place // BLOCK_TOKENS] * BLOCK_TOKENS + place % BLOCK_TOKENS,
                chunk.stop,
                0,
            )
            rows[row, _BLOCKS : _BLOCKS + len(sequence.blocks)] = sequence.blocks
            if sequence.contexts:
                [seen] = sequence.picture_runs(place, chunk.stop)
                rows[row, _PICTURE_CONTEXT] = seen.length
                rows[row, self._picture_blocks : self._picture_blocks + len(seen.blocks)] = seen.blocks
        self._inputs[:size].copy_(prepared[:size], non_blocking=True)
        self.ladder.replay(size)
        return self._output[: len(chunks)]

    def _compute(self, size: int) -> None:
        inputs = self._inputs[:size]
        source = inputs[:, _SOURCE].long()
        token_ids = torch.where(source >= 0, self._drawn[source.clamp_min(0)], inputs[:, _TOKEN].long())
        context_lengths = inputs[:, _CONTEXT].contiguous()
        tables = inputs[:, _BLOCKS : self._picture_blocks]
        decodes = Decodes.split(Contexts(tables, context_lengths), self._max_context, self._cache)
        rows = inputs[:, _CACHE_ROW].long()
        attention = PagedAttention(self._cache, rows, decodes, pictures=self._pictures(inputs))
        positions = inputs[:, _POSITION].long().expand(3, -1)
        hidden = self._model.forward(self._model.embed_tokens(token_ids), positions, attention)
        self._output[:size] = self._model.logits(hidden)

    def _pictures(self, inputs: Tensor) -> Pictures | None:
        if not self._cache.cross_span:
            return None
        lengths = inputs[:, _PICTURE_CONTEXT].contiguous()
        table = self._cache.picture_table(inputs[:, self._picture_blocks :])
        decodes = Decodes.split(Contexts(table, lengths), table.shape[1] * BLOCK_TOKENS, self._cache)
        return Pictures((lengths > 0)[:, None], decodes, None)


def _most_picture_blocks(model: MultimodalModel) -> int:
    if not model.cross_span or model.picture_size is None:
        return 0
    return -(-_PICTURES_SEEN * model.picture_tokens(*model.picture_size) // (model.cross_span * BLOCK_TOKENS))


def batch_ladder(most: int) -> list[int]:
    """Batch sizes to record: 1, 2, 4, then every 8, up to ``most``."""
    return [size for size in (1, 2, 4) if size < most] + [*range(8, most, 8), most]
