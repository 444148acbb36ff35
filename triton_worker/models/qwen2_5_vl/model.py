"""Qwen2.5-VL: a vision tower in front of a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triton_worker.models.interface import Attention
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.models.qwen2_5_vl.decoder import Decoder
from triton_worker.models.qwen2_5_vl.rope import prompt_positions
from triton_worker.models.qwen2_5_vl.vision import VisionTower


class Qwen25VL(nn.Module):
    """A `MultimodalModel`. Its parameters are uninitialised until a checkpoint fills them."""

    def __init__(self, config: Qwen25VLConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision, config.text.hidden_size, dtype=dtype, device=device)
        self.decoder = Decoder(config.text, dtype=dtype, device=device)

    @property
    def num_layers(self) -> int:
        return self.config.text.num_layers

    @property
    def num_kv_heads(self) -> int:
        return self.config.text.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.config.text.head_dim

    @property
    def hidden_size(self) -> int:
        return self.config.text.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.config.text.vocab_size

    @property
    def picture_unit(self) -> int:
        return self.config.vision.picture_unit

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.device

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        return self.decoder.embed(token_ids)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        embeddings: list[Tensor] = self.vision(pictures)
        return embeddings

    def prompt_positions(
        self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
    ) -> tuple[Tensor, int]:
        return prompt_positions(token_ids, grids, image_token_id)

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden: Tensor = self.decoder(embeddings, positions, attention)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)
