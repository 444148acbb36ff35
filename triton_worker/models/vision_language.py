"""A vision tower in front of a decoder, which is what every family here is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.decoder import Decoder
from triton_worker.models.interface import Attention
from triton_worker.parallel import Ranks, shard_decoder


class VisionLanguageModel(nn.Module):
    """A `MultimodalModel` but for `prompt_positions`. Its parameters are uninitialised until a checkpoint fills them.

    The decoder is spread over the ranks; the vision tower is whole on each rank of the first stage, so that a picture
    is encoded there without any exchange.
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
        if ranks.is_first_stage:
            self.vision = vision()
        self.decoder = Decoder(text, self.shard, ranks, dtype=dtype, device=device)
        self._text = text

    @property
    def num_layers(self) -> int:
        return len(self.shard.layers)

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

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        if self.ranks.is_first_stage:
            return self.decoder.embed_tokens.embed(token_ids)
        return torch.zeros(len(token_ids), self.hidden_size, dtype=self.dtype, device=self.device)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        if self.ranks.is_first_stage:
            embeddings: list[Tensor] = self.vision(pictures)
            return embeddings
        nothing = torch.zeros(1, 1, dtype=self.dtype, device=self.device)
        units = [picture.shape[0] * picture.shape[1] // self.picture_unit**2 for picture in pictures]
        return [nothing.expand(count, self.hidden_size) for count in units]

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden = embeddings if self.ranks.is_first_stage else self.ranks.receive_hidden(embeddings)
        result: Tensor = self.decoder(hidden, positions, attention)
        if not self.ranks.is_last_stage:
            self.ranks.send_hidden(result)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.output.logits(hidden)
