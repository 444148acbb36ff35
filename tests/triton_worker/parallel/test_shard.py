"""Which part of a decoder each rank holds, and that the parts make the whole."""

from __future__ import annotations

import itertools

import pytest

from triton_worker.parallel import DecoderShard, ParallelismError, Ranks, shard_decoder

SIZES = {
    "3B": {"num_layers": 36, "num_heads": 16, "num_kv_heads": 2, "intermediate_size": 11008, "vocab_size": 151936},
    "7B": {"num_layers": 28, "num_heads": 28, "num_kv_heads": 4, "intermediate_size": 18944, "vocab_size": 152064},
    "72B": {"num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "intermediate_size": 29568, "vocab_size": 152064},
}


def shards(size: str, tensor_size: int, pipeline_size: int) -> list[list[DecoderShard]]:
    return [
        [
            shard_decoder(Ranks(tensor_rank, tensor_size, stage, pipeline_size), **SIZES[size])
            for tensor_rank in range(tensor_size)
        ]
        for stage in range(pipeline_size)
    ]


@pytest.mark.parametrize(("size", "tensor_size", "pipeline_size"), [("3B", 8, 5), ("7B", 4, 3), ("72B", 16, 2)])
def test_the_parts_make_the_whole(size: str, tensor_size: int, pipeline_size: int) -> None:
    grid, whole = shards(size, tensor_size, pipeline_size), SIZES[size]
    layers = [layer for stage in grid for layer in stage[0].layers]
    assert layers == list(range(whole["num_layers"]))
    for stage in grid:
        assert len({shard.layers for shard in stage}) == 1
        for part, count in (
            ("query_heads", whole["num_heads"]),
            ("intermediate", whole["intermediate_size"]),
            ("vocabulary", whole["vocab_size"]),
        ):
            assert list(itertools.chain(*(getattr(shard, part) for shard in stage))) == list(range(count))


@pytest.mark.parametrize(("size", "tensor_size"), [("3B", 1), ("3B", 2), ("3B", 4), ("3B", 16), ("72B", 16)])
def test_every_query_head_finds_its_key_value_head(size: str, tensor_size: int) -> None:
    heads, kv_heads = SIZES[size]["num_heads"], SIZES[size]["num_kv_heads"]
    for [*stage] in shards(size, tensor_size, 1):
        for shard in stage:
            per_kv_head = len(shard.query_heads) // len(shard.kv_heads)
            for place, head in enumerate(shard.query_heads):
                assert shard.kv_heads[place // per_kv_head] == head * kv_heads // heads


def test_rows_that_do_not_divide_are_missing_on_the_last_ranks() -> None:
    sizes = {**SIZES["7B"], "vocab_size": 9}
    rows = [shard_decoder(Ranks(rank, 4, 0, 1), **sizes).vocabulary for rank in range(4)]
    assert rows == [range(3), range(3, 6), range(6, 9), range(9, 9)]


@pytest.mark.parametrize(
    ("tensor_size", "pipeline_size", "words"),
    [
        (8, 1, "--tensor_parallel_size 8 does not divide the model's 28 attention heads"),
        (7, 1, "--tensor_parallel_size 7 does not divide the model's 18944 feed-forward columns"),
        (1, 29, "--pipeline_parallel_size 29 is more than the model's 28 layers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tensor_size: int, pipeline_size: int, words: str) -> None:
    with pytest.raises(ParallelismError, match=words):
        shards("7B", tensor_size, pipeline_size)


def test_key_value_heads_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ParallelismError, match=r"--tensor_parallel_size 4 .* 6 KV heads"):
        shard_decoder(Ranks(0, 4, 0, 1), **{**SIZES["7B"], "num_heads": 12, "num_kv_heads": 6})
