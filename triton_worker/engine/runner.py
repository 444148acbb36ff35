"""Runs the model over the chunks of one step."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from triton_worker.engine.attention import PlainAttention
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.messages import Generate
from triton_worker.engine.sampler import SampledToken, SamplingBatch, sample
from triton_worker.engine.scheduler import Chunk
from triton_worker.engine.sequence import Sequence
from triton_worker.models.interface import MultimodalModel


class ModelRunner:
    """Embeds tokens and pictures, runs the decoder over the KV cache and samples."""

    def __init__(
        self, model: MultimodalModel, image_token_id: int, total_blocks: int, vocabulary_size: int | None = None
    ) -> None:
        """``vocabulary_size``: the tokenizer's; rows of the logits beyond it are padding."""
        self._model = model
        self._image_token_id = image_token_id
        self._vocabulary_size = min(model.vocab_size, vocabulary_size or model.vocab_size)
        self._cache = KVCache(
            total_blocks, model.num_layers, model.num_kv_heads, model.head_dim, model.dtype, model.device
        )

    def new_sequence(self, request: Generate) -> Sequence:
        """The request with the positions of its prompt."""
        unit = self._model.picture_unit
        grids = [(picture.shape[0] // unit, picture.shape[1] // unit) for picture in request.pictures]
        positions, next_position = self._model.prompt_positions(request.prompt_token_ids, grids, self._image_token_id)
        return Sequence(request, positions, next_position)

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> list[SampledToken]:
        """The token sampled after each chunk, in order. Every chunk must reach the end of its sequence."""
        device = self._model.device
        token_ids = torch.tensor([i for c in chunks for i in c.sequence.token_ids(c.start, c.stop)], device=device)
        positions = torch.cat([c.sequence.positions(c.start, c.stop) for c in chunks], dim=1).to(device)
        embeddings = self._embed(chunks, token_ids)
        hidden = self._model.forward(embeddings, positions, PlainAttention(chunks, self._cache))
        last = torch.tensor([c.stop - c.start for c in chunks], device=device).cumsum(0) - 1
        ranks = self._model.ranks
        if ranks.is_last_stage:
            logits = self._model.logits(hidden[last])[:, : self._vocabulary_size]
        # While a GPU computes the logits, the CPU computes grammars' masks; on every rank, for masks may end a grammar.
        batch = SamplingBatch.of([c.sequence for c in chunks], self._vocabulary_size, device)
        return ranks.from_sampler(sample(logits, batch).to_host() if ranks.samples else [])

    def _embed(self, chunks: list[Chunk], token_ids: Tensor) -> Tensor:
        """Token embeddings ``[tokens, hidden_size]`` with picture embeddings in the places of the image tokens."""
        embeddings = self._model.embed_tokens(token_ids)
        with_pictures = [
            c for c in chunks if c.sequence.request.pictures and c.start < len(c.sequence.request.prompt_token_ids)
        ]
        if not with_pictures:
            return embeddings
        pictures = [
            torch.from_numpy(p).to(self._model.device) for c in with_pictures for p in c.sequence.request.pictures
        ]
        encoded = iter(self._model.encode_pictures(pictures))
        features = []
        for chunk in with_pictures:
            of_sequence = torch.cat(list(itertools.islice(encoded, len(chunk.sequence.request.pictures))))
            prompt = chunk.sequence.request.prompt_token_ids
            before, up_to = (prompt[:end].count(self._image_token_id) for end in (chunk.start, chunk.stop))
            features.append(of_sequence[before:up_to])
        # Generated tokens may be image tokens by accident: only those of prompts stand for pictures.
        in_prompt = torch.tensor(
            [at < len(c.sequence.request.prompt_token_ids) for c in chunks for at in range(c.start, c.stop)],
            device=token_ids.device,
        )
        embeddings[(token_ids == self._image_token_id) & in_prompt] = torch.cat(features).to(embeddings.dtype)
        return embeddings
