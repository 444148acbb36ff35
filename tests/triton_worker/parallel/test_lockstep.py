"""What the ranks tell each other, and what they do when they find that they have parted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_worker.models.reference import NEMO_FIXTURE
from tests.triton_worker.parallel.engine_harness import IMAGE_PAD
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.rank import _serve
from triton_worker.models.registry import load_model
from triton_worker.parallel import Layout, Ranks, connect


class Parted(Ranks):
    """A rank whose first computes something else."""

    def from_first(self, value: Any) -> Any:
        messages, (running, waiting, free_blocks) = value
        return messages, (running + 1, waiting, free_blocks)


def test_ranks_that_no_longer_compute_the_same_end() -> None:
    model = load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, torch.device("cpu"))
    engine = Engine(model, IMAGE_PAD, 128, EngineLimits(cpu_kv_cache_bytes=2**24))
    with pytest.raises(EngineError, match="do not agree"):
        _serve(engine, Parted(), inbox=None, say=lambda message: None)


def exchange(rank: int, meeting: str) -> None:
    layout = Layout(tensor_size=2, pipeline_size=2)
    ranks = connect(layout, rank, meeting, torch.device("cpu"), exchange_seconds=60.0)
    stage = 10.0 * ranks.pipeline_rank
    for dtype in (torch.float32, torch.bfloat16):
        mine = torch.full((3, 2), stage + ranks.tensor_rank, dtype=dtype)
        assert ranks.sum(mine.clone()).eq(2 * stage + 1).all()
        assert ranks.gather(mine)[0].tolist() == [stage, stage, stage + 1, stage + 1]
        if ranks.is_last_stage:
            assert ranks.receive_hidden(mine).eq(ranks.tensor_rank).all()
        else:
            ranks.send_hidden(mine)
    for size in (0, 1, 4000, 4087, 4088, 4089, 5000, 10**6):
        value = b"x" * size
        assert ranks.from_first(value if rank == 0 else b"") == value
        assert ranks.from_sampler([value] if ranks.samples else []) == [value]
    assert ranks.smallest(100 - rank) == 97
    assert (ranks.rank, ranks.samples) == (rank, rank == 2)
    ranks.leave_together()


def test_what_is_exchanged_arrives(tmp_path: Path) -> None:
    in_four_processes(exchange, str(tmp_path / "ranks"))


def in_four_processes(target: Callable[[int, str], None], meeting: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(rank, meeting), daemon=True) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
