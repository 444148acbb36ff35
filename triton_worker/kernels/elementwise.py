"""Norms, activations and rotations between the matrix products, each in one pass over its inputs.

They compute in float32 and round where PyTorch's own operators do, so that results are those of the plain model.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_worker.kernels.overlap import can_overlap, launch_options, start_next, wait_for_inputs
from triton_worker.kernels.sizes import ceil_div, next_power_of_two
from triton_worker.models.decoder.rope import Rotary


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[tokens, size] divided by the root mean square of each row, times weight [size]."""
    tokens, size = hidden.shape
    normed = torch.empty_like(hidden)
    overlap = can_overlap(hidden.device)
    block = next_power_of_two(size)
    # Of many, a program takes as many as its registers hold, so that enough loads are under way.
    rows = 1 if tokens == 1 else max(1, min(4, 8192 // block))
    _rms_norm_kernel[ceil_div(tokens, rows),](
        hidden, weight, normed, eps, tokens,
        SIZE=size, ROWS=rows, BLOCK=block, OVERLAP=overlap, num_warps=4 if block <= 4096 else 8,
        **launch_options(overlap),
    )  # fmt: skip
    return normed


def silu_mul(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * size], gate beside up -> silu(gate) * up, [tokens, size]."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    product = gate_up.new_empty(tokens, size)
    overlap = can_overlap(gate_up.device)
    block = 2048
    _silu_mul_kernel[tokens, ceil_div(size, block)](
        gate_up, product, STRIDE=gate_up.stride(0), SIZE=size, BLOCK=block, OVERLAP=overlap, num_warps=4,
        **launch_options(overlap),
    )  # fmt: skip
    return product


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """[tokens, heads, head_dim] -> the same, contiguous, turned as `apply_rotary` does; heads may lie within more.

    The tables are [tokens, 1, head_dim], of the heads' dtype or float32, and contiguous.
    """
    tokens, count, size = heads.shape
    turned = heads.new_empty(tokens, count, size)
    overlap = can_overlap(heads.device)
    block = 1024
    _rotate_kernel[ceil_div(tokens * count * (size // 2), block),](
        heads, rotary.cos, rotary.signed_sin, turned, tokens,
        TOKEN_STRIDE=heads.stride(0), HEAD_STRIDE=heads.stride(1), HEADS=count, HALF=size // 2, BLOCK=block,
        OVERLAP=overlap, num_warps=4, **launch_options(overlap),
    )  # fmt: skip
    return turned


@triton.jit(do_not_specialize=["tokens"])
def _rms_norm_kernel(
    hidden_ptr, weight_ptr, normed_ptr, eps, tokens,
    SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program."""
    column = tl.arange(0, BLOCK)[None, :]
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    within = (token < tokens) & (column < SIZE)
    place = token.to(tl.int64) * SIZE + column
    start_next(OVERLAP)
    weight = tl.load(weight_ptr + column, mask=column < SIZE, other=0.0)
    wait_for_inputs(OVERLAP)
    hidden = tl.load(hidden_ptr + place, mask=within, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(hidden * hidden, axis=1, keep_dims=True) / SIZE + eps)
    tl.store(normed_ptr + place, (hidden * scale * weight.to(tl.float32)).to(normed_ptr.dtype.element_ty), mask=within)


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr, product_ptr, STRIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < SIZE
    start_next(OVERLAP)
    wait_for_inputs(OVERLAP)
    gate = tl.load(gate_up_ptr + row * STRIDE + column, mask=within, other=0.0)
    up = tl.load(gate_up_ptr + row * STRIDE + SIZE + column, mask=within, other=0.0)
    tl.store(product_ptr + row * SIZE + column, gated(gate, up), mask=within)


@triton.jit
def gated(gate, up):
    """silu(gate) * up of values of one dtype, rounded to it before the product and after."""
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    return (activated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    heads_ptr, cos_ptr, signed_sin_ptr, turned_ptr, tokens,
    TOKEN_STRIDE: tl.constexpr, HEAD_STRIDE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BLOCK pairs a program, counted through all halves of all heads: no lane idles where HALF is no power of two."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, column = pair // HALF, pair % HALF
    token = (head // HEADS).to(tl.int64)
    within = token < tokens
    start_next(OVERLAP)
    wait_for_inputs(OVERLAP)
    source = heads_ptr + token * TOKEN_STRIDE + (head % HEADS) * HEAD_STRIDE + column
    left = tl.load(source, mask=within, other=0.0)
    right = tl.load(source + HALF, mask=within, other=0.0)
    # Both halves of the tables hold the same, but for the sign of the sine.
    table = token * (2 * HALF) + HALF + column
    cos = tl.load(cos_ptr + table, mask=within, other=0.0)
    sin = tl.load(signed_sin_ptr + table, mask=within, other=0.0)
    target = turned_ptr + head.to(tl.int64) * (2 * HALF) + column
    tl.store(target, (_product(left, cos) - _product(right, sin)).to(left.dtype), mask=within)
    tl.store(target + HALF, (_product(right, cos) + _product(left, sin)).to(left.dtype), mask=within)


@triton.jit
def _product(values, table):
    """Rounded to the table's dtype, as PyTorch's operators do."""
    return (values.to(tl.float32) * table.to(tl.float32)).to(table.dtype).to(tl.float32)
