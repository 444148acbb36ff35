"""Attention of many tokens at once to their contexts in the paged KV cache."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.kernels.sizes import ceil_div, next_power_of_two


class Tiles(NamedTuple):
    """What a program takes: rows, each a query head of a token, and keys at a time."""

    rows: int
    keys: int
    warps: int
    stages: int


TILES = Tiles(rows=128, keys=64, warps=8, stages=3)


def paged_prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    longest_query: int,
    tiles: Tiles = TILES,
    output: Tensor | None = None,
    *,
    causal: bool = True,
) -> Tensor:
    """Attend causally: the last query token of a sequence to all its context, the one before to all but one, ...

    Or, where not `causal`, all of them to all of a context that they are no part of; of an empty one the result is 0.

    query: [tokens, query_heads, head_dim], among them the last tokens of each sequence, one sequence after another.
    keys, values: [cache rows, kv_heads, head_dim], one layer. block_tables: int32 [sequences, most blocks].
    query_starts: int32 [sequences + 1], where each begins, and after the last where it ends.
    context_lengths: int32 [sequences], the query's own tokens included where causal.
    output: made unless given. Returns [tokens, query_heads, head_dim]; tokens of no sequence are left as they were.
    """
    _, query_heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = query_heads // kv_heads
    output = torch.empty_like(query) if output is None else output
    if head_dim * query.element_size() > 256:
        tiles = Tiles(rows=64, keys=32, warps=4, stages=2)
    _prefill[(ceil_div(longest_query * group, tiles.rows), kv_heads, len(context_lengths))](
        query.contiguous(),
        keys,
        values,
        block_tables,
        query_starts,
        context_lengths,
        output,
        head_dim**-0.5 * math.log2(math.e),
        block_tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        HEAD_LANES=next_power_of_two(head_dim),
        BLOCK_TOKENS=BLOCK_TOKENS,
        QUERY_TILE=tiles.rows,
        KEY_TILE=tiles.keys,
        CAUSAL=causal,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return output


# Whatever differs from step to step is no reason to compile anew.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_tables", "query_starts", "context_lengths"],
)
def _prefill(
    query,
    keys,
    values,
    block_tables,
    query_starts,
    context_lengths,
    output,
    scale,
    table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One program a sequence, KV head and tile of queries, whose rows are token 0's heads, token 1's heads, ...

    `scale` goes with powers of two in place of e.
    """
    sequence = tl.program_id(2)
    kv_head = tl.program_id(1)
    query_start = tl.load(query_starts + sequence)
    query_tokens = tl.load(query_starts + sequence + 1) - query_start
    # The last tokens first: they have most to do.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERY_TILE
    if first_row >= query_tokens * GROUP:
        return
    context = tl.load(context_lengths + sequence)
    row = first_row + tl.arange(0, QUERY_TILE)
    token = row // GROUP
    lane = tl.arange(0, HEAD_LANES)
    inside_query = (token < query_tokens)[:, None] & (lane < HEAD_DIM)[None, :]
    head = (query_start + token).to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    at_query = head[:, None] * HEAD_DIM + lane[None, :]
    q = tl.load(query + at_query, inside_query, other=0.0)

    if CAUSAL:
        # Token t sees the keys up to `before` + t.
        before = context - query_tokens
        visible = before + token
        first_sees = before + first_row // GROUP + 1
        last_sees = tl.minimum(before + (first_row + QUERY_TILE - 1) // GROUP + 1, context)
    else:
        visible = context - 1 + tl.zeros_like(token)
        first_sees = context
        last_sees = context
    unmasked = first_sees // KEY_TILE

    table = block_tables + sequence.to(tl.int64) * table_stride
    keys += kv_head * HEAD_DIM
    values += kv_head * HEAD_DIM
    largest = tl.full([QUERY_TILE], -1e30, tl.float32)  # finite, so that differences are
    total = tl.zeros([QUERY_TILE], tl.float32)
    weighted = tl.zeros([QUERY_TILE, HEAD_LANES], tl.float32)
    largest, total, weighted = _attend(
        q, keys, values, table, 0, unmasked, visible, context, scale, largest, total, weighted,
        False, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, KEY_TILE,
    )  # fmt: skip
    largest, total, weighted = _attend(
        q, keys, values, table, unmasked, tl.cdiv(last_sees, KEY_TILE), visible, context, scale, largest, total,
        weighted, True, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, KEY_TILE,
    )  # fmt: skip
    result = weighted / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(output + at_query, result.to(output.dtype.element_ty), inside_query)


@triton.jit
def _attend(
    q, keys, values, table, first, last, visible, context, scale, largest, total, weighted,
    MASKED: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, KEY_TILE: tl.constexpr,
):  # fmt: skip
    """Tiles of context from `first` to `last`, which all rows of q see whole unless MASKED."""
    slot = tl.arange(0, KEY_TILE)
    lane = tl.arange(0, q.shape[1])
    inside_head = lane < HEAD_DIM
    position = first * KEY_TILE + slot
    block = tl.load(table + position // BLOCK_TOKENS, position < context, other=0)
    for _ in range(first, last):
        row = block.to(tl.int64) * BLOCK_TOKENS + position % BLOCK_TOKENS
        inside = inside_head[None, :]
        if MASKED:
            inside = inside & (position < context)[:, None]
        at = row[:, None] * (KV_HEADS * HEAD_DIM) + lane[None, :]
        k = tl.load(keys + at, inside, other=0.0)
        v = tl.load(values + at, inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            scores = tl.where(position[None, :] <= visible[:, None], scores, float("-inf"))
        # The next tile's blocks are asked for now: its keys cannot be before they are known.
        position += KEY_TILE
        block = tl.load(table + position // BLOCK_TOKENS, position < context, other=0)
        larger = tl.maximum(largest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - larger[:, None])
        fade = tl.exp2(largest - larger)
        total = total * fade + tl.sum(weights, 1)
        weighted = tl.dot(weights.to(v.dtype), v, weighted * fade[:, None], input_precision="ieee")
        largest = larger
    return largest, total, weighted
