"""Runs the model over the chunks of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triton_worker.engine.attention import PlainAttention
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.messages import Generate
from triton_worker.engine.picture_context import picture_contexts
from triton_worker.engine.picture_encoder import PictureEncoder, key_of
from triton_worker.engine.sampler import SampledFetch, SamplingBatch, sample
from triton_worker.engine.scheduler import Chunk
from triton_worker.engine.sequence import PictureSpan, Sequence
from triton_worker.models.interface import Attention, MultimodalModel
from triton_worker.transfer import send

if TYPE_CHECKING:
    from triton_worker.engine.decode_graphs import DecodeGraphs


class ModelRunner:
    """Embeds tokens and pictures, runs the decoder over the KV cache and samples.

    Nothing here waits for a GPU: a step may follow one whose tokens the host does not know yet.
    """

    def __init__(
        self,
        model: MultimodalModel,
        image_token_id: int,
        total_blocks: int,
        pictures: PictureEncoder,
        max_sequences: int,
        vocabulary_size: int | None = None,
    ) -> None:
        """``vocabulary_size``: the tokenizer's; rows of the logits beyond it are padding."""
        self._model = model
        self._image_token_id = image_token_id
        self._pictures = pictures
        self._vocabulary_size = min(model.vocab_size, vocabulary_size or model.vocab_size)
        self._cache = KVCache(
            total_blocks,
            model.num_layers,
            model.num_kv_heads,
            model.head_dim,
            model.dtype,
            model.device,
            model.cross_span,
        )
        self._drawn = torch.zeros(max_sequences, dtype=torch.int64, device=model.device)
        self._graphs: DecodeGraphs | None = None
        self._model_forward: Callable[[Tensor, Tensor, Any], Tensor] = model.forward

    def capture_graphs(
        self, context_length: int, max_prefill_tokens: int, progress: Callable[[int, int], None]
    ) -> None:
        """Record decode steps and small ones with prompts, so that :meth:`forward` replays them where it can."""
        from triton_worker.engine.cuda_graphs import capture
        from triton_worker.engine.decode_graphs import DecodeGraphs, batch_ladder
        from triton_worker.engine.prefill_graphs import PrefillGraphs, token_ladder

        most = len(self._drawn)
        decode = DecodeGraphs(self._model, self._cache, self._drawn, batch_ladder(most), context_length)
        sizes = token_ladder(max_prefill_tokens, most)
        prefill = PrefillGraphs(self._model, self._cache, most, sizes, context_length)
        capture([prefill.ladder, decode.ladder], progress)
        self._graphs, self._model_forward = decode, prefill.forward

    def new_sequence(self, request: Generate) -> Sequence:
        """The request with the positions of its prompt and the places of its pictures.

        Raises:
            ValueError: the prompt's image tokens are not those that its pictures ask for.
        """
        unit = self._model.picture_unit
        grids = [(p.pixels.shape[0] // unit, p.pixels.shape[1] // unit) for p in request.pictures]
        positions, next_position = self._model.prompt_positions(request.prompt_token_ids, grids, self._image_token_id)
        lengths = [self._model.picture_tokens(*picture.pixels.shape[:2]) for picture in request.pictures]
        cross_span = self._model.cross_span
        spans = []
        stop = 0
        for picture, length in zip(request.pictures, lengths, strict=True):
            start = request.prompt_token_ids.index(self._image_token_id, stop)
            stop = start + (1 if cross_span else length)
            spans.append(PictureSpan(start, stop, picture))
        contexts = picture_contexts([(s.start, s.picture) for s in spans], lengths, cross_span) if cross_span else ()
        return Sequence(request, positions, next_position, tuple(spans), contexts)

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Tensor:
        """Logits ``[chunks that reach their end, vocabulary]`` to be sampled from, on the last stage; else empty."""
        if self._graphs is not None and self._graphs.take(chunks):
            return self._graphs.run(chunks)[:, : self._vocabulary_size]
        device = self._model.device
        positions = send(torch.cat([c.sequence.positions(c.start, c.stop) for c in chunks], dim=1), device)
        embeddings = self._embed(chunks, self._token_ids(chunks))
        hidden = self._model_forward(embeddings, positions, self._attention(chunks))
        ends = torch.tensor([c.stop - c.start for c in chunks]).cumsum(0) - 1
        last = ends[torch.tensor([c.reaches_end for c in chunks])]
        if not (len(last) and self._model.ranks.is_last_stage):
            return hidden.new_empty(0, self._vocabulary_size)
        return self._model.logits(hidden[send(last, device)])[:, : self._vocabulary_size]

    @torch.inference_mode()
    def sample(self, chunks: list[Chunk], logits: Tensor) -> SampledFetch | None:
        """Draw the token after each chunk that reaches its end; ``None`` where none does.

        Every rank of the last stage draws, and all take what the first one drew. While a GPU computes the logits, the
        CPU computes grammars' masks: on every rank, for masks may end a grammar.
        """
        ends = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        if not ends:
            return None
        batch = SamplingBatch.of(ends, self._vocabulary_size, self._model.device)
        ranks = self._model.ranks
        if not ranks.is_last_stage:
            return None
        sampled = sample(logits, batch)
        # Where a grammar lets no token through any will do: the sequence ends.
        self._drawn[: len(ends)] = ranks.same(sampled.token_ids).clamp_min(0)
        return sampled.fetch()

    def _attention(self, chunks: list[Chunk]) -> Attention:
        if self._model.device.type != "cuda":
            return PlainAttention(chunks, self._cache)
        from triton_worker.engine.paged_attention import PagedAttention

        return PagedAttention.of(chunks, self._cache, self._model.device)

    def _token_ids(self, chunks: list[Chunk]) -> Tensor:
        """int64 ``[tokens]``; those that the step before draws are taken from where it puts them."""
        token_ids: list[int] = []
        places: list[int] = []
        rows: list[int] = []
        for chunk in chunks:
            known = chunk.sequence.token_ids(chunk.start, chunk.stop)
            token_ids += known
            if chunk.sequence.pending_row is not None and len(known) < chunk.stop - chunk.start:
                places.append(len(token_ids))
                rows.append(chunk.sequence.pending_row)
                token_ids.append(0)
        sent = send(token_ids, self._model.device, torch.int64)
        if places:
            at, drawn = send([places, rows], self._model.device, torch.int64)
            sent[at] = self._drawn[drawn]
        return sent

    def _embed(self, chunks: list[Chunk], token_ids: Tensor) -> Tensor:
        """Token embeddings ``[tokens, hidden_size]`` with picture embeddings in the places of the image tokens."""
        embeddings = self._model.embed_tokens(token_ids)
        if self._model.cross_span:
            self._store_pictures(chunks)
            return embeddings
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

    def _store_pictures(self, chunks: list[Chunk]) -> None:
        """Compute the keys and values of pictures that cross-attention layers read for the first time.

        One by one: a picture may have more embeddings than the step has tokens.
        """
        for context in (context for chunk in chunks for context in chunk.new_contexts):
            rows = self._cache.picture_rows(context.blocks, sum(context.lengths))
            for picture, own in zip(context.pictures, torch.split(rows, list(context.lengths)), strict=True):
                [embeddings] = self._model.encode_pictures([send(picture.pixels, self._model.device)])
                for layer, (key, value) in enumerate(self._model.picture_keys_values(embeddings)):
                    self._cache.write_pictures(layer, own, key, value)
