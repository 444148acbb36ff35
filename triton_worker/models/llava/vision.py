"""LLaVA-1.5's vision side (arXiv:2310.03744): CLIP's tower up to one of its last layers, and the projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_worker.models.layers import MLP, LayerNorm, Linear, empty_parameter, quick_gelu
from triton_worker.models.llava.config import ClipConfig
from triton_worker.models.varlen_attention import Segments, varlen_attention


class VisionTower(nn.Module):
    """Turns pictures into embeddings of the decoder, one for each patch."""

    def __init__(self, config: ClipConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._config = config
        size = config.hidden_size
        self.patch_embed = Linear(3 * config.patch_size**2, size, bias=False, dtype=dtype, device=device)
        self.class_token = Vectors(1, size, dtype=dtype, device=device)
        self.position_embed = Vectors(config.side**2 + 1, size, dtype=dtype, device=device)
        self.pre_norm = LayerNorm(size, config.norm_eps, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(ClipBlock(config, dtype=dtype, device=device) for _ in range(config.layers_used))
        self.projector = Projector(size, output_size, dtype=dtype, device=device)
        self._mean = torch.tensor(config.image_mean, device=device)
        self._std = torch.tensor(config.image_std, device=device)

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [image_size, image_size, 3] each -> [patches, output_size] each, in reading order.

        Raises ValueError for a picture of another dtype or shape.
        """
        if not pictures:
            return []
        patches = self.patch_embed(torch.stack([self._patches(picture) for picture in pictures]))
        first = self.class_token.weight.expand(len(pictures), -1, -1)
        hidden = self.pre_norm(torch.cat((first, patches), dim=1) + self.position_embed.weight)
        segments = Segments.of([hidden.shape[1]] * len(pictures), hidden.device)
        hidden = hidden.flatten(0, 1)
        for block in self.blocks:
            hidden = block(hidden, segments)
        embeddings = self.projector(hidden.unflatten(0, (len(pictures), -1))[:, 1:])
        return list(embeddings.unbind())

    def _patches(self, picture: Tensor) -> Tensor:
        """Normalised [patches, 3 * pixels], channels first, in the parameters' dtype."""
        side, patch = self._config.image_size, self._config.patch_size
        if picture.dtype != torch.uint8 or picture.shape != (side, side, 3):
            raise ValueError(f"a picture is uint8 {[side, side, 3]}, not {picture.dtype} {list(picture.shape)}")
        pixels = (picture.to(self._mean.device).to(torch.float32) * (1 / 255) - self._mean) / self._std
        grid = pixels.to(self.patch_embed.weight.dtype).view(side // patch, patch, side // patch, patch, 3)
        return grid.permute(0, 2, 4, 1, 3).reshape((side // patch) ** 2, -1)


class Vectors(nn.Module):
    """Learnt vectors, [count, size]."""

    def __init__(self, count: int, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = empty_parameter(count, size, dtype=dtype, device=device)


class ClipBlock(nn.Module):
    def __init__(self, config: ClipConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = config.hidden_size
        self._num_heads = config.num_heads
        self.attention_norm = LayerNorm(size, config.norm_eps, dtype=dtype, device=device)
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(size, 3 * size, bias=True, dtype=dtype, device=device)
        self.output_proj = Linear(size, size, bias=True, dtype=dtype, device=device)
        self.mlp_norm = LayerNorm(size, config.norm_eps, dtype=dtype, device=device)
        self.mlp = MLP(size, config.intermediate_size, quick_gelu, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, segments: Segments) -> Tensor:
        """[patches, hidden_size] -> the same; patches attend within their segment."""
        heads = self.qkv_proj(self.attention_norm(hidden)).unflatten(-1, (3 * self._num_heads, -1))
        query, key, value = heads.chunk(3, dim=1)
        attended = varlen_attention(query, key, value, segments)
        hidden = self.output_proj(attended.flatten(1), residual=hidden)
        result: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return result


class Projector(nn.Module):
    """Makes embeddings of the decoder's size: down(gelu(up(x)))."""

    def __init__(self, input_size: int, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.up_proj = Linear(input_size, output_size, bias=True, dtype=dtype, device=device)
        self.down_proj = Linear(output_size, output_size, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.gelu(self.up_proj(hidden)))
        return result
