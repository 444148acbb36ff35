"""What attention does first: turn the heads of each token by its position, and store its keys and values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_worker.kernels.overlap import can_overlap, launch_options, start_next, wait_for_inputs
from triton_worker.kernels.sizes import next_power_of_two


def rotate_and_store(
    heads: Tensor,
    rotary_cos: Tensor,
    rotary_signed_sin: Tensor,
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Turn query and key heads by their positions and store keys and values in one layer of the cache.

    heads: [tokens, query_heads + 2 * kv_heads, head_dim], query heads first, then key, then value heads.
    rotary_cos, rotary_signed_sin: [tokens, 1, head_dim], as in :class:`triton_worker.models.decoder.rope.Rotary`.
    rows: int32 or int64 [tokens], where in the cache; a token with a negative row is not stored.
    keys, values: [cache rows, kv_heads, head_dim].
    Returns the turned query, [tokens, query_heads, head_dim]. Computes in float32 whatever the dtypes are.
    """
    tokens, all_heads, head_dim = heads.shape
    kv_heads = keys.shape[1]
    query_heads = all_heads - 2 * kv_heads
    query = torch.empty(tokens, query_heads, head_dim, dtype=heads.dtype, device=heads.device)
    if tokens == 0:
        return query
    overlap = can_overlap(heads.device)
    _rotate_and_store[(tokens,)](
        heads.contiguous(),
        rotary_cos,
        rotary_signed_sin,
        rows,
        query,
        keys,
        values,
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        QUERY_LANES=next_power_of_two(query_heads),
        KV_LANES=next_power_of_two(kv_heads),
        HALF_LANES=next_power_of_two(head_dim // 2),
        HEAD_LANES=next_power_of_two(head_dim),
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )
    return query


@triton.jit
def _turn(
    source,
    target,
    stored,
    cos,
    signed_sin,
    HEADS: tl.constexpr,
    HEADS_LANES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_LANES: tl.constexpr,
):
    """Some heads of a token, [HEADS, HEAD_DIM], to `target` if they are to be `stored`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.arange(0, HEADS_LANES)
    lane = tl.arange(0, HALF_LANES)
    inside_half = lane < HALF
    inside = (head < HEADS)[:, None] & inside_half[None, :]
    at = head[:, None] * HEAD_DIM + lane[None, :]
    first = tl.load(source + at, inside).to(tl.float32)
    second = tl.load(source + at + HALF, inside).to(tl.float32)
    cos_first = tl.load(cos + lane, inside_half).to(tl.float32)[None, :]
    cos_second = tl.load(cos + lane + HALF, inside_half).to(tl.float32)[None, :]
    sin_first = tl.load(signed_sin + lane, inside_half).to(tl.float32)[None, :]
    sin_second = tl.load(signed_sin + lane + HALF, inside_half).to(tl.float32)[None, :]
    dtype = target.dtype.element_ty
    tl.store(target + at, (first * cos_first + second * sin_first).to(dtype), inside & stored)
    tl.store(target + at + HALF, (second * cos_second + first * sin_second).to(dtype), inside & stored)


# Slices of a step's tensors begin anywhere, which is no reason to compile anew.
@triton.jit(do_not_specialize_on_alignment=["rows"])
def _rotate_and_store(
    heads,
    cos,
    signed_sin,
    rows,
    query,
    keys,
    values,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERY_LANES: tl.constexpr,
    KV_LANES: tl.constexpr,
    HALF_LANES: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a token."""
    wait_for_inputs(OVERLAP)
    start_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    stored = row >= 0
    cos += token * HEAD_DIM
    signed_sin += token * HEAD_DIM
    source = heads + token * ((QUERY_HEADS + 2 * KV_HEADS) * HEAD_DIM)
    target = query + token * (QUERY_HEADS * HEAD_DIM)
    _turn(source, target, True, cos, signed_sin, QUERY_HEADS, QUERY_LANES, HEAD_DIM, HALF_LANES)

    source += QUERY_HEADS * HEAD_DIM
    cache_offset = row * (KV_HEADS * HEAD_DIM)
    _turn(source, keys + cache_offset, stored, cos, signed_sin, KV_HEADS, KV_LANES, HEAD_DIM, HALF_LANES)

    source += KV_HEADS * HEAD_DIM
    kv_head = tl.arange(0, KV_LANES)
    lane = tl.arange(0, HEAD_LANES)
    at = kv_head[:, None] * HEAD_DIM + lane[None, :]
    inside = (kv_head < KV_HEADS)[:, None] & (lane < HEAD_DIM)[None, :]
    tl.store(values + cache_offset + at, tl.load(source + at, inside), inside & stored)
