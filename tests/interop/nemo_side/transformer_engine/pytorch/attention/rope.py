from typing import Any

import torch
from torch import Tensor


def apply_rotary_pos_emb(
    values: Tensor, freqs: Tensor, tensor_format: str = "sbhd", interleaved: bool = False, **more: Any
) -> Tensor:
    """Rotates [S, B, heads, head_dim] in halves by the angles [S, 1, 1, head_dim]."""
    if tensor_format != "sbhd" or interleaved:
        raise NotImplementedError("only what NeMo's language models ask for")
    angles = freqs[: len(values)]
    first, second = values.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (values * angles.cos() + rotated * angles.sin()).to(values.dtype)
