"""Qwen2.5's decoder: pre-norm layers with grouped-query attention and a gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_worker.models.interface import Attention
from triton_worker.models.layers import GatedMLP, Linear, RMSNorm, empty_parameter
from triton_worker.models.qwen2_5_vl.config import TextConfig
from triton_worker.models.qwen2_5_vl.rope import DecoderRotary, Rotary, apply_rotary


class Decoder(nn.Module):
    def __init__(self, config: TextConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        vocabulary = (config.vocab_size, config.hidden_size)
        self.embed_tokens = empty_parameter(*vocabulary, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, dtype=dtype, device=device) for index in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        # Tied embeddings: the same parameter in both places, and no tensor of its own in the checkpoint.
        self.output = self.embed_tokens if config.tied_embeddings else empty_parameter(
            *vocabulary, dtype=dtype, device=device
        )  # fmt: skip
        self._rotary = DecoderRotary(config.head_dim, config.rope_theta, config.mrope_section, device)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[tokens] -> [tokens, hidden_size]."""
        return functional.embedding(token_ids, self.embed_tokens)

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """[tokens, hidden_size], [3, tokens] -> [tokens, hidden_size] after the final norm."""
        rotary = self._rotary(positions, embeddings.dtype)
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, rotary, attention)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size]."""
        return functional.linear(hidden, self.output)


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, index: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._index = index
        self._head_dim = config.head_dim
        self._turned_heads = config.num_heads + config.num_kv_heads
        self._head_counts = [config.num_heads, config.num_kv_heads]
        all_heads = config.num_heads + 2 * config.num_kv_heads
        hidden, heads = config.hidden_size, config.num_heads * config.head_dim
        self.input_norm = RMSNorm(hidden, config.norm_eps, dtype=dtype, device=device)
        # Rows: all query heads, all key heads, all value heads.
        self.qkv_proj = Linear(hidden, all_heads * config.head_dim, bias=True, dtype=dtype, device=device)
        self.output_proj = Linear(heads, hidden, bias=False, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(hidden, config.norm_eps, dtype=dtype, device=device)
        self.mlp = GatedMLP(hidden, config.intermediate_size, bias=False, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        heads = self.qkv_proj(self.input_norm(hidden)).unflatten(-1, (-1, self._head_dim))
        # Query and key heads lie side by side, so one rotation serves both.
        query, key = torch.split(apply_rotary(heads[:, : self._turned_heads], rotary), self._head_counts, dim=1)
        attended = attention(self._index, query, key, heads[:, self._turned_heads :])
        hidden = hidden + self.output_proj(attended.flatten(1))
        result: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return result
