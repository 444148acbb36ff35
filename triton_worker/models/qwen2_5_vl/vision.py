"""Qwen2.5-VL's vision tower: patches, blocks with window or full attention, and the merger (arXiv:2502.13923)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_worker.models.layers import GatedMLP, Linear, RMSNorm
from triton_worker.models.qwen2_5_vl.config import VisionConfig
from triton_worker.models.qwen2_5_vl.rope import Rotary, apply_rotary, inverse_frequencies, vision_rotary
from triton_worker.models.varlen_attention import varlen_attention


class VisionTower(nn.Module):
    """Turns pictures into embeddings of the decoder.

    A unit is the square of merge_size x merge_size patches that becomes one embedding. The blocks see the units of each
    picture window by window, and the result is put back in reading order.
    """

    def __init__(self, config: VisionConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._config = config
        patch_values = 3 * config.temporal_patch_size * config.patch_size**2
        self.patch_embed = Linear(patch_values, config.hidden_size, bias=False, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(VisionBlock(config, dtype=dtype, device=device) for _ in range(config.num_layers))
        self.merger = Merger(config, output_size, dtype=dtype, device=device)
        self._mean = torch.tensor(config.image_mean, device=device)
        self._std = torch.tensor(config.image_std, device=device)
        self._frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta, device)

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [height, width, 3] each -> [height / 28 * width / 28, output_size] each, in reading order.

        Raises ValueError for a picture of another dtype or shape, or whose sides are not multiples of 28.
        """
        if not pictures:
            return []
        layouts = [self._layout(picture) for picture in pictures]
        patches = torch.cat([self._patches(picture) for picture in pictures])
        order = _joined([layout.order for layout in layouts]).to(patches.device)
        hidden = self.patch_embed(patches)[order].flatten(0, 1)
        rotary = self._rotary(layouts, patches.device)
        windows = [length for layout in layouts for length in layout.window_lengths]
        wholes = [sum(layout.window_lengths) for layout in layouts]
        for index, block in enumerate(self.blocks):
            full = index in self._config.full_attention_layers
            hidden = block(hidden, rotary, wholes if full else windows)
        merged = self.merger(hidden)
        in_reading_order = torch.empty_like(merged)
        in_reading_order[order] = merged
        return list(torch.split(in_reading_order, [len(layout.order) for layout in layouts]))

    def _layout(self, picture: Tensor) -> WindowLayout:
        side = self._config.picture_unit
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"a picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
        if picture.shape[0] % side or picture.shape[1] % side:
            raise ValueError(f"a picture's sides are multiples of {side} pixels, not {list(picture.shape[:2])}")
        rows, columns = picture.shape[0] // side, picture.shape[1] // side
        return window_layout(rows, columns, self._config.window_side, self._config.merge_size**2)

    def _patches(self, picture: Tensor) -> Tensor:
        """Normalised [units, patches of a unit, 3 * frames * pixels], channels first, in the parameters' dtype."""
        config = self._config
        side, merge = config.patch_size, config.merge_size
        pixels = (picture.to(self._mean.device).to(torch.float32) * (1 / 255) - self._mean) / self._std
        grid = (picture.shape[0] // (merge * side), merge, side, picture.shape[1] // (merge * side), merge, side, 3)
        pixels = pixels.to(self.patch_embed.weight.dtype).view(grid).permute(0, 3, 1, 4, 6, 2, 5)
        # A still picture fills every frame that the patch embedding takes in.
        frames = pixels.unsqueeze(5).expand(-1, -1, -1, -1, -1, config.temporal_patch_size, -1, -1)
        return frames.reshape(grid[0] * grid[3], merge**2, -1)

    def _rotary(self, layouts: Sequence[WindowLayout], device: torch.device) -> Rotary:
        """Tables for every patch at its row and column in its own picture."""
        merge = self._config.merge_size
        within = torch.arange(merge)
        rows = torch.cat([layout.order // layout.columns for layout in layouts]) * merge
        columns = torch.cat([layout.order % layout.columns for layout in layouts]) * merge
        patch_rows = rows.unsqueeze(1) + within.repeat_interleave(merge)
        patch_columns = columns.unsqueeze(1) + within.repeat(merge)
        places = torch.stack((patch_rows.flatten(), patch_columns.flatten())).to(device)
        return vision_rotary(places[0], places[1], self._frequencies)


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = config.hidden_size
        self._num_heads = config.num_heads
        self.attention_norm = RMSNorm(size, config.norm_eps, dtype=dtype, device=device)
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(size, 3 * size, bias=True, dtype=dtype, device=device)
        self.output_proj = Linear(size, size, bias=True, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(size, config.norm_eps, dtype=dtype, device=device)
        self.mlp = GatedMLP(size, config.intermediate_size, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, rotary: Rotary, segment_lengths: Sequence[int]) -> Tensor:
        """[patches, hidden_size] -> the same; patches attend within their segment."""
        count = self._num_heads
        heads = self.qkv_proj(self.attention_norm(hidden)).unflatten(-1, (3 * count, -1))
        query, key = apply_rotary(heads[:, : 2 * count], rotary).chunk(2, dim=1)
        attended = varlen_attention(query, key, heads[:, 2 * count :], segment_lengths)
        hidden = hidden + self.output_proj(attended.flatten(1))
        result: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return result


class Merger(nn.Module):
    """Makes one embedding of the decoder's size from the patches of a unit."""

    def __init__(self, config: VisionConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._unit_size = config.hidden_size * config.merge_size**2
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.up_proj = Linear(self._unit_size, self._unit_size, bias=True, dtype=dtype, device=device)
        self.down_proj = Linear(self._unit_size, output_size, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """[patches, hidden_size] -> [units, output_size]."""
        units = self.norm(hidden).view(-1, self._unit_size)
        embeddings: Tensor = self.down_proj(functional.gelu(self.up_proj(units)))
        return embeddings


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
