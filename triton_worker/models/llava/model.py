"""LLaVA-1.5: CLIP's vision tower in front of Llama 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triton_worker.models.llava.config import LlavaConfig
from triton_worker.models.llava.vision import VisionTower
from triton_worker.models.vision_language import VisionLanguageModel
from triton_worker.parallel import Ranks


class Llava(VisionLanguageModel):
    """A `MultimodalModel`."""

    def __init__(self, config: LlavaConfig, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ParallelismError when the sizes do not divide."""
        vision = config.vision
        super().__init__(
            config.text,
            lambda: VisionTower(vision, config.text.hidden_size, dtype=dtype, device=device),
            ranks,
            picture_unit=vision.patch_size,
            picture_size=(vision.image_size, vision.image_size),
            dtype=dtype,
            device=device,
        )
        self.config = config

    def prompt_positions(
        self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
    ) -> tuple[Tensor, int]:
        """Each token's place in the prompt; a picture's embeddings are tokens like others."""
        needed, found = sum(rows * columns for rows, columns in grids), list(token_ids).count(image_token_id)
        if needed != found:
            raise ValueError(f"the pictures need {needed} image tokens, there are {found}")
        return torch.arange(len(token_ids)).expand(3, -1), len(token_ids)
