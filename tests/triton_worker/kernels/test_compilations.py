from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch

pytest.importorskip("triton")

from tests.triton_worker.kernels.cached import DEVICE, HALF, cached_sequences, randn
from triton_worker.kernels import decode_attention, prefill_attention, rotate_and_store
from triton_worker.models.decoder.rope import rotary_from_angles

KERNELS = (decode_attention._decode, prefill_attention._prefill, rotate_and_store._rotate_and_store)
QUERY_HEADS, KV_HEADS, HEAD_DIM = (16, 2, 128) if DEVICE.type == "cuda" else (2, 1, 16)


def compiled() -> int:
    """How many kernels there are so far; the interpreter has none."""
    return sum(len(cache[0]) for kernel in KERNELS for cache in getattr(kernel, "device_caches", {}).values())


def step(decodes: list[int], prefills: list[int], splits: int, *, offset: int) -> None:
    """All that attention does in one, with tensors that begin `offset` elements into their memory."""
    batch, context = len(decodes), [*decodes, *prefills]
    cache = cached_sequences(context, KV_HEADS, HEAD_DIM, HALF)
    tokens = batch + sum(prefills)
    heads = randn(tokens, QUERY_HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=HALF)
    rotary = rotary_from_angles(torch.randn(tokens, HEAD_DIM // 2, device=DEVICE), HALF)
    rows = torch.full((tokens + offset,), -1, device=DEVICE)[offset:]
    tables = torch.zeros(len(context), cache.block_tables.shape[1] + offset, dtype=torch.int32, device=DEVICE)
    tables = tables[:, offset:].copy_(cache.block_tables)
    lengths = torch.zeros(len(context) + offset, dtype=torch.int32, device=DEVICE)[offset:]
    lengths.copy_(cache.context_lengths)
    arrivals = decode_attention.decode_arrivals(batch, KV_HEADS, DEVICE)
    keys, values = cache.keys, cache.values
    of_decodes = (keys, values, tables[:batch], lengths[:batch], splits, arrivals)
    query = rotate_and_store.rotate_and_store(heads, *rotary, rows, keys, values)
    decode_attention.decode_attention(query[:batch], *of_decodes)
    decode_attention.rotate_and_decode(heads[:batch], *(x[:batch] for x in rotary), rows, *of_decodes)
    starts = torch.tensor([0, *accumulate(prefills)], dtype=torch.int32, device=DEVICE)
    prefill_attention.paged_prefill_attention(
        query[batch:], keys, values, tables[batch:], starts, lengths[batch:], max(prefills)
    )


def test_steps_of_other_sizes_compile_nothing() -> None:
    """A compilation takes a second or two, of which every request in flight would have to know."""
    torch.manual_seed(0)
    for splits in (1, 2):
        step([2], [3], splits, offset=0)
    ready = compiled()
    sizes = ([1, 3, 16, 33], [2, 15, 16, 17, 300], [1, 2, 7, 8, 16]) if DEVICE.type == "cuda" else ([2], [3], [3])
    for number, (batch, tokens, splits) in enumerate(product(*sizes)):
        step([tokens + i for i in range(batch)], [tokens] * (1 + number % 3), splits, offset=number % 5)
    assert compiled() == ready, "a kernel was compiled for a step that differs in its size alone"
