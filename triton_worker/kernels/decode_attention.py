"""Attention of one new token a sequence over the paged KV cache."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.kernels.overlap import can_overlap, launch_options, start_next, wait_for_inputs
from triton_worker.kernels.sizes import next_power_of_two

_TILE = 128
"""Tokens of context a program takes at a time: 64 KiB of keys and values for heads of 128 in bfloat16."""

_MOST_SPLITS = 32
"""One program combines all splits of a KV head, which costs more than further splits of the context would save."""


class Tiles(NamedTuple):
    """How a program goes through its part of a context."""

    tokens: int
    warps: int
    stages: int


def decode_tiles(splits: int, device: torch.device) -> Tiles:
    """Deep buffers where a part has many tiles and the device has the shared memory. Measured on an H200."""
    return Tiles(_TILE, warps=4, stages=3 if splits == 1 and _has_room(device) else 2)


@functools.cache
def _has_room(device: torch.device) -> bool:
    """For three stages. With heads of 128 in 16 bits they take 200 KiB on Hopper, which has 228, and 100 before it."""
    return (
        device.type != "cuda" or torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > 104 * 1024
    )


def decode_splits(batch: int, kv_heads: int, max_context: int, multiprocessors: int) -> int:
    """Into how many parts to split each context at most, so that one program runs on every multiprocessor.

    A part has whole tiles, so a short context is in fewer parts. Two or three parts cost more than they save.
    """
    wanted = multiprocessors // (batch * kv_heads)
    return max(1, min(wanted, -(-max_context // _TILE), _MOST_SPLITS)) if wanted > 3 else 1


def decode_arrivals(batch: int, kv_heads: int, device: torch.device) -> Tensor:
    """What `decode_attention` counts finished splits in. It leaves zeros behind, so one serves all layers and steps."""
    return torch.zeros(batch * kv_heads, dtype=torch.int32, device=device)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    context_lengths: Tensor,
    splits: int,
    arrivals: Tensor,
    tiles: Tiles | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Attend one token of each sequence to all tokens of its context, which the cache holds, itself included.

    query: [batch, query_heads, head_dim]. keys, values: [cache rows, kv_heads, head_dim], one layer.
    block_tables: int32 [batch, most blocks], the cache blocks of each sequence in order.
    context_lengths: int32 [batch]; 0 marks a padding row, for which nothing is read and the result is 0.
    splits: see `decode_splits`. The launch follows from it and the shapes, not from the lengths.
    arrivals: see `decode_arrivals`; at least batch * kv_heads, and of no use to another stream at the same time.
    tiles: chosen unless given. output: made unless given.
    Returns [batch, query_heads, head_dim] in the query's dtype.

    Split-KV as in Flash-Decoding (https://pytorch.org/blog/flash-decoding/); whichever program of a KV head comes last
    combines the splits, which saves a kernel.
    """
    output = torch.empty_like(query) if output is None else output
    return _launch_decode(query, None, keys, values, block_tables, context_lengths, splits, arrivals, tiles, output)


def rotate_and_decode(
    heads: Tensor,
    rotary_cos: Tensor,
    rotary_signed_sin: Tensor,
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    context_lengths: Tensor,
    splits: int,
    arrivals: Tensor,
    tiles: Tiles | None = None,
) -> Tensor:
    """`rotate_and_store` and `decode_attention` in one kernel, for steps in which every token is a sequence's next.

    heads: [batch, query_heads + 2 * kv_heads, head_dim]. rows: where the last token of each context belongs, negative
    where the context is 0. All else is as in those two, but block tables, context lengths and all tokens before the new
    ones are read while the kernel before still runs: at least one kernel without overlap has to come between whatever
    writes them and this one.
    """
    new = (rotary_cos, rotary_signed_sin, rows)
    batch, all_heads, head_dim = heads.shape
    output = heads.new_empty(batch, all_heads - 2 * keys.shape[1], head_dim)
    return _launch_decode(heads, new, keys, values, block_tables, context_lengths, splits, arrivals, tiles, output)


def _launch_decode(
    heads: Tensor,
    new: tuple[Tensor, Tensor, Tensor] | None,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    context_lengths: Tensor,
    splits: int,
    arrivals: Tensor,
    tiles: Tiles | None,
    output: Tensor,
) -> Tensor:
    """`new`: tables to turn `heads` by and rows to store them in, if they have not been turned and stored."""
    batch, all_heads, head_dim = heads.shape
    kv_heads = keys.shape[1]
    group = output.shape[1] // kv_heads
    parts = (batch, kv_heads, splits if splits > 1 else 0, group)
    partials = torch.empty(*parts, head_dim, dtype=torch.float32, device=heads.device)
    partial_sums = torch.empty(parts, dtype=torch.float32, device=heads.device)
    cos, signed_sin, rows = new or (None, None, None)
    overlap = can_overlap(heads.device)
    group_lanes, head_lanes = next_power_of_two(group), next_power_of_two(head_dim)
    wide = head_dim * heads.element_size() > 256
    tiles = tiles or decode_tiles(splits, heads.device)
    _decode[(batch, kv_heads, splits)](
        heads.contiguous(),
        cos,
        signed_sin,
        rows,
        keys,
        values,
        block_tables,
        context_lengths,
        arrivals,
        partials,
        partial_sums,
        output,
        head_dim**-0.5 * math.log2(math.e),
        block_tables.stride(0),
        splits,
        NEW=new is not None,
        SPLIT=splits > 1,
        ALL_HEADS=all_heads,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_LANES=group_lanes,
        GROUP_COLUMNS=max(group_lanes, 16),  # for fewer, Triton leaves Hopper's matrix instructions (wgmma) aside
        HEAD_DIM=head_dim,
        HEAD_LANES=head_lanes,
        BLOCK_TOKENS=BLOCK_TOKENS,
        TILE=32 if wide else tiles.tokens,
        SPLITS_AT_ONCE=max(64 * tiles.warps * 32 // (group_lanes * head_lanes), 1),  # 64 registers of each thread
        OVERLAP=overlap,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **launch_options(overlap),
    )
    return output


@triton.jit
def _load_turned(head, inside, lane, cos, signed_sin, NEW: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Values of heads at `head` + `lane`, turned if they are new."""
    values = tl.load(head + lane, inside, other=0.0)
    if NEW:
        # Each value turns together with the one half a head away.
        partners = tl.load(head + (lane + HEAD_DIM // 2) % HEAD_DIM, inside, other=0.0)
        values = (values.to(tl.float32) * cos + partners.to(tl.float32) * signed_sin).to(values.dtype)
    return values


@triton.jit
def _attend(q, k, v, present, scale, largest, total, weighted):
    """One more tile of context: k, v [TILE, lanes], present [TILE]; and what of all before it is known.

    All is the wrong way round, q [lanes, heads] and scores [TILE, heads]: tensor cores multiply 64 rows at once, which
    the tile has and the heads of a group are far from.
    """
    scores = tl.dot(k, q, input_precision="ieee")
    scores = tl.where(present[:, None], scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 0) * scale)
    weights = tl.exp2(scores * scale - larger[None, :])
    fade = tl.exp2(largest - larger)
    total = total * fade + tl.sum(weights, 0)
    weighted = tl.dot(tl.trans(v), weights.to(v.dtype), weighted * fade[None, :], input_precision="ieee")
    return larger, total, weighted


# Whatever differs from step to step is no reason to compile anew.
@triton.jit(
    do_not_specialize=["table_stride", "splits"],
    do_not_specialize_on_alignment=["rows", "block_tables", "context_lengths", "arrivals"],
)
def _decode(
    heads,
    cos,
    signed_sin,
    rows,
    keys,
    values,
    block_tables,
    context_lengths,
    arrivals,
    partials,
    partial_sums,
    output,
    scale,
    table_stride,
    splits,
    NEW: tl.constexpr,
    SPLIT: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    GROUP_COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a sequence, KV head and split. `scale` goes with powers of two in place of e.

    The last token of a context is either in the cache, as the others are, or NEW: then heads holds its key and value
    heads as well, not yet turned, and the program of the last split attends to them directly and stores them.

    With NEW, nothing that is read before `wait_for_inputs` was written by a kernel that may still run: all tokens but
    the new one were stored in earlier steps, and lengths and tables were ready before the step's first kernel with
    overlap (as `rotate_and_decode` demands), which began when everything before it had ended.
    """
    start_next(OVERLAP)
    if not NEW:
        wait_for_inputs(OVERLAP)
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(context_lengths + sequence)
    has_new = context > 0
    if NEW:
        context = tl.maximum(context - 1, 0)
    tiles = tl.cdiv(context, TILE)
    tiles_a_split = tiles
    if SPLIT:
        tiles_a_split = tl.cdiv(tiles, splits)
    tiles_a_split = tl.maximum(tiles_a_split, 1)
    used_splits = tl.maximum(tl.cdiv(tiles, tiles_a_split), 1)
    first = split * tiles_a_split
    last = tl.minimum(first + tiles_a_split, tiles)

    lane = tl.arange(0, HEAD_LANES)
    inside_head = lane < HEAD_DIM
    table = block_tables + sequence.to(tl.int64) * table_stride
    position = first * TILE + tl.arange(0, TILE)
    block = tl.load(table + position // BLOCK_TOKENS, position < context, other=0)
    keys += kv_head * HEAD_DIM
    values += kv_head * HEAD_DIM
    EARLY: tl.constexpr = NEW and SPLIT
    if EARLY:
        # The first tile is on its way while the kernel before still runs, and the last to be looked at.
        early_present = position < context
        row = block.to(tl.int64) * BLOCK_TOKENS + position % BLOCK_TOKENS
        inside = early_present[:, None] & inside_head[None, :]
        at = row[:, None] * (KV_HEADS * HEAD_DIM) + lane[None, :]
        early_k = tl.load(keys + at, inside, other=0.0)
        early_v = tl.load(values + at, inside, other=0.0)
        first += 1
        position += TILE
        block = tl.load(table + position // BLOCK_TOKENS, position < context, other=0)
    if NEW:
        wait_for_inputs(OVERLAP)
    if split >= used_splits:
        return

    member = tl.arange(0, GROUP_COLUMNS)
    inside_heads = inside_head[:, None] & (member < GROUP)[None, :]
    heads += sequence * (ALL_HEADS * HEAD_DIM)
    turn_cos = 1.0
    turn_sin = 0.0
    query_cos = 1.0
    query_sin = 0.0
    if NEW:
        turn_cos = tl.load(cos + sequence * HEAD_DIM + lane, inside_head, other=0.0).to(tl.float32)
        turn_sin = tl.load(signed_sin + sequence * HEAD_DIM + lane, inside_head, other=0.0).to(tl.float32)
        query_cos = turn_cos[:, None]
        query_sin = turn_sin[:, None]
    at_query = ((kv_head * GROUP + member) * HEAD_DIM)[None, :]
    q = _load_turned(heads + at_query, inside_heads, lane[:, None], query_cos, query_sin, NEW, HEAD_DIM)

    largest = tl.full([GROUP_COLUMNS], -1e30, tl.float32)  # finite, so that differences are
    total = tl.zeros([GROUP_COLUMNS], tl.float32)
    weighted = tl.zeros([HEAD_LANES, GROUP_COLUMNS], tl.float32)
    if NEW:
        mine = has_new & (split == used_splits - 1)
        inside_new = inside_head & mine
        key_head = heads + (KV_HEADS * GROUP + kv_head) * HEAD_DIM
        new_k = _load_turned(key_head, inside_new, lane, turn_cos, turn_sin, NEW, HEAD_DIM)
        new_v = tl.load(key_head + KV_HEADS * HEAD_DIM + lane, inside_new, other=0.0)
        new_row = tl.load(rows + sequence).to(tl.int64)
        at_row = new_row * (KV_HEADS * HEAD_DIM) + lane
        tl.store(keys + at_row, new_k, inside_new & (new_row >= 0))
        tl.store(values + at_row, new_v, inside_new & (new_row >= 0))
        new_score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[:, None], 0) * scale
        largest = tl.where(mine, new_score, largest)
        total = tl.where(mine, 1.0, total)
        weighted += new_v.to(tl.float32)[:, None]

    for _ in range(first, last):
        present = position < context
        row = block.to(tl.int64) * BLOCK_TOKENS + position % BLOCK_TOKENS
        inside = present[:, None] & inside_head[None, :]
        at = row[:, None] * (KV_HEADS * HEAD_DIM) + lane[None, :]
        k = tl.load(keys + at, inside, other=0.0)
        v = tl.load(values + at, inside, other=0.0)
        # The next tile's blocks are asked for now: its keys cannot be before they are known.
        position += TILE
        block = tl.load(table + position // BLOCK_TOKENS, position < context, other=0)
        largest, total, weighted = _attend(q, k, v, present, scale, largest, total, weighted)
    if EARLY:
        largest, total, weighted = _attend(q, early_k, early_v, early_present, scale, largest, total, weighted)

    result = weighted / tl.where(total > 0, total, 1.0)[None, :]
    kv_output = output + (sequence * KV_HEADS + kv_head) * (GROUP * HEAD_DIM)
    at_heads = member[None, :] * HEAD_DIM + lane[:, None]
    if used_splits == 1:
        tl.store(kv_output + at_heads, result.to(output.dtype.element_ty), inside_heads)
    elif SPLIT:
        first_part = (sequence * KV_HEADS + kv_head) * splits
        part = first_part + split
        tl.store(partials + part * (GROUP * HEAD_DIM) + at_heads, result, inside_heads)
        tl.store(partial_sums + part * GROUP + member, largest + tl.log2(total), member < GROUP)
        # All threads have written before one of them says so; whoever reads the last number reads after all writes.
        tl.debug_barrier()
        arrival = arrivals + sequence * KV_HEADS + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == used_splits - 1:
            tl.store(arrival, 0)
            partials += first_part * (GROUP * HEAD_DIM)
            partial_sums += first_part * GROUP
            _combine(
                partials, partial_sums, kv_output, used_splits, GROUP, GROUP_LANES, HEAD_DIM, HEAD_LANES, SPLITS_AT_ONCE
            )


@triton.jit
def _combine(
    partials,
    partial_sums,
    output,
    used_splits,
    GROUP: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
):
    """Partial results of a KV head, each weighted by its share of the exponentials' sum.

    partials: [splits, GROUP, HEAD_DIM]; partial_sums: [splits, GROUP], logarithms to base 2.
    """
    member = tl.arange(0, GROUP_LANES)
    lane = tl.arange(0, HEAD_LANES)
    largest = tl.full([GROUP_LANES], -1e30, tl.float32)  # finite in rows without a head, too
    total = tl.zeros([GROUP_LANES], tl.float32)
    weighted = tl.zeros([GROUP_LANES, HEAD_LANES], tl.float32)
    for first in range(0, used_splits, SPLITS_AT_ONCE):
        split = first + tl.arange(0, SPLITS_AT_ONCE)
        present = (split < used_splits)[:, None] & (member < GROUP)[None, :]
        at = split[:, None] * GROUP + member[None, :]
        # Through the second-level cache: what the first level holds may be older than the others' writes.
        sums = tl.load(partial_sums + at, present, other=float("-inf"), cache_modifier=".cg")
        inside = present[:, :, None] & (lane < HEAD_DIM)[None, None, :]
        parts = tl.load(
            partials + at[:, :, None] * HEAD_DIM + lane[None, None, :], inside, other=0.0, cache_modifier=".cg"
        )
        larger = tl.maximum(largest, tl.max(sums, 0))
        shares = tl.exp2(sums - larger[None, :])
        fade = tl.exp2(largest - larger)
        total = total * fade + tl.sum(shares, 0)
        weighted = weighted * fade[:, None] + tl.sum(parts * shares[:, :, None], 0)
        largest = larger
    result = weighted / tl.where(total > 0, total, 1.0)[:, None]
    inside_heads = (member < GROUP)[:, None] & (lane < HEAD_DIM)[None, :]
    tl.store(output + member[:, None] * HEAD_DIM + lane[None, :], result.to(output.dtype.element_ty), inside_heads)
