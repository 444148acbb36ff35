"""Llama 3.2 Vision: a tower that sees a picture in tiles, and Llama 3.1 with cross-attention layers to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from triton_worker.models.layers import empty_parameter
from triton_worker.models.mllama.config import MllamaConfig
from triton_worker.models.mllama.vision import VisionTower
from triton_worker.models.vision_language import VisionLanguageModel
from triton_worker.parallel import Ranks


class Mllama(VisionLanguageModel):
    """A `MultimodalModel`."""

    def __init__(self, config: MllamaConfig, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ParallelismError when the sizes do not divide."""
        text, vision = config.text, config.vision
        super().__init__(
            text,
            lambda: VisionTower(vision, text.hidden_size, dtype=dtype, device=device),
            ranks,
            picture_unit=vision.image_size,
            picture_size=(vision.image_size, vision.max_tiles * vision.image_size),
            dtype=dtype,
            device=device,
        )
        if ranks.is_first_stage:
            # So few that they are whole on each rank.
            self.read_only_tokens = empty_parameter(text.read_only_tokens, text.hidden_size, dtype=dtype, device=device)
        self.config = config

    def picture_tokens(self, height: int, width: int) -> int:
        return super().picture_tokens(height, width) * self.config.vision.tile_tokens

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        first = self.config.text.vocab_size
        embeddings = super().embed_tokens(token_ids.clamp_max(first - 1))
        if not self.ranks.is_first_stage:
            return embeddings
        read_only = functional.embedding((token_ids - first).clamp_min(0), self.read_only_tokens)
        return torch.where((token_ids >= first)[:, None], read_only, embeddings)

    def prompt_positions(
        self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
    ) -> tuple[Tensor, int]:
        """Each token's place in the prompt, in which a picture is one token."""
        found = list(token_ids).count(image_token_id)
        if len(grids) != found:
            raise ValueError(f"the pictures need {len(grids)} image tokens, there are {found}")
        return torch.arange(len(token_ids)).expand(3, -1), len(token_ids)
