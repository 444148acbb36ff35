"""A vision tower in front of a decoder, which is what every family here is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.decoder import Decoder
from triton_worker.models.interface import Attention
from triton_worker.parallel import ParallelismError, Ranks, shard_decoder, stage_layers


class VisionLanguageModel(nn.Module):
    """A `MultimodalModel` but for `prompt_positions`. Its parameters are uninitialised until a checkpoint fills them.

    The decoder is spread over the ranks; the vision tower is whole on each rank of the first stage, so that a picture
    is encoded there without any exchange. With cross-attention layers, which are on all stages, all ranks have it.
    """

    def __init__(
        self,
        text: DecoderConfig,
        vision: Callable[[], nn.Module],
        ranks: Ranks,
        *,
        picture_unit: int,
        picture_size: tuple[int, int] | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`vision` makes the tower: pictures to embeddings, as in `MultimodalModel.encode_pictures`.

        Raises ParallelismError when the sizes do not divide.
        """
        super().__init__()
        self.ranks = ranks
        self.picture_unit = picture_unit
        self.picture_size = picture_size
        self.dtype = dtype
        self.device = device
        self.shard = shard_decoder(
            ranks,
            num_layers=text.num_layers,
            num_heads=text.num_heads,
            num_kv_heads=text.num_kv_heads,
            intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
        )
        self.cross_span = _cross_span(text, ranks)
        self.has_tower = ranks.is_first_stage or self.cross_span > 0
        if self.has_tower:
            self.vision = vision()
        self.decoder = Decoder(text, self.shard, ranks, dtype=dtype, device=device)
        self._text = text

    @property
    def num_layers(self) -> int:
        return len(self.shard.layers) - len(self.decoder.cross_attention_layers)

    @property
    def num_kv_heads(self) -> int:
        return len(self.shard.kv_heads)

    @property
    def head_dim(self) -> int:
        return self._text.head_dim

    @property
    def hidden_size(self) -> int:
        return self._text.hidden_size

    @property
    def vocab_size(self) -> int:
        return self._text.vocab_size

    def picture_tokens(self, height: int, width: int) -> int:
        return height * width // self.picture_unit**2

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        if self.ranks.is_first_stage:
            return self.decoder.embed_tokens.embed(token_ids)
        return torch.zeros(len(token_ids), self.hidden_size, dtype=self.dtype, device=self.device)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        if self.has_tower:
            embeddings: list[Tensor] = self.vision(pictures)
            return embeddings
        nothing = torch.zeros(1, 1, dtype=self.dtype, device=self.device)
        return [nothing.expand(self.picture_tokens(*picture.shape[:2]), self.hidden_size) for picture in pictures]

    def picture_keys_values(self, embeddings: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return (layer.keys_values(embeddings) for layer in self.decoder.cross_attention_layers)

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden = embeddings if self.ranks.is_first_stage else self.ranks.receive_hidden(embeddings)
        result: Tensor = self.decoder(hidden, positions, attention)
        if not self.ranks.is_last_stage:
            self.ranks.send_hidden(result)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.output.logits(hidden)


def _cross_span(text: DecoderConfig, ranks: Ranks) -> int:
    """See `MultimodalModel.cross_span`. Raises ParallelismError where a stage has room for no picture."""
    if not text.cross_attention_layers:
        return 0
    spans = []
    for stage in range(ranks.pipeline_size):
        layers = stage_layers(text.num_layers, stage, ranks.pipeline_size)
        cross = sum(layer in layers for layer in text.cross_attention_layers)
        spans.append((len(layers) - cross) // max(1, cross))
    if min(spans) == 0:
        raise ParallelismError(
            f"--pipeline_parallel_size {ranks.pipeline_size} leaves a stage with more cross-attention layers than "
            f"self-attention layers."
        )
    return min(spans)
