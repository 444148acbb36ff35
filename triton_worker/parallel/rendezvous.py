"""How the processes of one model find each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from triton_worker.parallel.ranks import Ranks, RanksLost

EXCHANGE_SECONDS = 120.0
"""Deadline of every exchange: a rank waits in it for what the others still compute, a whole step at most."""

_LOADING_SECONDS = 3600.0
"""For the slowest rank to read its weights."""


@dataclass(frozen=True)
class Layout:
    """Over how many ranks a model is spread."""

    tensor_size: int = 1
    """Ranks that share each layer."""
    pipeline_size: int = 1
    """Stages that the layers are split into."""

    @property
    def count(self) -> int:
        """All ranks."""
        return self.tensor_size * self.pipeline_size


def connect(
    layout: Layout,
    rank: int,
    meeting_file: str | None,
    device: torch.device,
    exchange_seconds: float = EXCHANGE_SECONDS,
) -> Ranks:
    """The place of ``rank``, connected to the others. NCCL carries tensors of GPUs, gloo all else.

    The ranks of one machine meet over ``meeting_file``, which does not exist yet; without one, as torchrun's
    environment says.

    Raises:
        RanksLost: the others did not come.
    """
    if meeting_file is not None:  # nothing needs to be reachable from other machines
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    deadline = timedelta(seconds=exchange_seconds)
    stages = [
        [stage * layout.tensor_size + tensor_rank for tensor_rank in range(layout.tensor_size)]
        for stage in range(layout.pipeline_size)
    ]
    stage, tensor_rank = divmod(rank, layout.tensor_size)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method="env://" if meeting_file is None else f"file://{meeting_file}",
            rank=rank,
            world_size=layout.count,
            timeout=deadline,
        )
        tensor_groups = [dist.new_group(members, timeout=deadline) for members in stages]
        loading_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_LOADING_SECONDS))
    except RuntimeError as error:
        raise RanksLost("The ranks of the model did not find each other.") from error
    return Ranks(
        tensor_rank=tensor_rank,
        tensor_size=layout.tensor_size,
        pipeline_rank=stage,
        pipeline_size=layout.pipeline_size,
        tensor_group=tensor_groups[stage],
        loading_group=loading_group,
        exchange_seconds=exchange_seconds,
    )
