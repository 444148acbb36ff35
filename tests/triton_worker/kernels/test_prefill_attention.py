from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.triton_worker.kernels.cached import (
    CASES,
    DEVICE,
    HALF,
    assert_near,
    cached_sequences,
    plain_attention,
    randn,
)
from triton_worker.kernels.prefill_attention import paged_prefill_attention
from triton_worker.kernels.varlen_attention import varlen_attention

# Whole prompts, chunks after a cached prefix, one token. Query lengths, key lengths.
QUERIES, KEYS = (33, 1, 16, 100, 1, 5), (33, 1, 17, 1000, 300, 64)
if DEVICE.type == "cpu":
    QUERIES, KEYS = (21, 1, 5), (21, 17, 66)
SEGMENTS = [(64,) * 9 + (32, 16, 16, 4), (500, 1, 65, 128)] if DEVICE.type == "cuda" else [(64, 16, 4), (130, 1)]


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_paged_prefill(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query_heads, kv_heads, head_dim = shape
    cache = cached_sequences(KEYS, kv_heads, head_dim, dtype)
    query = randn(sum(QUERIES), query_heads, head_dim, dtype=dtype)
    output = paged_prefill_attention(
        query, cache.keys, cache.values, cache.block_tables, starts(QUERIES), cache.context_lengths, max(QUERIES)
    )
    expected = [plain_attention(q, *cache.of(i), causal=True) for i, q in enumerate(query.split(QUERIES))]
    assert_near(output, torch.cat(expected), f"{shape}, queries {QUERIES}, keys {KEYS}")


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_paged_prefill_beside_its_context(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """All queries see all of a context that they are no part of; nothing of an empty one."""
    torch.manual_seed(0)
    query_heads, kv_heads, head_dim = shape
    keys = (0, *KEYS)
    queries = (3, *QUERIES[::-1])
    cache = cached_sequences(keys, kv_heads, head_dim, dtype)
    query = randn(sum(queries), query_heads, head_dim, dtype=dtype)
    output = paged_prefill_attention(
        query, cache.keys, cache.values, cache.block_tables, starts(queries), cache.context_lengths, max(queries),
        causal=False,
    )  # fmt: skip
    empty, *others = query.split(queries)
    expected = [plain_attention(q, *cache.of(i), causal=False) for i, q in enumerate(others, start=1)]
    assert_near(
        output, torch.cat([torch.zeros_like(empty), *(e.to(dtype) for e in expected)]), f"{shape}, {queries}, {keys}"
    )


@pytest.mark.parametrize("head_dim", [80, 64, 72])
@pytest.mark.parametrize("lengths", SEGMENTS, ids=str)
def test_varlen_attention_keeps_to_its_segment(lengths: tuple[int, ...], head_dim: int) -> None:
    torch.manual_seed(0)
    heads = 16 if DEVICE.type == "cuda" else 2
    # As views of one tensor, as they come out of their product.
    query, key, value = randn(sum(lengths), 3, heads, head_dim, dtype=HALF).unbind(1)
    output = varlen_attention(query, key, value, starts(lengths), max(lengths))
    expected = [
        plain_attention(q, k, v, causal=False)
        for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    ]
    assert_near(output, torch.cat(expected), f"segments of {lengths}")
