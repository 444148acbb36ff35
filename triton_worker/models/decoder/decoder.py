"""Pre-norm layers with grouped-query attention and a gated MLP, between an embedding and an output matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.cross_attention import CrossAttentionLayer
from triton_worker.models.decoder.rope import DecoderRotary, Rotary
from triton_worker.models.interface import Attention
from triton_worker.models.layers import GatedMLP, Linear, ParallelVocabulary, RMSNorm, RowParallelLinear
from triton_worker.parallel import DecoderShard, Ranks


class Decoder(nn.Module):
    """The layers of this rank's stage; the first one has the embedding too, the last one norm and output."""

    def __init__(
        self, config: DecoderConfig, shard: DecoderShard, ranks: Ranks, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        if ranks.is_first_stage:
            self.embed_tokens = ParallelVocabulary(
                config.vocab_size, shard.vocabulary, hidden, ranks, dtype=dtype, device=device
            )
        kinds = [
            CrossAttentionLayer if index in config.cross_attention_layers else DecoderLayer for index in shard.layers
        ]
        # Attention knows layers by their place among those of their kind in this stage.
        self.layers = nn.ModuleList(
            kind(config, kinds[:place].count(kind), shard, ranks, dtype=dtype, device=device)
            for place, kind in enumerate(kinds)
        )
        if ranks.is_last_stage:
            self.norm = RMSNorm(hidden, config.norm_eps, dtype=dtype, device=device)
            # Tied embeddings: the same parameter in both places, where both are on this rank.
            tied = config.tied_embeddings and ranks.is_first_stage
            self.output = self.embed_tokens if tied else ParallelVocabulary(
                config.vocab_size, shard.vocabulary, hidden, ranks, dtype=dtype, device=device
            )  # fmt: skip
        self._is_last_stage = ranks.is_last_stage
        self._rotary = DecoderRotary(
            config.head_dim, config.rope_theta, config.rope_sections, device, config.rope_scaling
        )

    @property
    def cross_attention_layers(self) -> list[CrossAttentionLayer]:
        """Those of this stage."""
        return [layer for layer in self.layers if isinstance(layer, CrossAttentionLayer)]

    def forward(self, hidden: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """[tokens, hidden_size], [3, tokens] -> [tokens, hidden_size], after the final norm on the last stage."""
        rotary = self._rotary(positions, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rotary, attention)
        return self.norm(hidden) if self._is_last_stage else hidden


class DecoderLayer(nn.Module):
    def __init__(
        self,
        config: DecoderConfig,
        index: int,
        shard: DecoderShard,
        ranks: Ranks,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._index = index
        self._head_dim = config.head_dim
        query_heads, kv_heads = len(shard.query_heads), len(shard.kv_heads)
        hidden, rows = config.hidden_size, (query_heads + 2 * kv_heads) * config.head_dim
        self.input_norm = RMSNorm(hidden, config.norm_eps, dtype=dtype, device=device)
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(hidden, rows, bias=config.qkv_bias, dtype=dtype, device=device)
        self.output_proj = RowParallelLinear(
            query_heads * config.head_dim, hidden, ranks, bias=False, dtype=dtype, device=device
        )
        self.mlp_norm = RMSNorm(hidden, config.norm_eps, dtype=dtype, device=device)
        self.mlp = GatedMLP(hidden, len(shard.intermediate), ranks, bias=False, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        heads = self.qkv_proj(hidden, norm=self.input_norm).unflatten(-1, (-1, self._head_dim))
        attended = attention(self._index, heads, rotary).flatten(1)
        hidden = self.output_proj(attended, residual=hidden)
        result: Tensor = self.mlp(hidden, norm=self.mlp_norm, residual=hidden)
        return result
