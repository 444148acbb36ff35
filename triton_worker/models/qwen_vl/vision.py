"""What the vision towers of both families have in common: patches, attention and the merger behind the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_worker.models import operations
from triton_worker.models.decoder.rope import Rotary
from triton_worker.models.layers import Linear
from triton_worker.models.qwen_vl.config import VisionConfig
from triton_worker.models.qwen_vl.positions import vision_rotary
from triton_worker.models.varlen_attention import Segments, varlen_attention
from triton_worker.transfer import send


class PatchEmbedding(Linear):
    """Pictures to vectors of their patches. A unit is the square of merge_size x merge_size patches."""

    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        values = 3 * config.temporal_patch_size * config.patch_size**2
        super().__init__(values, config.hidden_size, bias=False, dtype=dtype, device=device)
        self._config = config
        self._mean = torch.tensor(config.image_mean, device=device)
        self._std = torch.tensor(config.image_std, device=device)

    def forward(self, pictures: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """uint8 [height, width, 3] each -> [units of all, patches of a unit, hidden_size], in reading order."""
        return super().forward(torch.cat([self._patches(picture) for picture in pictures]))

    def _patches(self, picture: Tensor) -> Tensor:
        """Normalised [units, patches of a unit, 3 * frames * pixels], channels first, in the parameters' dtype."""
        config = self._config
        side, merge = config.patch_size, config.merge_size
        pixels = (picture.to(self._mean.device).to(torch.float32) * (1 / 255) - self._mean) / self._std
        grid = (picture.shape[0] // (merge * side), merge, side, picture.shape[1] // (merge * side), merge, side, 3)
        pixels = pixels.to(self.weight.dtype).view(grid).permute(0, 3, 1, 4, 6, 2, 5)
        # A still picture fills every frame that the patch embedding takes in.
        frames = pixels.unsqueeze(5).expand(-1, -1, -1, -1, -1, config.temporal_patch_size, -1, -1)
        return frames.reshape(grid[0] * grid[3], merge**2, -1)


def unit_grid(picture: Tensor, config: VisionConfig) -> tuple[int, int]:
    """Rows and columns of units.

    Raises ValueError for a picture of another dtype or shape, or whose sides are no multiples of a unit.
    """
    side = config.picture_unit
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"a picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
    if picture.shape[0] % side or picture.shape[1] % side:
        raise ValueError(f"a picture's sides are multiples of {side} pixels, not {list(picture.shape[:2])}")
    return picture.shape[0] // side, picture.shape[1] // side


def patch_rotary(unit_rows: Tensor, unit_columns: Tensor, merge: int, frequencies: Tensor) -> Rotary:
    """Tables for every patch of the units at these rows and columns, each int64 [units] on the CPU."""
    within = torch.arange(merge)
    rows = (unit_rows * merge).unsqueeze(1) + within.repeat_interleave(merge)
    columns = (unit_columns * merge).unsqueeze(1) + within.repeat(merge)
    places = send(torch.stack((rows.flatten(), columns.flatten())), frequencies.device)
    return vision_rotary(places[0], places[1], frequencies)


class VisionBlock(nn.Module):
    """A pre-norm layer with the norms and the MLP of its family."""

    def __init__(
        self,
        config: VisionConfig,
        norms: tuple[nn.Module, nn.Module],
        mlp: nn.Module,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self._num_heads = config.num_heads
        self.attention_norm, self.mlp_norm = norms
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(size, 3 * size, bias=True, dtype=dtype, device=device)
        self.output_proj = Linear(size, size, bias=True, dtype=dtype, device=device)
        self.mlp = mlp

    def forward(self, hidden: Tensor, rotary: Rotary, segments: Segments) -> Tensor:
        """[patches, hidden_size] -> the same; patches attend within their segment."""
        count = self._num_heads
        heads = self.qkv_proj(self.attention_norm(hidden)).unflatten(-1, (3 * count, -1))
        query, key = operations.rotate(heads[:, : 2 * count], rotary).chunk(2, dim=1)
        attended = varlen_attention(query, key, heads[:, 2 * count :], segments)
        hidden = self.output_proj(attended.flatten(1), residual=hidden)
        result: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return result


class Merger(nn.Module):
    """Makes one embedding of the decoder's size from the patches of a unit."""

    def __init__(
        self, config: VisionConfig, norm: nn.Module, output_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._unit_size = config.unit_size
        self.norm = norm
        self.up_proj = Linear(self._unit_size, self._unit_size, bias=True, dtype=dtype, device=device)
        self.down_proj = Linear(self._unit_size, output_size, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """[patches, hidden_size] -> [units, output_size]."""
        units = self.norm(hidden).view(-1, self._unit_size)
        embeddings: Tensor = self.down_proj(functional.gelu(self.up_proj(units)))
        return embeddings
