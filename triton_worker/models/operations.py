"""Norms, products and activations: plain PyTorch, and on a GPU our own kernels where those are quicker.

A norm in front of a product and the sum behind it are said together with it: how they are done depends on the device.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from triton_worker.models.decoder.rope import Rotary, apply_rotary


class Norm(NamedTuple):
    """A root-mean-square norm: weight [size]."""

    weight: Tensor
    eps: float


def rms_norm(inputs: Tensor, norm: Norm) -> Tensor:
    """Each vector of [..., size] divided by its root mean square, then scaled."""
    if inputs.is_cuda and inputs.dim() == 2:
        from triton_worker.kernels import elementwise

        return elementwise.rms_norm(inputs, norm.weight, norm.eps)
    return functional.rms_norm(inputs, norm.weight.shape, norm.weight, norm.eps)


def linear(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The sum of residual, norm(inputs) @ weight.T and bias: [..., in_features] -> [..., out_features].

    The residual is used up: the result may take its place.
    """
    if _is_small_batch(inputs):
        from triton_worker.kernels.linear import small_batch_linear

        return small_batch_linear(inputs, weight, bias, norm=norm, residual=residual)
    if norm is not None:
        inputs = rms_norm(inputs, norm)
    if residual is not None and bias is None:
        return residual.addmm_(inputs, weight.t())
    product = functional.linear(inputs, weight, bias)
    return product if residual is None else residual.add_(product)


def gated_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Norm | None = None) -> Tensor:
    """silu(gate) * up, where gate and up are the halves of norm(inputs) @ weight.T + bias."""
    if bias is None and _is_small_batch(inputs):
        from triton_worker.kernels.linear import small_batch_gated_linear

        return small_batch_gated_linear(inputs, weight, norm=norm)
    gate_up = linear(inputs, weight, bias, norm=norm)
    if gate_up.is_cuda and gate_up.dim() == 2:
        from triton_worker.kernels import elementwise

        return elementwise.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """[tokens, heads, head_dim] turned by each token's tables."""
    if heads.is_cuda:
        from triton_worker.kernels import elementwise

        return elementwise.rotate(heads, rotary)
    return apply_rotary(heads, rotary)


def _is_small_batch(inputs: Tensor) -> bool:
    """Whether a product of so few rows takes as long as reading the weight."""
    # Triton-lang, which the kernels are written in, comes with PyTorch for GPUs alone.
    if not inputs.is_cuda or inputs.dim() != 2:
        return False
    from triton_worker.kernels.linear import MOST_ROWS

    return len(inputs) <= MOST_ROWS
