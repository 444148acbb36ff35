"""Attention within the segments of pictures, in both directions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_worker.kernels.sizes import ceil_div, next_power_of_two


class Tiles(NamedTuple):
    """What a program takes: query tokens, and keys at a time."""

    queries: int
    keys: int
    warps: int
    stages: int


def varlen_tiles(longest: int) -> Tiles:
    """For segments of up to `longest` tokens: a window is one tile."""
    return Tiles(64, 64, warps=4, stages=2) if longest <= 64 else Tiles(128, 64, warps=8, stages=3)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, tiles: Tiles | None = None
) -> Tensor:
    """Attend each token to all tokens of its own segment.

    query, key, value: [tokens, heads, head_dim], which may be views whose heads are contiguous.
    starts: int32 [segments + 1], where each segment begins, and after the last where it ends. longest: tokens of one.
    head_dim from 16 to 256. tiles: chosen unless given. Returns [tokens, heads, head_dim].
    """
    tokens, heads, head_dim = query.shape
    output = torch.empty(tokens, heads, head_dim, dtype=query.dtype, device=query.device)
    tiles = tiles or varlen_tiles(longest)
    if head_dim * query.element_size() > 256:
        tiles = Tiles(64, 32, warps=4, stages=2)
    # Heads of 80 are multiplied as 64 and 16 rather than as 128.
    main = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - main
    _varlen[(ceil_div(longest, tiles.queries), heads, len(starts) - 1)](
        query,
        key,
        value,
        starts,
        output,
        head_dim**-0.5 * math.log2(math.e),
        query.stride(0),
        key.stride(0),
        value.stride(0),
        HEADS=heads,
        HEAD_DIM=head_dim,
        MAIN=main,
        REST=rest and max(next_power_of_two(rest), 16),
        QUERY_TILE=tiles.queries,
        KEY_TILE=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return output


@triton.jit(do_not_specialize_on_alignment=["starts"])
def _varlen(
    query,
    key,
    value,
    starts,
    output,
    scale,
    query_stride,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
):
    """One program a segment, head and tile of queries. `scale` goes with powers of two in place of e."""
    start = tl.load(starts + tl.program_id(2)).to(tl.int64)
    length = tl.load(starts + tl.program_id(2) + 1) - start.to(tl.int32)
    first = tl.program_id(0) * QUERY_TILE
    if first >= length:
        return
    head = tl.program_id(1) * HEAD_DIM
    query += start * query_stride + head
    key += start * key_stride + head
    value += start * value_stride + head
    output += start * (HEADS * HEAD_DIM) + head
    token = first + tl.arange(0, QUERY_TILE)
    asked = (token < length)[:, None]
    at_query = token.to(tl.int64)[:, None] * query_stride
    lane = tl.arange(0, MAIN)[None, :]
    q = tl.load(query + at_query + lane, asked, other=0.0)
    weighted = tl.zeros([QUERY_TILE, MAIN], tl.float32)
    if REST > 0:
        rest = MAIN + tl.arange(0, REST)[None, :]
        inside_rest = rest < HEAD_DIM
        q_rest = tl.load(query + at_query + rest, asked & inside_rest, other=0.0)
        weighted_rest = tl.zeros([QUERY_TILE, REST], tl.float32)
    largest = tl.full([QUERY_TILE], -1e30, tl.float32)  # finite, so that differences are
    total = tl.zeros([QUERY_TILE], tl.float32)
    for first_key in range(0, length, KEY_TILE):
        other = first_key + tl.arange(0, KEY_TILE)
        present = other < length
        at_key = other.to(tl.int64)[:, None] * key_stride
        at_value = other.to(tl.int64)[:, None] * value_stride
        k = tl.load(key + at_key + lane, present[:, None], other=0.0)
        v = tl.load(value + at_value + lane, present[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if REST > 0:
            k_rest = tl.load(key + at_key + rest, present[:, None] & inside_rest, other=0.0)
            v_rest = tl.load(value + at_value + rest, present[:, None] & inside_rest, other=0.0)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        scores = tl.where(present[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - larger[:, None])
        fade = tl.exp2(largest - larger)
        total = total * fade + tl.sum(weights, 1)
        weights = weights.to(v.dtype)
        weighted = tl.dot(weights, v, weighted * fade[:, None], input_precision="ieee")
        if REST > 0:
            weighted_rest = tl.dot(weights, v_rest, weighted_rest * fade[:, None], input_precision="ieee")
        largest = larger
    at_output = token.to(tl.int64)[:, None] * (HEADS * HEAD_DIM)
    dtype = output.dtype.element_ty
    tl.store(output + at_output + lane, (weighted / total[:, None]).to(dtype), asked)
    if REST > 0:
        tl.store(output + at_output + rest, (weighted_rest / total[:, None]).to(dtype), asked & inside_rest)
