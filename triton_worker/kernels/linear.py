"""Matrix products of one row or two, as in decoding: their time is that of reading the weight once.

A program takes whole rows of the weight through registers to the CUDA cores. Its first loads are on their way while the
kernel before still runs. A norm in front scales the sum, not the inputs: nothing waits for it. No sum is split over
programs, so equal inputs give equal results; another number of rows may round otherwise. From a few rows on cuBLAS is
quicker.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from triton_worker.kernels.elementwise import gated
from triton_worker.kernels.overlap import can_overlap, launch_options, start_next, wait_for_inputs
from triton_worker.kernels.sizes import ceil_div, next_power_of_two

MOST_ROWS = 2


class Tiles(NamedTuple):
    """What a program takes at a time: rows of the weight (of each half, if gated) and columns, both powers of two."""

    rows: int
    columns: int
    warps: int


def small_batch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    tiles: Tiles | None = None,
    overlap: bool | None = None,
) -> Tensor:
    """The product norm(x) @ weight.T + bias + residual, [rows, N].

    x [1 ... MOST_ROWS rows, K], weight [N, K], bias [N], residual [rows, N], norm: weight [K] and eps of a
    root-mean-square norm; all contiguous and of one dtype. Sums are float32, rounded where PyTorch's own operators
    round, but for the norm, which is not rounded at all. Tiles and overlap are chosen unless given. Raises ValueError
    for other shapes.
    """
    return _launch(x, weight, bias, norm, residual, False, tiles, overlap)


def small_batch_gated_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    tiles: Tiles | None = None,
    overlap: bool | None = None,
) -> Tensor:
    """The product silu(gate) * up, [rows, N], where gate beside up is norm(x) @ weight.T, for a weight [2 * N, K].

    Otherwise as `small_batch_linear`.
    """
    return _launch(x, weight, None, norm, None, True, tiles, overlap)


def default_tiles(in_features: int, *, gated: bool) -> Tiles:
    """Long rows keep more threads busy. Measured on an H200 with the products of Qwen2.5-VL 3B."""
    if in_features > 4096:
        return Tiles(rows=2 if gated else 4, columns=2048, warps=8)
    return Tiles(rows=4 if gated else 2, columns=max(8, min(next_power_of_two(in_features), 1024)), warps=4)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Tensor, float] | None,
    residual: Tensor | None,
    gate: bool,
    tiles: Tiles | None,
    overlap: bool | None,
) -> Tensor:
    rows, columns = x.shape
    size = weight.shape[0] // 2 if gate else weight.shape[0]
    _check(x, weight, bias, norm, residual, (rows, size))
    overlap = can_overlap(x.device) if overlap is None else overlap
    tiles = tiles or default_tiles(columns, gated=gate)
    result = x.new_empty(rows, size)
    _linear_kernel[ceil_div(size, tiles.rows),](
        x, weight, bias, norm[0] if norm else None, residual, result, norm[1] if norm else 0.0,
        N=size, K=columns, M=rows, BLOCK_N=tiles.rows, BLOCK_K=tiles.columns, GATED=gate, OVERLAP=overlap,
        num_warps=tiles.warps, **launch_options(overlap),
    )  # fmt: skip
    return result


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Tensor, float] | None,
    residual: Tensor | None,
    result: tuple[int, int],
) -> None:
    expected = ((weight, (weight.shape[0], x.shape[1])), (bias, (weight.shape[0],)), (residual, result))
    of_norm = ((norm[0], (x.shape[1],)),) if norm else ()
    for tensor, shape in ((x, tuple(x.shape)), *expected, *of_norm):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != x.dtype or not tensor.is_contiguous()):
            raise ValueError(
                f"expected a contiguous {x.dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)} "
                f"with strides {list(tensor.stride())}"
            )
    if not 1 <= x.shape[0] <= MOST_ROWS:
        raise ValueError(f"the kernel takes 1 to {MOST_ROWS} rows, not {x.shape[0]}")


@triton.jit
def _linear_kernel(
    x_ptr, weight_ptr, bias_ptr, norm_ptr, residual_ptr, result_ptr, eps,
    N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, M, BLOCK_K] products a step, whose sums meet across threads only at the end."""
    start_next(OVERLAP)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, M)
    k = tl.arange(0, BLOCK_K)[None, None, :]
    # Rows past the last repeat it: what they give is not stored.
    weight_row = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None, None] * K
    gate = _columns(weight_row, k, K)
    if GATED:
        up = _columns(weight_row + N * K, k, K)
    n = n[:, None]
    m = m[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
    wait_for_inputs(OVERLAP)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + m * N + n, mask=n < N, other=0.0)
    gate_sum = tl.zeros([BLOCK_N, M, BLOCK_K // 8], dtype=tl.float32)
    up_sum = gate_sum
    squares = tl.zeros([1, M, BLOCK_K // 8], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        column = first + k
        # The next step's weights are on their way while this step multiplies.
        next_gate = _columns(weight_row, column + BLOCK_K, K)
        x = tl.load(x_ptr + m[:, :, None] * K + column, mask=column < K, other=0.0).to(tl.float32)
        if norm_ptr is not None:
            squares += _sums_of_eight(x * x)
            x *= tl.load(norm_ptr + column, mask=column < K, other=0.0).to(tl.float32)
        gate_sum += _sums_of_eight(gate.to(tl.float32) * x)
        gate = next_gate
        if GATED:
            next_up = _columns(weight_row + N * K, column + BLOCK_K, K)
            up_sum += _sums_of_eight(up.to(tl.float32) * x)
            up = next_up
    # Each step is rounded to the result's dtype, as separate operators would.
    dtype = result_ptr.dtype.element_ty
    total = tl.sum(gate_sum, axis=2)
    if norm_ptr is not None:
        scale = tl.rsqrt(tl.sum(squares, axis=2) / K + eps)
        total *= scale
    if bias_ptr is not None:
        total += bias.to(tl.float32)
    result = total.to(dtype)
    if GATED:
        up_total = tl.sum(up_sum, axis=2)
        if norm_ptr is not None:
            up_total *= scale
        result = gated(result, up_total.to(dtype))
    if residual_ptr is not None:
        result = (result.to(tl.float32) + residual.to(tl.float32)).to(dtype)
    tl.store(result_ptr + m * N + n, result, mask=n < N)


@triton.jit
def _sums_of_eight(products):
    """[n, m, k] -> [n, m, k / 8]: of what one thread has loaded at once."""
    n: tl.constexpr = products.shape[0]
    m: tl.constexpr = products.shape[1]
    k: tl.constexpr = products.shape[2]
    return tl.sum(tl.reshape(products, [n, m, k // 8, 8]), axis=3)


@triton.jit
def _columns(weight_row, column, K: tl.constexpr):
    """Weights, which pass the caches once and are not to drive out what is used again."""
    return tl.load(weight_row + column, mask=column < K, other=0.0, eviction_policy="evict_first")
