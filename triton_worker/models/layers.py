"""Layers shared by the model families. Parameters start uninitialised: a checkpoint fills every one of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter without gradient whose values are yet to be loaded."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """[..., in_features] -> [..., out_features]."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = empty_parameter(out_features, in_features, dtype=dtype, device=device)
        self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Divides each vector by its root mean square, then scales it by a learnt weight."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self._shape, self._eps = (size,), eps

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.rms_norm(inputs, self._shape, self.weight, self._eps)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), with gate and up as the two halves of one product's rows."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias=bias, dtype=dtype, device=device)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        product: Tensor = self.down_proj(functional.silu(gate) * up)
        return product
