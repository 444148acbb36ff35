"""Which part of a decoder a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.parallel.ranks import Ranks


class ParallelismError(Exception):
    """The model cannot be split as asked; the message names the flag and the numbers."""


@dataclass(frozen=True)
class DecoderShard:
    """The part of a decoder that one rank holds, counted as in the whole.

    Heads lie in the whole as groups: query head ``i`` reads key-value head ``i * kv_heads // query_heads``.
    """

    layers: range
    query_heads: range
    kv_heads: range
    """Shared with neighbouring ranks where there are more ranks than heads."""
    intermediate: range
    """Of the feed-forward network."""
    vocabulary: range
    """Rows of embedding and output. All ranks but the last ones have as many as the first."""


def shard_decoder(
    ranks: Ranks, *, num_layers: int, num_heads: int, num_kv_heads: int, intermediate_size: int, vocab_size: int
) -> DecoderShard:
    """The part of the rank that ``ranks`` describes.

    Raises:
        ParallelismError: the sizes do not divide.
    """
    size, rank = ranks.tensor_size, ranks.tensor_rank
    _check_tensor_size(size, num_heads, num_kv_heads, intermediate_size)
    if ranks.pipeline_size > num_layers:
        raise ParallelismError(
            f"--pipeline_parallel_size {ranks.pipeline_size} is more than the model's {num_layers} layers."
        )
    vocabulary_rows = -(-vocab_size // size)
    return DecoderShard(
        layers=stage_layers(num_layers, ranks.pipeline_rank, ranks.pipeline_size),
        query_heads=_even(num_heads, rank, size),
        kv_heads=_even(num_kv_heads, rank, size) if size <= num_kv_heads else _one(rank * num_kv_heads // size),
        intermediate=_even(intermediate_size, rank, size),
        vocabulary=range(min(rank * vocabulary_rows, vocab_size), min((rank + 1) * vocabulary_rows, vocab_size)),
    )


def stage_layers(num_layers: int, stage: int, stages: int) -> range:
    """Those of a pipeline stage."""
    return _even(num_layers, stage, stages)


def heads_to_rows(heads: range, head_dim: int) -> range:
    """The rows, of a projection's weight, that make these heads."""
    return range(heads.start * head_dim, heads.stop * head_dim)


def _check_tensor_size(size: int, num_heads: int, num_kv_heads: int, intermediate_size: int) -> None:
    flag = f"--tensor_parallel_size {size}"
    for count, what in ((num_heads, "attention heads"), (intermediate_size, "feed-forward columns")):
        if count % size:
            raise ParallelismError(f"{flag} does not divide the model's {count} {what}.")
    if num_kv_heads % size and size % num_kv_heads:
        raise ParallelismError(f"{flag} neither divides nor is a multiple of the model's {num_kv_heads} KV heads.")


def _even(count: int, part: int, parts: int) -> range:
    return range(count * part // parts, count * (part + 1) // parts)


def _one(index: int) -> range:
    return range(index, index + 1)
