"""Qwen2.5-VL's vision tower: patches, blocks with window or full attention, and the merger (arXiv:2502.13923)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.rope import inverse_frequencies
from triton_worker.models.layers import GatedMLP, RMSNorm
from triton_worker.models.qwen2_5_vl.config import VisionConfig
from triton_worker.models.qwen_vl.vision import Merger, PatchEmbedding, VisionBlock, patch_rotary, unit_grid
from triton_worker.models.varlen_attention import Segments
from triton_worker.transfer import send


class VisionTower(nn.Module):
    """Turns pictures into embeddings of the decoder.

    A unit is the square of merge_size x merge_size patches that becomes one embedding. The blocks see the units of each
    picture window by window, and the result is put back in reading order.
    """

    def __init__(self, config: VisionConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._config = config
        self.patch_embed = PatchEmbedding(config, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(_block(config, dtype, device) for _ in range(config.num_layers))
        norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.merger = Merger(config, norm, output_size, dtype=dtype, device=device)
        self._frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta, device)

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [height, width, 3] each -> [height / 28 * width / 28, output_size] each, in reading order.

        Raises ValueError for a picture of another dtype or shape, or whose sides are not multiples of 28.
        """
        if not pictures:
            return []
        layouts = [self._layout(picture) for picture in pictures]
        patches = self.patch_embed(pictures)
        order = send(_joined([layout.order for layout in layouts]), patches.device)
        hidden = patches[order].flatten(0, 1)
        rows = torch.cat([layout.order // layout.columns for layout in layouts])
        columns = torch.cat([layout.order % layout.columns for layout in layouts])
        rotary = patch_rotary(rows, columns, self._config.merge_size, self._frequencies)
        windows = Segments.of([length for layout in layouts for length in layout.window_lengths], patches.device)
        wholes = Segments.of([sum(layout.window_lengths) for layout in layouts], patches.device)
        for index, block in enumerate(self.blocks):
            full = index in self._config.full_attention_layers
            hidden = block(hidden, rotary, wholes if full else windows)
        merged = self.merger(hidden)
        in_reading_order = torch.empty_like(merged)
        in_reading_order[order] = merged
        return list(torch.split(in_reading_order, [len(layout.order) for layout in layouts]))

    def _layout(self, picture: Tensor) -> WindowLayout:
        rows, columns = unit_grid(picture, self._config)
        return window_layout(rows, columns, self._config.window_side, self._config.merge_size**2)


def _block(config: VisionConfig, dtype: torch.dtype, device: torch.device) -> VisionBlock:
    size = config.hidden_size
    first, second = (RMSNorm(size, config.norm_eps, dtype=dtype, device=device) for _ in range(2))
    mlp = GatedMLP(size, config.intermediate_size, bias=True, dtype=dtype, device=device)
    return VisionBlock(config, (first, second), mlp, dtype=dtype, device=device)


@dataclass(frozen=True)
class WindowLayout:
    """How a picture's units are arranged for window attention.

    columns: units in a row of the picture.
    order: int64 [units], which unit of the picture stands at each place.
    window_lengths: patches in each window, in that order.
    """

    columns: int
    order: Tensor
    window_lengths: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def window_layout(rows: int, columns: int, side: int, patches_per_unit: int) -> WindowLayout:
    """Cut a picture of rows x columns units into windows of at most side x side.

    Windows of the same size stand together (whole ones, right edge, bottom edge, corner), because varlen_attention
    batches neighbours of equal length. Which comes first changes no result: positions enter only through the rotary.
    """
    row, column = torch.arange(rows).unsqueeze(1), torch.arange(columns).unsqueeze(0)
    cut_below = (row // side == rows // side).long()
    cut_right = (column // side == columns // side).long()
    windows_across = columns // side + 1
    window = (row // side) * windows_across + column // side
    kind = 2 * cut_below + cut_right
    windows = windows_across * (rows // side + 1)
    place = (kind * windows + window).expand(rows, columns).flatten()
    order = place.argsort(stable=True)
    units = place.bincount()
    return WindowLayout(columns, order, tuple((units[units > 0] * patches_per_unit).tolist()))


def _joined(orders: Sequence[Tensor]) -> Tensor:
    """The pictures' orders as one, over the concatenation of their units."""
    starts = [0]
    for order in orders:
        starts.append(starts[-1] + len(order))
    return torch.cat([order + start for order, start in zip(orders, starts, strict=False)])
