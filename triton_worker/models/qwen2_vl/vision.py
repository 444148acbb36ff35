"""Qwen2-VL's vision tower: patches, blocks with attention over the whole picture, and the merger (arXiv:2409.12191)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.rope import inverse_frequencies
from triton_worker.models.layers import MLP, LayerNorm, quick_gelu
from triton_worker.models.qwen_vl.config import VisionConfig
from triton_worker.models.qwen_vl.vision import Merger, PatchEmbedding, VisionBlock, patch_rotary, unit_grid
from triton_worker.models.varlen_attention import Segments


class VisionTower(nn.Module):
    """Turns pictures into embeddings of the decoder."""

    def __init__(self, config: VisionConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._config = config
        self.patch_embed = PatchEmbedding(config, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(_block(config, dtype, device) for _ in range(config.num_layers))
        norm = LayerNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.merger = Merger(config, norm, output_size, dtype=dtype, device=device)
        self._frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta, device)

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [height, width, 3] each -> [height / 28 * width / 28, output_size] each, in reading order.

        Raises ValueError for a picture of another dtype or shape, or whose sides are not multiples of 28.
        """
        if not pictures:
            return []
        merge = self._config.merge_size
        grids = [unit_grid(picture, self._config) for picture in pictures]
        rows = torch.cat([torch.arange(height).repeat_interleave(width) for height, width in grids])
        columns = torch.cat([torch.arange(width).repeat(height) for height, width in grids])
        rotary = patch_rotary(rows, columns, merge, self._frequencies)
        units = [height * width for height, width in grids]
        hidden = self.patch_embed(pictures).flatten(0, 1)
        segments = Segments.of([count * merge**2 for count in units], hidden.device)
        for block in self.blocks:
            hidden = block(hidden, rotary, segments)
        return list(torch.split(self.merger(hidden), units))


def _block(config: VisionConfig, dtype: torch.dtype, device: torch.device) -> VisionBlock:
    size = config.hidden_size
    first, second = (LayerNorm(size, config.norm_eps, dtype=dtype, device=device) for _ in range(2))
    mlp = MLP(size, config.intermediate_size, quick_gelu, dtype=dtype, device=device)
    return VisionBlock(config, (first, second), mlp, dtype=dtype, device=device)
