"""What attention takes on a GPU, beside the least it could take and beside PyTorch's own.

With --sweep every choice of splits and tiles that the kernels leave open, for Qwen2.5-VL-3B; "(ours)" marks
the one that they make. Takes about a minute, most of it to compile.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.runtime.errors import OutOfResources

from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.kernels import decode_attention as decoding
from triton_worker.kernels import prefill_attention as prefilling
from triton_worker.kernels import varlen_attention as segments
from triton_worker.kernels.linear import MOST_ROWS, small_batch_linear
from triton_worker.kernels.rotate_and_store import rotate_and_store
from triton_worker.models.decoder.rope import apply_rotary, rotary_from_angles

HEADS = {"3B": (16, 2), "7B": (28, 4)}
HEAD_DIM = 128
DTYPE = torch.bfloat16
DEVICE = torch.device("cuda")


class Row(NamedTuple):
    """Microseconds of one call."""

    what: str
    measured: float
    floor: float
    """Bytes once over the device, or operations at the rate of a large product, whichever takes longer."""
    torch: float | None
    """PyTorch's own way, where there is one."""


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Median of one call in a replayed CUDA graph of all of them, which differ in the memory they touch."""
    for call in calls:
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(21):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


class Floor:
    """Rates measured now."""

    def __init__(self) -> None:
        source, target = torch.zeros(2, 2**30, dtype=torch.uint8, device=DEVICE)
        self._bytes_per_us = 2 * source.nbytes / microseconds([lambda: target.copy_(source)] * 8)
        square = torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE)
        self._flop_per_us = 2 * 8192**3 / microseconds([lambda: square @ square])

    def __call__(self, moved_bytes: float, flop: float = 0.0) -> float:
        """Microseconds."""
        return max(moved_bytes / self._bytes_per_us, flop / self._flop_per_us)


def rows() -> Iterator[Row]:
    """All measurements."""
    floor = Floor()
    for model in HEADS:
        for tokens in (1, 64, 4008):
            yield rotation(model, tokens, floor)
        for batch, context in ((1, 1024), (8, 1024), (32, 1024), (64, 1024), (128, 1024), (1, 32768)):
            yield from decode(model, batch, context, floor)
        for sequences, tokens, before in ((1, 1002, 0), (4, 1002, 0), (1, 1024, 3072)):
            yield from prefill(model, sequences, tokens, before, floor)
    yield from vision("3848 patches", [3848], floor)
    yield from vision("3848 patches, windows of 64", [64] * 60 + [8], floor)


def _layers(bytes_each: float) -> int:
    """How many to go around so that none is still in the device's cache: in a model, weights drive it out of there."""
    return int(min(256, max(4, 3e8 // bytes_each)))


def rotation(model: str, tokens: int, floor: Floor) -> Row:
    """Turn and store."""
    query_heads, kv_heads = HEADS[model]
    heads = torch.randn(tokens, query_heads + 2 * kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    rotary = rotary_from_angles(torch.randn(tokens, HEAD_DIM // 2, device=DEVICE), DTYPE)
    keys, values = torch.zeros(2, tokens, kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    where = torch.randperm(tokens, device=DEVICE)

    def plainly() -> None:
        turned = apply_rotary(heads[:, : query_heads + kv_heads], rotary)
        keys.index_copy_(0, where, turned[:, query_heads:])
        values.index_copy_(0, where, heads[:, query_heads + kv_heads :])

    return Row(
        f"{model} turn and store {tokens} tokens",
        microseconds([lambda: rotate_and_store(heads, *rotary, where, keys, values)] * 16),
        floor(2 * heads.nbytes + 2 * rotary.cos.nbytes),
        microseconds([plainly] * 16),
    )


class Cache:
    """Some layers of keys and values, of sequences of equal length in shuffled blocks."""

    def __init__(self, model: str, sequences: int, context: int) -> None:
        self.query_heads, self.kv_heads = HEADS[model]
        blocks = -(-context // BLOCK_TOKENS)
        layer_values = sequences * blocks * BLOCK_TOKENS * self.kv_heads * HEAD_DIM
        layers = _layers(4 * layer_values)
        shape = (layers, sequences * blocks * BLOCK_TOKENS, self.kv_heads, HEAD_DIM)
        self.keys = torch.randn(shape, device=DEVICE, dtype=DTYPE)
        self.values = torch.randn(shape, device=DEVICE, dtype=DTYPE)
        self.tables = torch.randperm(sequences * blocks, device=DEVICE).view(sequences, blocks).to(torch.int32)
        self.lengths = torch.full((sequences,), context, dtype=torch.int32, device=DEVICE)
        self.layers = list(zip(self.keys, self.values, strict=True))
        # What plain attention would gather first, which is not counted against it.
        self.dense = [
            tuple(x[: sequences * context].view(sequences, context, -1, HEAD_DIM).transpose(1, 2) for x in layer)
            for layer in self.layers
        ]
        self.layer_bytes = 2 * self.keys[0].nbytes

    def last_rows(self) -> Tensor:
        """Where the last token of each is."""
        last = self.lengths.long() - 1
        blocks = self.tables.long().gather(1, last[:, None] // BLOCK_TOKENS)[:, 0]
        return blocks * BLOCK_TOKENS + last % BLOCK_TOKENS


def decode(model: str, batch: int, context: int, floor: Floor, *, sweep: bool = False) -> Iterator[Row]:
    """As we choose to; in a sweep, in other ways too, and behind the product that makes the heads."""
    cache = Cache(model, batch, context)
    query = torch.randn(batch, cache.query_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    arrivals = decoding.decode_arrivals(batch, cache.kv_heads, DEVICE)
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    chosen = decoding.decode_splits(batch, cache.kv_heads, context, multiprocessors)
    ours = chosen, decoding.decode_tiles(chosen, DEVICE)
    least = floor(cache.layer_bytes + 2 * query.nbytes, 4 * query.numel() * context)
    grouped = query.view(batch, cache.kv_heads, -1, HEAD_DIM)
    plainly = microseconds([lambda k=k, v=v: F.scaled_dot_product_attention(grouped, k, v) for k, v in cache.dense])
    ways = [ours]
    if sweep:
        tiles = [decoding.Tiles(*each) for each in ((128, 4, 2), (128, 4, 3), (64, 4, 2), (64, 4, 3), (64, 8, 3))]
        numbers = sorted({max(chosen // 2, 1), chosen, 2 * chosen})
        ways += [way for way in ((n, each) for n in numbers for each in tiles) if way != ours]
    for splits, tile in ways:
        what = f"{model} decode batch {batch}, context {context}, {splits} splits, {tuple(tile)}"
        call = functools.partial(
            decoding.decode_attention, query, block_tables=cache.tables, context_lengths=cache.lengths, splits=splits,
            arrivals=arrivals, tiles=tile,
        )  # fmt: skip
        calls = [functools.partial(call, keys=k, values=v) for k, v in cache.layers]
        mark = " (ours)" if (splits, tile) == ours else ""
        yield from _rows(what + mark, calls, least, plainly)
        if sweep and batch <= 16:
            yield from _behind_product(what + mark, cache, splits, tile)
    if not sweep:
        what = f"{model} turn, store and decode batch {batch}, context {context}"
        yield from _whole_decode(what, cache, chosen, least)


def _rows(what: str, calls: list[Callable[[], object]], least: float, plainly: float | None) -> Iterator[Row]:
    """None where the device has too little shared memory."""
    try:
        yield Row(what, microseconds(calls), least, plainly)
    except OutOfResources:
        return


def _behind_product(what: str, cache: Cache, splits: int, tile: decoding.Tiles) -> Iterator[Row]:
    """What decoding adds to the product that makes its heads, whose end it overlaps with."""
    batch, all_heads, hidden = len(cache.lengths), cache.query_heads + 2 * cache.kv_heads, cache.query_heads * HEAD_DIM
    inputs = torch.randn(batch, hidden, device=DEVICE, dtype=DTYPE)
    count = min(len(cache.layers), 36)
    weights = torch.randn(count, all_heads * HEAD_DIM, hidden, device=DEVICE, dtype=DTYPE) / hidden**0.5
    rotary = rotary_from_angles(torch.randn(batch, HEAD_DIM // 2, device=DEVICE), DTYPE)
    arrivals = decoding.decode_arrivals(batch, cache.kv_heads, DEVICE)
    where = cache.last_rows()

    def product(weight: Tensor) -> Tensor:
        product_of = small_batch_linear if batch <= MOST_ROWS else F.linear
        return product_of(inputs, weight).view(batch, all_heads, HEAD_DIM)

    def both(weight: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = product(weight)
        tables = (cache.tables, cache.lengths, splits, arrivals)
        return decoding.rotate_and_decode(heads, *rotary, where, k, v, *tables, tile)

    alone = microseconds([functools.partial(product, weight) for weight in weights])
    layers = zip(weights, *zip(*cache.layers[:count], strict=True), strict=True)
    calls = [functools.partial(both, *each) for each in layers]
    for row in _rows(f"{what}, behind the product", calls, 0.0, None):
        yield row._replace(measured=row.measured - alone)


def _whole_decode(what: str, cache: Cache, splits: int, least: float) -> Iterator[Row]:
    """From the heads as they leave their product, in two kernels and in one."""
    batch, query_heads = len(cache.lengths), cache.query_heads
    heads = torch.randn(batch, query_heads + 2 * cache.kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    rotary = rotary_from_angles(torch.randn(batch, HEAD_DIM // 2, device=DEVICE), DTYPE)
    arrivals = decoding.decode_arrivals(batch, cache.kv_heads, DEVICE)
    where = cache.last_rows()

    def in_two(k: Tensor, v: Tensor) -> Tensor:
        query = rotate_and_store(heads, *rotary, where, k, v)
        return decoding.decode_attention(query, k, v, cache.tables, cache.lengths, splits, arrivals)

    def in_one(k: Tensor, v: Tensor) -> Tensor:
        tables = (cache.tables, cache.lengths, splits, arrivals)
        return decoding.rotate_and_decode(heads, *rotary, where, k, v, *tables)

    for name, call in (("two kernels", in_two), ("one kernel", in_one)):
        calls = [lambda k=k, v=v: call(k, v) for k, v in cache.layers]  # noqa: B023
        yield Row(f"{what}, {name}", microseconds(calls), least, None)


def prefill(
    model: str, sequences: int, tokens: int, before: int, floor: Floor, *, sweep: bool = False
) -> Iterator[Row]:
    """Our kernel on the paged cache; PyTorch's on contiguous keys."""
    context = before + tokens
    cache = Cache(model, sequences, context)
    query = torch.randn(sequences * tokens, cache.query_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    query_starts = torch.arange(sequences + 1, device=DEVICE, dtype=torch.int32) * tokens
    pairs = tokens * before + tokens * (tokens + 1) / 2
    least = floor(2 * query.nbytes + cache.layer_bytes, 4 * sequences * pairs * cache.query_heads * HEAD_DIM)
    dense = query.view(sequences, tokens, cache.query_heads, HEAD_DIM).transpose(1, 2)
    mask = None if before == 0 else torch.ones(tokens, context, dtype=torch.bool, device=DEVICE).tril(before)
    attend = functools.partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    plainly = microseconds([functools.partial(attend, dense, k, v) for k, v in cache.dense])
    ways = [prefilling.TILES]
    if sweep:
        others = ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (64, 128, 4, 2))
        ways += [way for way in (prefilling.Tiles(*each) for each in others) if way != prefilling.TILES]
    for tiles in ways:
        call = functools.partial(
            prefilling.paged_prefill_attention, query, block_tables=cache.tables, query_starts=query_starts,
            context_lengths=cache.lengths, longest_query=tokens, tiles=tiles,
        )  # fmt: skip
        calls = [functools.partial(call, keys=k, values=v) for k, v in cache.layers]
        mark = " (ours)" if tiles == prefilling.TILES else ""
        yield from _rows(
            f"{model} prefill {sequences} x {tokens} after {before}, {tuple(tiles)}{mark}", calls, least, plainly
        )


def vision(what: str, lengths: list[int], floor: Floor, *, sweep: bool = False) -> Iterator[Row]:
    """16 heads of 80, as views of the product that makes them. PyTorch's flash attention takes them as they are."""
    query, key, value = torch.randn(sum(lengths), 3, 16, 80, device=DEVICE, dtype=DTYPE).unbind(1)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    longest = max(lengths)
    flash = functools.partial(
        torch.ops.aten._flash_attention_forward, query, key, value, starts, starts, longest, longest, 0.0, False, False
    )
    flop = 4 * sum(length**2 for length in lengths) * 16 * 80
    least, plainly = floor(4 * query.numel() * DTYPE.itemsize, flop), microseconds([flash] * 4)
    ours = segments.varlen_tiles(longest)
    ways = [ours]
    if sweep:
        others = ((64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2))
        ways += [way for way in (segments.Tiles(*each) for each in others) if way != ours]
    for tiles in ways:
        call = functools.partial(segments.varlen_attention, query, key, value, starts, longest, tiles)
        yield from _rows(
            f"vision {what}, {tuple(tiles)}{' (ours)' if tiles == ours else ''}", [call] * 4, least, plainly
        )
    if sweep and len(lengths) == 1:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            with sdpa_kernel(backend):
                measured = microseconds([functools.partial(F.scaled_dot_product_attention, q, k, v)] * 4)
            yield Row(f"vision {what}, PyTorch's {backend.name}", measured, least, plainly)


def sweep() -> Iterator[Row]:
    """All that is open."""
    floor = Floor()
    for batch, context in ((1, 1024), (8, 1024), (16, 1024), (32, 1024), (64, 1024), (128, 1024), (1, 32768)):
        yield from decode("3B", batch, context, floor, sweep=True)
    yield from prefill("3B", 4, 1002, 0, floor, sweep=True)
    yield from prefill("7B", 4, 1002, 0, floor)
    yield from vision("3848 patches", [3848], floor, sweep=True)
    yield from vision("3848 patches, windows of 64", [64] * 60 + [8], floor, sweep=True)


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="all choices of splits and tiles")
    options = parser.parse_args()
    print(f"{'microseconds of one call':80} {'measured':>9} {'floor':>9} {'torch':>9}")
    for row in sweep() if options.sweep else rows():
        print(f"{row.what:80} {row.measured:9.1f} {row.floor:9.1f} {row.torch or float('nan'):9.1f}", flush=True)


if __name__ == "__main__":
    main()
