"""Qwen2-VL and Qwen2.5-VL, which differ in the vision tower alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from triton_worker.models.qwen_vl.config import QwenVLConfig, VisionConfig
from triton_worker.models.qwen_vl.positions import prompt_positions
from triton_worker.models.vision_language import VisionLanguageModel
from triton_worker.parallel import Ranks


class QwenVL(VisionLanguageModel):
    """A `MultimodalModel`."""

    def __init__(
        self,
        config: QwenVLConfig[VisionConfig],
        vision: Callable[[], nn.Module],
        ranks: Ranks,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`vision` makes the tower. Raises ParallelismError when the sizes do not divide."""
        unit = config.vision.picture_unit
        super().__init__(config.text, vision, ranks, picture_unit=unit, dtype=dtype, device=device)
        self.config = config

    def prompt_positions(
        self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
    ) -> tuple[Tensor, int]:
        return prompt_positions(token_ids, grids, image_token_id)
