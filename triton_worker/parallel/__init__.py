"""Several processes, one model: which part each of them holds, and what they say to each other."""

from triton_worker.parallel.ranks import Ranks, RanksLost
from triton_worker.parallel.rendezvous import EXCHANGE_SECONDS, Layout, connect
from triton_worker.parallel.shard import DecoderShard, ParallelismError, heads_to_rows, shard_decoder, stage_layers

__all__ = [
    "EXCHANGE_SECONDS",
    "DecoderShard",
    "Layout",
    "ParallelismError",
    "Ranks",
    "RanksLost",
    "connect",
    "heads_to_rows",
    "shard_decoder",
    "stage_layers",
]
