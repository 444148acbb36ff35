from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.triton_worker.kernels.cached import (
    CASES,
    DEVICE,
    HALF,
    CachedSequences,
    assert_near,
    cached_sequences,
    plain_attention,
    randn,
)
from triton_worker.kernels.decode_attention import (
    decode_arrivals,
    decode_attention,
    decode_splits,
    rotate_and_decode,
)
from triton_worker.kernels.rotate_and_store import rotate_and_store
from triton_worker.models.decoder.rope import Rotary, apply_rotary, rotary_from_angles

LENGTHS = (1, 0, 15, 16, 17, 63, 64, 65, 1000) if DEVICE.type == "cuda" else (1, 0, 17, 130)
on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="concerns the GPU alone")


@pytest.mark.parametrize(("tokens", "row_dtype"), [(1, torch.int32), (13, torch.int64)], ids=str)
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_rotate_and_store(shape: tuple[int, int, int], dtype: torch.dtype, tokens: int, row_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query_heads, kv_heads, head_dim = shape
    heads = randn(tokens, query_heads + 2 * kv_heads, head_dim, dtype=dtype)
    rotary = rotary_from_angles(torch.randn(tokens, head_dim // 2, device=DEVICE), dtype)
    cache_rows = 5 * tokens
    rows = torch.randperm(cache_rows)[:tokens].to(DEVICE, row_dtype)
    rows[1::3] = -1
    keys, values = torch.full((2, cache_rows, kv_heads, head_dim), torch.nan, device=DEVICE, dtype=dtype)

    query = rotate_and_store(heads, *rotary, rows, keys, values)

    exact = Rotary(rotary.cos.double(), rotary.signed_sin.double())
    turned = apply_rotary(heads[:, : query_heads + kv_heads].double(), exact)
    assert_near(query, turned[:, :query_heads], f"query of {shape}, {tokens} tokens")
    stored = (rows >= 0).nonzero()[:, 0]
    at = rows[stored].long()
    assert_near(keys[at], turned[stored, query_heads:], f"keys of {shape}, {tokens} tokens")
    assert torch.equal(values[at], heads[stored, query_heads + kv_heads :]), f"values of {shape}, {tokens} tokens"
    others = torch.ones(cache_rows, dtype=torch.bool, device=DEVICE)
    others[at] = False
    assert keys[others].isnan().all(), "rows of no token were written"
    assert values[others].isnan().all(), "rows of no token were written"


def decode(query: Tensor, cache: CachedSequences, splits: int, arrivals: Tensor) -> Tensor:
    return decode_attention(
        query, cache.keys, cache.values, cache.block_tables, cache.context_lengths, splits, arrivals
    )


def plain_decode(query: Tensor, cache: CachedSequences) -> Tensor:
    return torch.cat(
        [
            plain_attention(query[i : i + 1], *cache.of(i), causal=False) if length else torch.zeros_like(query[:1])
            for i, length in enumerate(cache.lengths)
        ]
    )


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_decode_attention(shape: tuple[int, int, int], dtype: torch.dtype, splits: int) -> None:
    torch.manual_seed(0)
    query_heads, kv_heads, head_dim = shape
    cache = cached_sequences(LENGTHS, kv_heads, head_dim, dtype)
    query = randn(len(LENGTHS), query_heads, head_dim, dtype=dtype)
    arrivals = decode_arrivals(len(LENGTHS), kv_heads, DEVICE)
    for call in ("first", "second"):
        output = decode(query, cache, splits, arrivals)
        what = f"{call} call, {shape}, {splits} splits, contexts {LENGTHS}"
        assert_near(output, plain_decode(query, cache), what)
        assert not arrivals.any(), "arrivals have to be left as they were found"


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_rotate_and_decode_is_one_after_the_other(shape: tuple[int, int, int], dtype: torch.dtype, splits: int) -> None:
    torch.manual_seed(0)
    query_heads, kv_heads, head_dim = shape
    cache = cached_sequences(LENGTHS, kv_heads, head_dim, dtype)
    heads = randn(len(LENGTHS), query_heads + 2 * kv_heads, head_dim, dtype=dtype)
    rotary = rotary_from_angles(torch.randn(len(LENGTHS), head_dim // 2, device=DEVICE), dtype)
    rows = cache.last_rows()
    cache.keys[rows[rows >= 0]] = torch.nan
    cache.values[rows[rows >= 0]] = torch.nan
    keys, values = cache.keys.clone(), cache.values.clone()
    query = rotate_and_store(heads, *rotary, rows, keys, values)
    expected = plain_decode(query, CachedSequences(keys, values, cache.block_tables, LENGTHS))

    arrivals = decode_arrivals(len(LENGTHS), kv_heads, DEVICE)
    for call in ("first", "second"):
        output = rotate_and_decode(
            heads,
            *rotary,
            rows,
            cache.keys,
            cache.values,
            cache.block_tables,
            cache.context_lengths,
            splits,
            arrivals,
        )
        assert_near(output, expected, f"{call} call, {shape}, {splits} splits, contexts {LENGTHS}")
        assert not arrivals.any(), "arrivals have to be left as they were found"
        torch.testing.assert_close(cache.keys, keys, equal_nan=True)
        assert torch.equal(cache.values.nan_to_num(7.0), values.nan_to_num(7.0)), "values stored elsewhere"


def test_scores_of_thousands_do_not_overflow() -> None:
    torch.manual_seed(0)
    cache = cached_sequences([130], 1, 32, torch.float32)
    query = 1000 * randn(1, 7, 32, dtype=torch.float32)
    output = decode(query, cache, 3, decode_arrivals(1, 1, DEVICE))
    assert_near(output, plain_decode(query, cache), "large query")


@on_gpu
@pytest.mark.parametrize("batch", [1, 64])
def test_order_in_which_splits_arrive_does_not_matter(batch: int) -> None:
    torch.manual_seed(0)
    cache = cached_sequences([4000 - 7 * i for i in range(batch)], 2, 128, HALF)
    query = randn(batch, 16, 128, dtype=HALF)
    arrivals = decode_arrivals(batch, 2, DEVICE)
    expected = plain_decode(query, cache)
    outputs = torch.stack([decode(query, cache, 64, arrivals) for _ in range(300)])
    assert_near(outputs[0], expected, f"64 splits, batch {batch}")
    different = (outputs != outputs[0]).flatten(1).any(1).sum()
    assert different == 0, f"{different} of 300 results differ from the first"


@on_gpu
def test_one_cuda_graph_serves_any_lengths() -> None:
    torch.manual_seed(0)
    longest = cached_sequences([3000, 2000, 1000, 500], 2, 128, HALF)
    query = randn(4, 16, 128, dtype=HALF)
    lengths = longest.context_lengths
    arrivals = decode_arrivals(4, 2, DEVICE)

    def step() -> Tensor:
        return decode_attention(query, longest.keys, longest.values, longest.block_tables, lengths, 16, arrivals)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    for now in ([3000, 2000, 1000, 500], [1, 0, 64, 65], [2999, 1, 17, 0]):
        lengths.copy_(torch.tensor(now))
        output.fill_(torch.nan)
        graph.replay()
        cache = CachedSequences(longest.keys, longest.values, longest.block_tables, now)
        assert_near(output, plain_decode(query, cache), f"replay with contexts {now}")


@on_gpu
def test_cache_of_more_than_2_to_31_values() -> None:
    torch.manual_seed(0)
    small = cached_sequences([40], 2, 128, HALF)
    blocks = 2**31 // (16 * 2 * 128) + 8
    large = torch.empty(2, blocks * 16, 2, 128, dtype=HALF, device=DEVICE)
    keys, values = large
    keys[-len(small.keys) :] = small.keys
    values[-len(small.values) :] = small.values
    table = small.block_tables + blocks - len(small.keys) // 16
    at_end = CachedSequences(keys, values, table, small.lengths)
    query = randn(1, 16, 128, dtype=HALF)
    output = decode(query, at_end, 1, decode_arrivals(1, 2, DEVICE))
    assert_near(output, plain_decode(query, small), "last blocks of a large cache")

    heads = randn(1, 20, 128, dtype=HALF)
    rotary = rotary_from_angles(torch.zeros(1, 64, device=DEVICE), HALF)
    row = blocks * 16 - 1
    rotate_and_store(heads, *rotary, torch.tensor([row], device=DEVICE), keys, values)
    assert torch.equal(keys[row], heads[0, 16:18])
    assert torch.equal(values[row], heads[0, 18:])


@pytest.mark.parametrize(
    ("batch", "kv_heads", "max_context", "splits"),
    [
        (1, 2, 32768, 32),
        (1, 2, 1024, 8),
        (1, 2, 1, 1),
        (8, 2, 32768, 8),
        (16, 2, 1024, 4),
        (32, 2, 1024, 1),
        (64, 2, 32768, 1),
        (512, 4, 32768, 1),
    ],
)
def test_splits_give_every_multiprocessor_a_program(batch: int, kv_heads: int, max_context: int, splits: int) -> None:
    assert decode_splits(batch, kv_heads, max_context, multiprocessors=132) == splits
