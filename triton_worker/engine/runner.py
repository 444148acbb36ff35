"""Runs the model over the chunks of one step."""

from __future__ import annotations

import torch
from torch import Tensor

from triton_worker.engine.attention import PlainAttention
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.messages import Generate
from triton_worker.engine.picture_encoder import PictureEncoder, key_of
from triton_worker.engine.sampler import SampledToken, SamplingBatch, sample
from triton_worker.engine.scheduler import Chunk
from triton_worker.engine.sequence import PictureSpan, Sequence
from triton_worker.models.interface import MultimodalModel


class ModelRunner:
    """Embeds tokens and pictures, runs the decoder over the KV cache and samples."""

    def __init__(
        self,
        model: MultimodalModel,
        image_token_id: int,
        total_blocks: int,
        pictures: PictureEncoder,
        vocabulary_size: int | None = None,
    ) -> None:
        """``vocabulary_size``: the tokenizer's; rows of the logits beyond it are padding."""
        self._model = model
        self._image_token_id = image_token_id
        self._pictures = pictures
        self._vocabulary_size = min(model.vocab_size, vocabulary_size or model.vocab_size)
        self._cache = KVCache(
            total_blocks, model.num_layers, model.num_kv_heads, model.head_dim, model.dtype, model.device
        )

    def new_sequence(self, request: Generate) -> Sequence:
        """The request with the positions of its prompt and the places of its pictures.

        Raises:
            ValueError: the prompt's image tokens are not those that its pictures ask for.
        """
        unit = self._model.picture_unit
        grids = [(p.pixels.shape[0] // unit, p.pixels.shape[1] // unit) for p in request.pictures]
        positions, next_position = self._model.prompt_positions(request.prompt_token_ids, grids, self._image_token_id)
        spans = []
        stop = 0
        for picture, (rows, columns) in zip(request.pictures, grids, strict=True):
            start = request.prompt_token_ids.index(self._image_token_id, stop)
            stop = start + rows * columns
            spans.append(PictureSpan(start, stop, picture))
        return Sequence(request, positions, next_position, tuple(spans))

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> list[SampledToken]:
        """The token sampled after each chunk that reaches the end of its sequence, in order."""
        device = self._model.device
        token_ids = torch.tensor([i for c in chunks for i in c.sequence.token_ids(c.start, c.stop)], device=device)
        positions = torch.cat([c.sequence.positions(c.start, c.stop) for c in chunks], dim=1).to(device)
        embeddings = self._embed(chunks, token_ids)
        hidden = self._model.forward(embeddings, positions, PlainAttention(chunks, self._cache))
        ends = torch.tensor([c.stop - c.start for c in chunks]).cumsum(0) - 1
        last = ends[torch.tensor([c.reaches_end for c in chunks])]
        if not len(last):
            return []
        ranks = self._model.ranks
        if ranks.is_last_stage:
            logits = self._model.logits(hidden[last.to(device)])[:, : self._vocabulary_size]
        # While a GPU computes the logits, the CPU computes grammars' masks; on every rank, for masks may end a grammar.
        batch = SamplingBatch.of([c.sequence for c in chunks if c.reaches_end], self._vocabulary_size, device)
        return ranks.from_sampler(sample(logits, batch).to_host() if ranks.samples else [])

    def _embed(self, chunks: list[Chunk], token_ids: Tensor) -> Tensor:
        """Token embeddings ``[tokens, hidden_size]`` with picture embeddings in the places of the image tokens."""
        embeddings = self._model.embed_tokens(token_ids)
        if not self._model.ranks.is_first_stage:
            return embeddings
        encoded = self._pictures.encode(chunks)
        first = 0
        for chunk in chunks:
            for span in chunk.pictures:
                start, stop = max(chunk.start, span.start), min(chunk.stop, span.stop)
                of_picture = encoded[key_of(chunk.sequence, span)][start - span.start : stop - span.start]
                place = first + start - chunk.start
                embeddings[place : place + stop - start] = of_picture.to(embeddings.dtype)
            first += chunk.stop - chunk.start
        return embeddings
