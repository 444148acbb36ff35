"""The vision tower of Llama 3.2 Vision: tiles of a picture, first with their neighbours, then again under gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from triton_worker.models.layers import MLP, LayerNorm, Linear, empty_parameter
from triton_worker.models.mllama.config import VisionConfig
from triton_worker.processing.tiles import arrangements

_ALIGNMENT = 8
"""The tokens of a tile are padded to a multiple of it."""


class VisionTower(nn.Module):
    """Turns pictures into embeddings for the decoder's cross-attention layers.

    The model was trained with room for `max_tiles` tiles in every picture. Real tokens attend to what fills it, padding
    to real tokens alone (`build_encoder_attention_mask` in Meta's llama-models): so it is computed, and then dropped.
    """

    def __init__(self, config: VisionConfig, output_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._config = config
        self._arrangements = arrangements(config.max_tiles)
        size, tokens, count = config.hidden_size, config.tile_tokens, len(self._arrangements) + 1
        self.patch_embed = Linear(3 * config.patch_size**2, size, bias=False, dtype=dtype, device=device)
        self.class_token = empty_parameter(size, dtype=dtype, device=device)
        self.position_embed = empty_parameter(tokens, size, dtype=dtype, device=device)
        self.position_gate = empty_parameter(1, dtype=dtype, device=device)
        # Three embeddings of each arrangement of tiles; the first, of no picture, is never read.
        self.tile_position_embed = empty_parameter(count, config.max_tiles * tokens * size, dtype=dtype, device=device)
        self.tile_embed_before = empty_parameter(count, config.max_tiles * size, dtype=dtype, device=device)
        self.tile_gate_before = empty_parameter(1, dtype=dtype, device=device)
        self.tile_embed_after = empty_parameter(count, config.max_tiles * size, dtype=dtype, device=device)
        self.tile_gate_after = empty_parameter(1, dtype=dtype, device=device)
        self.norm_before = LayerNorm(size, 1e-5, dtype=dtype, device=device)
        self.norm_after = LayerNorm(size, 1e-5, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(
            VisionBlock(config, gated=False, dtype=dtype, device=device) for _ in range(config.num_layers)
        )
        self.global_blocks = nn.ModuleList(
            VisionBlock(config, gated=True, dtype=dtype, device=device) for _ in range(config.num_global_layers)
        )
        self.projector = Linear(config.output_size, output_size, bias=True, dtype=dtype, device=device)
        self._mean = torch.tensor(config.image_mean, device=device)
        self._std = torch.tensor(config.image_std, device=device)

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [rows * image_size, columns * image_size, 3] each -> [tiles * tile_tokens, output_size] each.

        Raises ValueError for a picture of another dtype, or that is no arrangement of tiles.
        """
        return [self._encode(picture) for picture in pictures]

    def _encode(self, picture: Tensor) -> Tensor:
        config = self._config
        rows, columns = self._tiles(picture)
        tiles, number = rows * columns, self._arrangements.index((rows, columns)) + 1
        hidden = self._with_positions(self.patch_embed(self._patches(picture, rows, columns)), number)
        hidden = functional.pad(self.norm_before(hidden), (0, 0, 0, -config.tile_tokens % _ALIGNMENT))
        after = self.tile_gate_after.tanh() * self.tile_embed_after[number].view(config.max_tiles, 1, -1)
        after = _real_first(after.expand_as(hidden), tiles, config.tile_tokens)
        hidden, real = _real_first(hidden, tiles, config.tile_tokens), tiles * config.tile_tokens
        intermediate = []
        for index, block in enumerate(self.blocks):
            if index in config.intermediate_layers:
                intermediate.append(hidden[:real])
            hidden = block(hidden, real)
        hidden = self.norm_after(hidden) + after
        for block in self.global_blocks:
            hidden = block(hidden, real)
        # The value of one intermediate layer lies beside that of the next.
        features = torch.cat((hidden[:real], torch.stack(intermediate, dim=-1).flatten(1)), dim=-1)
        embeddings: Tensor = self.projector(features)
        return embeddings

    def _tiles(self, picture: Tensor) -> tuple[int, int]:
        """Rows and columns."""
        size = self._config.image_size
        tiles = (picture.shape[0] // size, picture.shape[1] // size)
        expected = (tiles[0] * size, tiles[1] * size, 3)
        if picture.dtype != torch.uint8 or picture.shape != expected or tiles not in self._arrangements:
            raise ValueError(
                f"a picture is uint8, of up to {self._config.max_tiles} tiles of {size} x {size} pixels, not "
                f"{picture.dtype} {list(picture.shape)}"
            )
        return tiles

    def _patches(self, picture: Tensor, rows: int, columns: int) -> Tensor:
        """Normalised [tiles, patches, 3 * pixels], channels first, in the parameters' dtype."""
        side, patch = self._config.side, self._config.patch_size
        pixels = (picture.to(self._mean.device).to(torch.float32) * (1 / 255) - self._mean) / self._std
        grid = pixels.to(self.patch_embed.weight.dtype).view(rows, side, patch, columns, side, patch, 3)
        return grid.permute(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, side**2, -1)

    def _with_positions(self, patches: Tensor, number: int) -> Tensor:
        """[tiles, patches, size] -> [max_tiles, tile_tokens, size], for the arrangement of this number."""
        most = self._config.max_tiles
        patches = functional.pad(patches, (0, 0, 0, 0, 0, most - len(patches)))
        patches = patches + self.tile_gate_before.tanh() * self.tile_embed_before[number].view(most, 1, -1)
        hidden = torch.cat((self.class_token.expand(most, 1, -1), patches), dim=1)
        gate = self.position_gate.tanh()
        tile_positions = self.tile_position_embed[number].view(hidden.shape)
        return hidden + (1 - gate) * self.position_embed + gate * tile_positions


def _real_first(hidden: Tensor, tiles: int, tokens: int) -> Tensor:
    """[max_tiles, padded tokens, size] -> [all, size]: the tokens of the picture's tiles before all padding."""
    picture, others = hidden[:tiles], hidden[tiles:]
    parts = (picture[:, :tokens], picture[:, tokens:], others)
    return torch.cat([part.flatten(0, 1) for part in parts])


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, *, gated: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = config.hidden_size
        self._num_heads = config.num_heads
        self.attention_norm = LayerNorm(size, config.norm_eps, dtype=dtype, device=device)
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(size, 3 * size, bias=False, dtype=dtype, device=device)
        self.output_proj = Linear(size, size, bias=False, dtype=dtype, device=device)
        self.mlp_norm = LayerNorm(size, config.norm_eps, dtype=dtype, device=device)
        self.mlp = MLP(size, config.intermediate_size, functional.gelu, dtype=dtype, device=device)
        self.attention_gate = empty_parameter(1, dtype=dtype, device=device) if gated else None
        self.mlp_gate = empty_parameter(1, dtype=dtype, device=device) if gated else None

    def forward(self, hidden: Tensor, real: int) -> Tensor:
        """[tokens, hidden_size] -> the same; what follows the first `real` tokens is padding."""
        heads = self.qkv_proj(self.attention_norm(hidden)).unflatten(-1, (3, self._num_heads, -1))
        query, key, value = heads.permute(1, 2, 0, 3)[:, None].unbind()  # [1, heads, tokens, head_dim]
        attended = [scaled_dot_product_attention(query[:, :, :real], key, value)]
        if real < len(hidden):
            attended.append(scaled_dot_product_attention(query[:, :, real:], key[:, :, :real], value[:, :, :real]))
        change = self.output_proj(torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1))
        hidden = hidden + _gated(change, self.attention_gate)
        return hidden + _gated(self.mlp(self.mlp_norm(hidden)), self.mlp_gate)


def _gated(change: Tensor, gate: Tensor | None) -> Tensor:
    return change if gate is None else gate.tanh() * change
