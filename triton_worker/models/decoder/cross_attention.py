"""A layer that lets text attend to pictures, gated so that a model without pictures is as it was before it had one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.rope import Rotary
from triton_worker.models.interface import Attention
from triton_worker.models.layers import GatedMLP, Linear, RMSNorm, RowParallelLinear, empty_parameter
from triton_worker.parallel import DecoderShard, Ranks


class CrossAttentionLayer(nn.Module):
    """As in Flamingo (arXiv:2204.14198) and Llama 3.2. A token that sees no picture passes unchanged."""

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
        hidden, eps = config.hidden_size, config.norm_eps
        query_rows, key_rows = (len(heads) * config.head_dim for heads in (shard.query_heads, shard.kv_heads))
        self.input_norm = RMSNorm(hidden, eps, dtype=dtype, device=device)
        self.q_proj = Linear(hidden, query_rows, bias=False, dtype=dtype, device=device)
        # Rows: all key heads, all value heads.
        self.kv_proj = Linear(hidden, 2 * key_rows, bias=False, dtype=dtype, device=device)
        self.q_norm = RMSNorm(config.head_dim, eps, dtype=dtype, device=device)
        self.k_norm = RMSNorm(config.head_dim, eps, dtype=dtype, device=device)
        self.output_proj = RowParallelLinear(query_rows, hidden, ranks, bias=False, dtype=dtype, device=device)
        self.attention_gate = empty_parameter(1, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(hidden, eps, dtype=dtype, device=device)
        self.mlp = GatedMLP(hidden, len(shard.intermediate), ranks, bias=False, dtype=dtype, device=device)
        self.mlp_gate = empty_parameter(1, dtype=dtype, device=device)

    def keys_values(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """What a picture's embeddings [n, hidden_size] are attended to by: [n, kv_heads, head_dim] each."""
        key, value = self.kv_proj(embeddings).unflatten(-1, (2, -1, self._head_dim)).unbind(1)
        return self.k_norm(key), value

    def forward(self, hidden: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        sees = attention.sees_pictures
        if sees is None:
            return hidden
        query = self.q_norm(self.q_proj(hidden, norm=self.input_norm).unflatten(-1, (-1, self._head_dim)))
        attended = attention.to_pictures(self._index, query).flatten(1)
        hidden = hidden + self.attention_gate.tanh() * self.output_proj(attended)
        change = self.mlp_gate.tanh() * self.mlp(hidden, norm=self.mlp_norm)
        return torch.where(sees, hidden + change, hidden)
