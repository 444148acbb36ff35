from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..modules import Stateful


class DotProductAttention(Stateful):
    def __init__(self, *sizes: Any, softmax_scale: float | None = None, **more: Any) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        qkv_format: str = "sbhd",
        cu_seqlens_q: Tensor | None = None,
        attn_mask_type: str = "causal",
        core_attention_bias: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Heads are the last but one dimension; with ``thd`` the sequences lie one behind the other."""
        groups = query.shape[-2] // key.shape[-2]
        key, value = key.repeat_interleave(groups, -2), value.repeat_interleave(groups, -2)
        causal = "causal" in attn_mask_type
        if qkv_format == "thd":
            assert cu_seqlens_q is not None
            lengths = cu_seqlens_q.diff().tolist()
            sequences = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
            return torch.cat([self._attend(*(part[:, None] for part in parts), causal) for parts in sequences])[:, 0]
        return self._attend(query, key, value, causal, core_attention_bias)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, bias: Tensor | None = None) -> Tensor:
        """From [S, B, heads, head_dim] to [S, B, heads * head_dim]."""
        heads_first = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        attended = scaled_dot_product_attention(
            *heads_first, attn_mask=bias, is_causal=causal, scale=self.softmax_scale
        )
        return attended.permute(2, 0, 1, 3).flatten(2)
